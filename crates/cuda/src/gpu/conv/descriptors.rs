//! Descriptors of a convolution for cuDNN: extents and formats.

use std::ffi::c_int;
use std::sync::Arc;

use lgm_core::{ConvolutionPass, DeviceConvolution, Element, Error, Layout, Result, ensure};

use super::status::{check, in_order};
use crate::Precision;
use crate::gpu::api::*;
use crate::gpu::conv::algorithms::math_type;

/// Numbers as cuDNN takes them.
///
/// # Errors
/// Where its 32 bits do not reach.
fn ints<T: Copy + TryInto<c_int>, const N: usize>(numbers: [T; N]) -> Result<[c_int; N]> {
    let mut ints = [0; N];
    for (int, number) in ints.iter_mut().zip(numbers) {
        *int = number.try_into().map_err(|_| Error::config("it is too large for cuDNN"))?;
    }
    Ok(ints)
}

/// The extents of x, w and y.
///
/// # Errors
/// Where 32 bits do not reach their elements.
pub(super) fn extents(conv: &DeviceConvolution) -> Result<[[c_int; 4]; 3]> {
    let mut blobs = [[0; 4]; 3];
    for (blob, shape) in blobs.iter_mut().zip(conv.shapes()) {
        ints([shape.count()])?;
        *blob = ints([shape[0], shape[1], shape[2], shape[3]])?;
    }
    Ok(blobs)
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
    /// # Errors
    /// When the convolution is too large for cuDNN, or it refuses it, or has its output other extents.
    pub(super) fn new(api: &Arc<CudnnApi>, conv: &DeviceConvolution, precision: Precision) -> Result<Self> {
        let [x, w, y] = extents(conv)?;
        let [rows, columns] = conv.windows;
        let [[ph, pw], [sh, sw], [dh, dw]] = [
            ints([rows.pad, columns.pad])?,
            ints([rows.stride, columns.stride])?,
            ints([rows.dilation, columns.dilation])?,
        ];
        let [groups] = ints([conv.groups])?;
        let mut all =
            Descriptors { api: api.clone(), x: Handle::NULL, w: Handle::NULL, y: Handle::NULL, conv: Handle::NULL };
        let float = cudnn::cudnnDataType_t::CUDNN_DATA_FLOAT;
        let element = match conv.format.element {
            Element::F32 => float,
            Element::Bf16 => cudnn::cudnnDataType_t::CUDNN_DATA_BFLOAT16,
        };
        // The extents are given in the order N, C, H, W whatever the layout.
        let layout = match conv.format.layout {
            Layout::ChannelsFirst => cudnn::cudnnTensorFormat_t::CUDNN_TENSOR_NCHW,
            Layout::ChannelsLast => cudnn::cudnnTensorFormat_t::CUDNN_TENSOR_NHWC,
        };
        // SAFETY, of all calls: types are the header's, pointers and handles are live.
        unsafe {
            for (blob, [n, c, h, w]) in [(&mut all.x, x), (&mut all.y, y)] {
                check(api, "cudnnCreateTensorDescriptor", (api.cudnnCreateTensorDescriptor)(&mut blob.0))?;
                let status = (api.cudnnSetTensor4dDescriptor)(blob.0, layout, element, n, c, h, w);
                check(api, "cudnnSetTensor4dDescriptor", status)?;
            }
            check(api, "cudnnCreateFilterDescriptor", (api.cudnnCreateFilterDescriptor)(&mut all.w.0))?;
            let [k, c, h, w] = w;
            let status = (api.cudnnSetFilter4dDescriptor)(all.w.0, element, layout, k, c, h, w);
            check(api, "cudnnSetFilter4dDescriptor", status)?;
            check(api, "cudnnCreateConvolutionDescriptor", (api.cudnnCreateConvolutionDescriptor)(&mut all.conv.0))?;
            let mode = cudnn::cudnnConvolutionMode_t::CUDNN_CROSS_CORRELATION;
            let status = (api.cudnnSetConvolution2dDescriptor)(all.conv.0, ph, pw, sh, sw, dh, dw, mode, float);
            check(api, "cudnnSetConvolution2dDescriptor", status)?;
            let status = (api.cudnnSetConvolutionGroupCount)(all.conv.0, groups);
            check(api, "cudnnSetConvolutionGroupCount", status)?;
        }
        all.set_math(math_type(precision, None))?;
        let output = all.output()?;
        ensure!(output == y, "cuDNN gives the output the extents {output:?}");
        Ok(all)
    }

    pub(super) fn set_math(&self, math: c_int) -> Result<()> {
        // SAFETY: the descriptor is live.
        let status = unsafe { (self.api.cudnnSetConvolutionMathType)(self.conv.0, math) };
        check(&self.api, "cudnnSetConvolutionMathType", status)
    }

    /// The output's extents as cuDNN works them out.
    fn output(&self) -> Result<[c_int; 4]> {
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
