//! libcudnn.so.9
//!
//! Of the algorithms that it proposes for a pass, one is not deterministic, one refuses when it is to run, one runs, and one is not
//! supported.

use std::ffi::{c_char, c_int, c_void};

use cudarc::cudnn::sys::{
    self, cudaStream_t, cudnnConvolutionBwdDataAlgo_t, cudnnConvolutionBwdDataAlgoPerf_t,
    cudnnConvolutionBwdFilterAlgo_t, cudnnConvolutionBwdFilterAlgoPerf_t, cudnnConvolutionDescriptor_t,
    cudnnConvolutionFwdAlgo_t, cudnnConvolutionFwdAlgoPerf_t, cudnnConvolutionMode_t, cudnnDataType_t,
    cudnnFilterDescriptor_t, cudnnHandle_t, cudnnMathType_t, cudnnTensorDescriptor_t, cudnnTensorFormat_t,
};
use lgm_core::ConvolutionPass;

use crate::enter::functions;
use crate::objects::{Descriptor, DnnHandle};
use crate::status::give;
use convolution::{Call, number, workspace};
use status::{BAD_PARAM, NOT_INITIALIZED};

mod convolution;
mod descriptors;
mod status;

/// A version.
#[unsafe(no_mangle)]
pub extern "C" fn cudnnGetVersion() -> usize {
    91_900
}

/// A status in words.
#[unsafe(no_mangle)]
pub extern "C" fn cudnnGetErrorString(status: c_int) -> *const c_char {
    let name = match status {
        0 => c"CUDNN_STATUS_SUCCESS",
        1001 => c"CUDNN_STATUS_NOT_INITIALIZED",
        2000 => c"CUDNN_STATUS_BAD_PARAM",
        3000 => c"CUDNN_STATUS_NOT_SUPPORTED",
        5000 => c"CUDNN_STATUS_EXECUTION_FAILED",
        _ => c"CUDNN_STATUS_INTERNAL_ERROR",
    };
    name.as_ptr()
}

/// # Safety
/// There is room for so many bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cudnnGetLastErrorString(to: *mut c_char, room: usize) {
    let text = b"as the fake GPU has it\0";
    if room >= text.len() {
        // SAFETY: the caller's promise.
        unsafe { std::ptr::copy_nonoverlapping(text.as_ptr().cast(), to, text.len()) };
    }
}

// SAFETY, of all blocks: the places are the caller's, who has them valid, as the header asks.
functions! { sys, Dnn, cudnnStatus_t;
    fn cudnnCreate(handle: *mut cudnnHandle_t) [not_recorded] |gpu| {
        let new = gpu.handle();
        gpu.networks.insert(new, DnnHandle::default());
        unsafe { give(handle, new as cudnnHandle_t) }
    }
    fn cudnnDestroy(handle: cudnnHandle_t) [not_recorded releases] |gpu| {
        gpu.networks.remove(&(handle as usize)).map(drop).ok_or(NOT_INITIALIZED)
    }
    fn cudnnSetStream(handle: cudnnHandle_t, stream: cudaStream_t) [] |gpu| {
        let of = gpu.networks.get_mut(&(handle as usize)).ok_or(NOT_INITIALIZED)?;
        of.stream = stream as usize;
        Ok(())
    }
    fn cudnnCreateTensorDescriptor(to: *mut cudnnTensorDescriptor_t) [anywhere] |gpu| {
        let new = gpu.describe(Descriptor::Blob(None));
        unsafe { give(to, new as cudnnTensorDescriptor_t) }
    }
    fn cudnnDestroyTensorDescriptor(of: cudnnTensorDescriptor_t) [anywhere releases] |gpu| {
        gpu.forget(of as usize)
    }
    fn cudnnSetTensor4dDescriptor(
        of: cudnnTensorDescriptor_t, layout: cudnnTensorFormat_t, element: cudnnDataType_t, n: c_int, c: c_int, h: c_int,
        w: c_int,
    ) [anywhere] |gpu| { gpu.describe_blob(of as usize, layout, element, [n, c, h, w]) }
    fn cudnnCreateFilterDescriptor(to: *mut cudnnFilterDescriptor_t) [anywhere] |gpu| {
        let new = gpu.describe(Descriptor::Blob(None));
        unsafe { give(to, new as cudnnFilterDescriptor_t) }
    }
    fn cudnnDestroyFilterDescriptor(of: cudnnFilterDescriptor_t) [anywhere releases] |gpu| {
        gpu.forget(of as usize)
    }
    fn cudnnSetFilter4dDescriptor(
        of: cudnnFilterDescriptor_t, element: cudnnDataType_t, layout: cudnnTensorFormat_t, k: c_int, c: c_int, h: c_int,
        w: c_int,
    ) [anywhere] |gpu| { gpu.describe_blob(of as usize, layout, element, [k, c, h, w]) }
    fn cudnnCreateConvolutionDescriptor(to: *mut cudnnConvolutionDescriptor_t) [anywhere] |gpu| {
        let [pad, stride, dilation] = [[0; 2], [1; 2], [1; 2]];
        let math = cudnnMathType_t::CUDNN_DEFAULT_MATH;
        let new = gpu.describe(Descriptor::Convolution { pad, stride, dilation, math, groups: 1 });
        unsafe { give(to, new as cudnnConvolutionDescriptor_t) }
    }
    fn cudnnDestroyConvolutionDescriptor(of: cudnnConvolutionDescriptor_t) [anywhere releases] |gpu| {
        gpu.forget(of as usize)
    }
    fn cudnnSetConvolution2dDescriptor(
        of: cudnnConvolutionDescriptor_t, ph: c_int, pw: c_int, sh: c_int, sw: c_int, dh: c_int, dw: c_int,
        mode: cudnnConvolutionMode_t, compute: cudnnDataType_t,
    ) [anywhere] |gpu| {
        let known = mode == cudnnConvolutionMode_t::CUDNN_CROSS_CORRELATION && compute == cudnnDataType_t::CUDNN_DATA_FLOAT;
        if !known || [sh, sw, dh, dw].iter().any(|v| *v < 1) || ph < 0 || pw < 0 {
            return Err(BAD_PARAM);
        }
        let Some(Descriptor::Convolution { pad, stride, dilation, .. }) = gpu.descriptors.get_mut(&(of as usize)) else {
            return Err(BAD_PARAM);
        };
        (*pad, *stride, *dilation) = ([ph, pw], [sh, sw], [dh, dw]);
        Ok(())
    }
    fn cudnnSetConvolutionMathType(of: cudnnConvolutionDescriptor_t, to: cudnnMathType_t) [anywhere] |gpu| {
        let Some(Descriptor::Convolution { math, .. }) = gpu.descriptors.get_mut(&(of as usize)) else {
            return Err(BAD_PARAM);
        };
        *math = to;
        Ok(())
    }
    fn cudnnSetConvolutionGroupCount(of: cudnnConvolutionDescriptor_t, to: c_int) [anywhere] |gpu| {
        let Some(Descriptor::Convolution { groups, .. }) = gpu.descriptors.get_mut(&(of as usize)) else {
            return Err(BAD_PARAM);
        };
        *groups = to;
        if to > 0 { Ok(()) } else { Err(BAD_PARAM) }
    }
    fn cudnnGetConvolution2dForwardOutputDim(
        conv: cudnnConvolutionDescriptor_t, x: cudnnTensorDescriptor_t, w: cudnnFilterDescriptor_t, n: *mut c_int,
        c: *mut c_int, h: *mut c_int, v: *mut c_int,
    ) [anywhere] |gpu| {
        let Descriptor::Convolution { pad, stride, dilation, .. } = gpu.descriptor(conv as usize)? else {
            return Err(BAD_PARAM);
        };
        let ((_, x), (_, w)) = (gpu.blob(x as usize)?, gpu.blob(w as usize)?);
        let extent = |axis: usize| (x[2 + axis] + 2 * pad[axis] - dilation[axis] * (w[2 + axis] - 1) - 1) / stride[axis] + 1;
        for (to, value) in [(n, x[0]), (c, w[0]), (h, extent(0)), (v, extent(1))] {
            unsafe { give(to, value) }.map_err(|_| BAD_PARAM)?;
        }
        Ok(())
    }
    fn cudnnGetConvolutionForwardAlgorithm_v7(
        _handle: cudnnHandle_t, _x: cudnnTensorDescriptor_t, _w: cudnnFilterDescriptor_t,
        conv: cudnnConvolutionDescriptor_t, _y: cudnnTensorDescriptor_t, room: c_int, count: *mut c_int,
        to: *mut cudnnConvolutionFwdAlgoPerf_t,
    ) [] |gpu| { gpu.propose(conv, room, count, to.cast()) }
    fn cudnnGetConvolutionBackwardDataAlgorithm_v7(
        _handle: cudnnHandle_t, _w: cudnnFilterDescriptor_t, _dy: cudnnTensorDescriptor_t,
        conv: cudnnConvolutionDescriptor_t, _dx: cudnnTensorDescriptor_t, room: c_int, count: *mut c_int,
        to: *mut cudnnConvolutionBwdDataAlgoPerf_t,
    ) [] |gpu| { gpu.propose(conv, room, count, to.cast()) }
    fn cudnnGetConvolutionBackwardFilterAlgorithm_v7(
        _handle: cudnnHandle_t, _x: cudnnTensorDescriptor_t, _dy: cudnnTensorDescriptor_t,
        conv: cudnnConvolutionDescriptor_t, _dw: cudnnFilterDescriptor_t, room: c_int, count: *mut c_int,
        to: *mut cudnnConvolutionBwdFilterAlgoPerf_t,
    ) [] |gpu| { gpu.propose(conv, room, count, to.cast()) }
    fn cudnnGetConvolutionForwardWorkspaceSize(
        _handle: cudnnHandle_t, _x: cudnnTensorDescriptor_t, _w: cudnnFilterDescriptor_t,
        _conv: cudnnConvolutionDescriptor_t, _y: cudnnTensorDescriptor_t, algorithm: cudnnConvolutionFwdAlgo_t, to: *mut usize,
    ) [] |_gpu| { unsafe { give(to, workspace(algorithm as c_int)) } }
    fn cudnnGetConvolutionBackwardDataWorkspaceSize(
        _handle: cudnnHandle_t, _w: cudnnFilterDescriptor_t, _dy: cudnnTensorDescriptor_t,
        _conv: cudnnConvolutionDescriptor_t, _dx: cudnnTensorDescriptor_t, algorithm: cudnnConvolutionBwdDataAlgo_t,
        to: *mut usize,
    ) [] |_gpu| { unsafe { give(to, workspace(algorithm as c_int)) } }
    fn cudnnGetConvolutionBackwardFilterWorkspaceSize(
        _handle: cudnnHandle_t, _x: cudnnTensorDescriptor_t, _dy: cudnnTensorDescriptor_t,
        _conv: cudnnConvolutionDescriptor_t, _dw: cudnnFilterDescriptor_t, algorithm: cudnnConvolutionBwdFilterAlgo_t,
        to: *mut usize,
    ) [] |_gpu| { unsafe { give(to, workspace(algorithm as c_int)) } }
    fn cudnnConvolutionForward(
        handle: cudnnHandle_t, alpha: *const c_void, dx: cudnnTensorDescriptor_t, x: *const c_void,
        dw: cudnnFilterDescriptor_t, w: *const c_void, conv: cudnnConvolutionDescriptor_t,
        algorithm: cudnnConvolutionFwdAlgo_t, room: *mut c_void, bytes: usize, beta: *const c_void,
        dy: cudnnTensorDescriptor_t, y: *mut c_void,
    ) [] |gpu| {
        let call = Call { algorithm: algorithm as c_int, room: (room as u64, bytes), factors: unsafe { [number(alpha), number(beta)] } };
        let descriptors = [dx as usize, dw as usize, dy as usize];
        gpu.convolve(handle, ConvolutionPass::Forward, conv, descriptors, [x as u64, w as u64, y as u64], call)
    }
    fn cudnnConvolutionBackwardData(
        handle: cudnnHandle_t, alpha: *const c_void, dw: cudnnFilterDescriptor_t, w: *const c_void,
        ddy: cudnnTensorDescriptor_t, dy: *const c_void, conv: cudnnConvolutionDescriptor_t,
        algorithm: cudnnConvolutionBwdDataAlgo_t, room: *mut c_void, bytes: usize, beta: *const c_void,
        ddx: cudnnTensorDescriptor_t, dx: *mut c_void,
    ) [] |gpu| {
        let call = Call { algorithm: algorithm as c_int, room: (room as u64, bytes), factors: unsafe { [number(alpha), number(beta)] } };
        let descriptors = [ddx as usize, dw as usize, ddy as usize];
        gpu.convolve(handle, ConvolutionPass::Data, conv, descriptors, [dx as u64, w as u64, dy as u64], call)
    }
    fn cudnnConvolutionBackwardFilter(
        handle: cudnnHandle_t, alpha: *const c_void, dx: cudnnTensorDescriptor_t, x: *const c_void,
        ddy: cudnnTensorDescriptor_t, dy: *const c_void, conv: cudnnConvolutionDescriptor_t,
        algorithm: cudnnConvolutionBwdFilterAlgo_t, room: *mut c_void, bytes: usize, beta: *const c_void,
        ddw: cudnnFilterDescriptor_t, dw: *mut c_void,
    ) [] |gpu| {
        let call = Call { algorithm: algorithm as c_int, room: (room as u64, bytes), factors: unsafe { [number(alpha), number(beta)] } };
        let descriptors = [dx as usize, ddw as usize, ddy as usize];
        gpu.convolve(handle, ConvolutionPass::Filter, conv, descriptors, [x as u64, dw as u64, dy as u64], call)
    }
}
