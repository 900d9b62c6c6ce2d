//! Descriptors.

use std::ffi::c_int;

use cudarc::cudnn::sys::{cudnnDataType_t, cudnnTensorFormat_t};
use lgm_core::{Element, Format, Layout};

use super::status::{BAD_PARAM, NOT_SUPPORTED};
use crate::gpu::Gpu;
use crate::objects::Descriptor;
use crate::status::Refusal;

impl Gpu {
    pub fn describe(&mut self, descriptor: Descriptor) -> usize {
        let new = self.handle();
        self.descriptors.insert(new, descriptor);
        new
    }

    pub fn forget(&mut self, descriptor: usize) -> Result<(), Refusal> {
        self.descriptors.remove(&descriptor).map(drop).ok_or(BAD_PARAM)
    }

    pub fn descriptor(&self, descriptor: usize) -> Result<Descriptor, Refusal> {
        self.descriptors.get(&descriptor).copied().ok_or(BAD_PARAM)
    }

    pub fn blob(&self, descriptor: usize) -> Result<(Format, [c_int; 4]), Refusal> {
        match self.descriptor(descriptor)? {
            Descriptor::Blob(Some(blob)) => Ok(blob),
            _ => Err(BAD_PARAM),
        }
    }

    pub fn describe_blob(
        &mut self,
        descriptor: usize,
        layout: cudnnTensorFormat_t,
        element: cudnnDataType_t,
        extents: [c_int; 4],
    ) -> Result<(), Refusal> {
        let layout = match layout {
            cudnnTensorFormat_t::CUDNN_TENSOR_NCHW => Layout::ChannelsFirst,
            cudnnTensorFormat_t::CUDNN_TENSOR_NHWC => Layout::ChannelsLast,
            _ => return Err(NOT_SUPPORTED),
        };
        let element = match element {
            cudnnDataType_t::CUDNN_DATA_FLOAT => Element::F32,
            cudnnDataType_t::CUDNN_DATA_BFLOAT16 => Element::Bf16,
            _ => return Err(NOT_SUPPORTED),
        };
        if extents.iter().any(|extent| *extent < 1) {
            return Err(BAD_PARAM);
        }
        let Some(Descriptor::Blob(blob)) = self.descriptors.get_mut(&descriptor) else { return Err(BAD_PARAM) };
        *blob = Some((Format { element, layout }, extents));
        Ok(())
    }
}
