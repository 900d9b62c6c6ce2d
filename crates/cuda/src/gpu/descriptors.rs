//! What cuDNN is told of a convolution: extents and how numbers lie.

use std::ffi::c_int;
use std::sync::Arc;

use lgm_core::{ConvolutionPass, DeviceConvolution, Element, Format, Layout, Result};

use super::api::*;
use super::convolution::{check, in_order};
use super::ways::math_type;
use crate::Precision;

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
    x: Handle,
    w: Handle,
    y: Handle,
    pub(super) conv: Handle,
}

impl Descriptors {
    pub(super) fn new(api: &Arc<CudnnApi>, geometry: &Geometry, format: Format, precision: Precision) -> Result<Self> {
        let null = Handle::NULL;
        let mut all = Descriptors { api: api.clone(), x: null, w: null, y: null, conv: null };
        let float = CUDNN_DATA_FLOAT;
        let element = match format.element {
            Element::F32 => float,
            Element::Bf16 => CUDNN_DATA_BFLOAT16,
        };
        // The extents are told in the order N, C, H, W whatever the layout.
        let layout = match format.layout {
            Layout::ChannelsFirst => CUDNN_TENSOR_NCHW,
            Layout::ChannelsLast => CUDNN_TENSOR_NHWC,
        };
        // SAFETY, of all calls: types are the header's, pointers and handles are live.
        unsafe {
            for (blob, [n, c, h, w]) in [(&mut all.x, geometry.x), (&mut all.y, geometry.y)] {
                check(api, "cudnnCreateTensorDescriptor", (api.cudnnCreateTensorDescriptor)(blob))?;
                let status = (api.cudnnSetTensor4dDescriptor)(*blob, layout, element, n, c, h, w);
                check(api, "cudnnSetTensor4dDescriptor", status)?;
            }
            check(api, "cudnnCreateFilterDescriptor", (api.cudnnCreateFilterDescriptor)(&mut all.w))?;
            let [k, c, h, w] = geometry.w;
            let status = (api.cudnnSetFilter4dDescriptor)(all.w, element, layout, k, c, h, w);
            check(api, "cudnnSetFilter4dDescriptor", status)?;
            check(api, "cudnnCreateConvolutionDescriptor", (api.cudnnCreateConvolutionDescriptor)(&mut all.conv))?;
            let ([ph, pw], [sh, sw], [dh, dw]) = (geometry.pad, geometry.stride, geometry.dilation);
            let status =
                (api.cudnnSetConvolution2dDescriptor)(all.conv, ph, pw, sh, sw, dh, dw, CUDNN_CROSS_CORRELATION, float);
            check(api, "cudnnSetConvolution2dDescriptor", status)?;
            let status = (api.cudnnSetConvolutionGroupCount)(all.conv, geometry.groups);
            check(api, "cudnnSetConvolutionGroupCount", status)?;
        }
        all.set_math(math_type(precision, None))?;
        Ok(all)
    }

    pub(super) fn set_math(&self, math: c_int) -> Result<()> {
        // SAFETY: the descriptor is live.
        let status = unsafe { (self.api.cudnnSetConvolutionMathType)(self.conv, math) };
        check(&self.api, "cudnnSetConvolutionMathType", status)
    }

    /// The output's extents as cuDNN works them out.
    pub(super) fn output(&self) -> Result<[c_int; 4]> {
        let [mut n, mut c, mut h, mut w] = [0; 4];
        // SAFETY: the descriptors are live, the pointers are to live integers.
        let status = unsafe {
            (self.api.cudnnGetConvolution2dForwardOutputDim)(self.conv, self.x, self.w, &mut n, &mut c, &mut h, &mut w)
        };
        check(&self.api, "cudnnGetConvolution2dForwardOutputDim", status)?;
        Ok([n, c, h, w])
    }

    /// The descriptors of a pass's operands and of its result, in cuDNN's order.
    pub(super) fn in_order(&self, pass: ConvolutionPass) -> [Handle; 3] {
        let Descriptors { x, w, y, .. } = *self;
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
        let api = &self.api;
        let all = [
            (self.x, api.cudnnDestroyTensorDescriptor),
            (self.y, api.cudnnDestroyTensorDescriptor),
            (self.w, api.cudnnDestroyFilterDescriptor),
            (self.conv, api.cudnnDestroyConvolutionDescriptor),
        ];
        for (handle, destroy) in all.into_iter().filter(|(handle, _)| *handle != Handle::NULL) {
            // SAFETY: the descriptor is alive and not used again.
            unsafe { destroy(handle) };
        }
    }
}
