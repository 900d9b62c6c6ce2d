//! Descriptors of a convolution for cuDNN: extents and formats.

use std::ffi::c_int;
use std::sync::Arc;

use lgm_core::{ConvolutionPass, DeviceConvolution, Element, Format, Layout, Result};

use super::status::{check, in_order};
use crate::Precision;
use crate::gpu::api::*;
use crate::gpu::conv::algorithms::math_type;

/// A convolution's extents as cuDNN takes them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Geometry {
    pub(super) x: [c_int; 4],
    pub(super) w: [c_int; 4],
    pub(super) y: [c_int; 4],
    pub(super) pad: [c_int; 2],
    pub(super) stride: [c_int; 2],
    pub(super) dilation: [c_int; 2],
    pub(super) groups: c_int,
}

impl Geometry {
    /// `None` where cuDNN's 32-bit extents or indices do not reach.
    pub(super) fn of(conv: &DeviceConvolution) -> Option<Self> {
        fn ints<const N: usize>(extents: [usize; N]) -> Option<[c_int; N]> {
            let mut ints = [0; N];
            for (int, extent) in ints.iter_mut().zip(extents) {
                *int = c_int::try_from(extent).ok()?;
            }
            Some(ints)
        }
        let blob = |extents: [usize; 4]| {
            let count = extents.iter().try_fold(1usize, |count, extent| count.checked_mul(*extent))?;
            (count > 0 && c_int::try_from(count).is_ok()).then(|| ints(extents))?
        };
        let DeviceConvolution { batch, channels, outputs, input, output, kernel, groups, .. } = *conv;
        if groups == 0 {
            return None;
        }
        Some(Geometry {
            x: blob([batch, channels, input[0], input[1]])?,
            w: blob([outputs, channels / groups, kernel[0], kernel[1]])?,
            y: blob([batch, outputs, output[0], output[1]])?,
            pad: ints(conv.pad)?,
            stride: ints(conv.stride)?,
            dilation: ints(conv.dilation)?,
            groups: ints([groups])?[0],
        })
    }
}

/// cuDNN's descriptions of the blobs and of the convolution.
pub(super) struct Descriptors {
    api: Arc<CudnnApi>,
    x: Handle<cudnn::cudnnTensorStruct>,
    w: Handle<cudnn::cudnnFilterStruct>,
    y: Handle<cudnn::cudnnTensorStruct>,
    pub(super) conv: Handle<cudnn::cudnnConvolutionStruct>,
}

impl Descriptors {
    pub(super) fn new(api: &Arc<CudnnApi>, geometry: &Geometry, format: Format, precision: Precision) -> Result<Self> {
        let mut all =
            Descriptors { api: api.clone(), x: Handle::NULL, w: Handle::NULL, y: Handle::NULL, conv: Handle::NULL };
        let float = cudnn::cudnnDataType_t::CUDNN_DATA_FLOAT;
        let element = match format.element {
            Element::F32 => float,
            Element::Bf16 => cudnn::cudnnDataType_t::CUDNN_DATA_BFLOAT16,
        };
        // The extents are given in the order N, C, H, W whatever the layout.
        let layout = match format.layout {
            Layout::ChannelsFirst => cudnn::cudnnTensorFormat_t::CUDNN_TENSOR_NCHW,
            Layout::ChannelsLast => cudnn::cudnnTensorFormat_t::CUDNN_TENSOR_NHWC,
        };
        // SAFETY, of all calls: types are the header's, pointers and handles are live.
        unsafe {
            for (blob, [n, c, h, w]) in [(&mut all.x, geometry.x), (&mut all.y, geometry.y)] {
                check(api, "cudnnCreateTensorDescriptor", (api.cudnnCreateTensorDescriptor)(&mut blob.0))?;
                let status = (api.cudnnSetTensor4dDescriptor)(blob.0, layout, element, n, c, h, w);
                check(api, "cudnnSetTensor4dDescriptor", status)?;
            }
            check(api, "cudnnCreateFilterDescriptor", (api.cudnnCreateFilterDescriptor)(&mut all.w.0))?;
            let [k, c, h, w] = geometry.w;
            let status = (api.cudnnSetFilter4dDescriptor)(all.w.0, element, layout, k, c, h, w);
            check(api, "cudnnSetFilter4dDescriptor", status)?;
            check(api, "cudnnCreateConvolutionDescriptor", (api.cudnnCreateConvolutionDescriptor)(&mut all.conv.0))?;
            let mode = cudnn::cudnnConvolutionMode_t::CUDNN_CROSS_CORRELATION;
            let ([ph, pw], [sh, sw], [dh, dw]) = (geometry.pad, geometry.stride, geometry.dilation);
            let status = (api.cudnnSetConvolution2dDescriptor)(all.conv.0, ph, pw, sh, sw, dh, dw, mode, float);
            check(api, "cudnnSetConvolution2dDescriptor", status)?;
            let status = (api.cudnnSetConvolutionGroupCount)(all.conv.0, geometry.groups);
            check(api, "cudnnSetConvolutionGroupCount", status)?;
        }
        all.set_math(math_type(precision, None))?;
        Ok(all)
    }

    pub(super) fn set_math(&self, math: c_int) -> Result<()> {
        // SAFETY: the descriptor is live.
        let status = unsafe { (self.api.cudnnSetConvolutionMathType)(self.conv.0, math) };
        check(&self.api, "cudnnSetConvolutionMathType", status)
    }

    /// The output's extents as cuDNN works them out.
    pub(super) fn output(&self) -> Result<[c_int; 4]> {
        let [mut n, mut c, mut h, mut w] = [0; 4];
        // SAFETY: the descriptors are live, the pointers are to live integers.
        let status = unsafe {
            (self.api.cudnnGetConvolution2dForwardOutputDim)(
                self.conv.0,
                self.x.0,
                self.w.0,
                &mut n,
                &mut c,
                &mut h,
                &mut w,
            )
        };
        check(&self.api, "cudnnGetConvolution2dForwardOutputDim", status)?;
        Ok([n, c, h, w])
    }

    /// The descriptors of a pass's operands and of its result, in cuDNN's order.
    pub(super) fn in_order(&self, pass: ConvolutionPass) -> [AnyDescriptor; 3] {
        let [x, w, y]: [AnyDescriptor; 3] = [self.x.0.cast(), self.w.0.cast(), self.y.0.cast()];
        let (operands, result) = match pass {
            ConvolutionPass::Forward => ([x, w], y),
            ConvolutionPass::Data => ([y, w], x),
            ConvolutionPass::Filter => ([x, y], w),
        };
        let [first, second] = in_order(pass, operands);
        [first, second, result]
    }
}

impl Drop for Descriptors {
    fn drop(&mut self) {
        let Descriptors { api, x, w, y, conv } = self;
        // SAFETY, of all calls: the descriptor is alive and not used again.
        for tensor in [x, y].into_iter().filter(|tensor| !tensor.is_null()) {
            unsafe { (api.cudnnDestroyTensorDescriptor)(tensor.0) };
        }
        if !w.is_null() {
            unsafe { (api.cudnnDestroyFilterDescriptor)(w.0) };
        }
        if !conv.is_null() {
            unsafe { (api.cudnnDestroyConvolutionDescriptor)(conv.0) };
        }
    }
}
