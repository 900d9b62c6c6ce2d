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
use lgm_core::{ConvolutionPass, DeviceConvolution, Element, Format, Layout, Window};
use lgm_cuda::sim::{add_products, is_known, rounded_to_tf32};

use crate::blas::read;
use crate::enter::{Refusal, functions, give};
use crate::gpu::Gpu;

/// CUDNN_STATUS_NOT_INITIALIZED, _BAD_PARAM, _NOT_SUPPORTED
const NOT_INITIALIZED: Refusal = 1001;
const BAD_PARAM: Refusal = 2000;
const NOT_SUPPORTED: Refusal = 3000;

/// The algorithm that runs, the one that does not and the one that is not deterministic; they are in every pass's enumeration.
const RUNS: c_int = 1;
const REFUSES: c_int = 3;
const VARIES: c_int = 0;
/// Bytes of workspace that they want.
const WORKSPACE: usize = 4096;

/// What a handle holds.
#[derive(Clone, Copy, Default)]
pub struct Handle {
    stream: usize,
}

/// What a descriptor holds.
#[derive(Clone, Copy)]
pub enum Descriptor {
    /// Of a tensor or of filters: format and extents.
    Blob(Option<(Format, [c_int; 4])>),
    Convolution {
        pad: [c_int; 2],
        stride: [c_int; 2],
        dilation: [c_int; 2],
        math: cudnnMathType_t,
        groups: c_int,
    },
}

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

/// What cuDNN says of an algorithm: numbers in place of the enumerations of each pass, whose structures lie alike.
#[repr(C)]
struct Perf {
    algorithm: c_int,
    status: Refusal,
    time: f32,
    memory: usize,
    determinism: c_int,
    math: c_int,
    reserved: [c_int; 3],
}
const _: () = assert!(size_of::<Perf>() == size_of::<cudnnConvolutionFwdAlgoPerf_t>());

// SAFETY, of all blocks: the places are the caller's, who has them valid, as the header asks.
functions! { sys, Dnn, cudnnStatus_t;
    fn cudnnCreate(handle: *mut cudnnHandle_t) [not_recorded] |gpu| {
        let new = gpu.handle();
        gpu.networks.insert(new, Handle::default());
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

/// How a pass is to be run.
struct Call {
    algorithm: c_int,
    room: (u64, usize),
    /// α and β.
    factors: [f32; 2],
}

/// # Safety
/// The place is valid.
unsafe fn number(at: *const c_void) -> f32 {
    // SAFETY: the caller's promise.
    unsafe { at.cast::<f32>().read() }
}

fn workspace(algorithm: c_int) -> usize {
    match algorithm {
        RUNS => WORKSPACE,
        REFUSES => 2048,
        _ => 512,
    }
}

impl Gpu {
    /// Gives as many algorithms as there is room for.
    fn propose(
        &mut self,
        conv: cudnnConvolutionDescriptor_t,
        room: c_int,
        count: *mut c_int,
        to: *mut Perf,
    ) -> Result<(), Refusal> {
        let Descriptor::Convolution { math, .. } = self.descriptor(conv as usize)? else { return Err(BAD_PARAM) };
        let algorithms = [(VARIES, 0, false), (REFUSES, 0, true), (RUNS, 0, true), (2, NOT_SUPPORTED, true)];
        let given = algorithms.len().min(usize::try_from(room).map_err(|_| BAD_PARAM)?);
        for (i, (algorithm, status, same)) in algorithms.into_iter().take(given).enumerate() {
            let memory = workspace(algorithm);
            let (determinism, math) = (c_int::from(same), math as c_int);
            let perf = Perf { algorithm, status, time: -1.0, memory, determinism, math, reserved: [0; 3] };
            // SAFETY: the caller has so many places.
            unsafe { give(to.add(i), perf) }.map_err(|_| BAD_PARAM)?;
        }
        // SAFETY: the place is the caller's.
        unsafe { give(count, given as c_int) }.map_err(|_| BAD_PARAM)
    }

    fn describe(&mut self, descriptor: Descriptor) -> usize {
        let new = self.handle();
        self.descriptors.insert(new, descriptor);
        new
    }

    fn forget(&mut self, descriptor: usize) -> Result<(), Refusal> {
        self.descriptors.remove(&descriptor).map(drop).ok_or(BAD_PARAM)
    }

    fn descriptor(&self, descriptor: usize) -> Result<Descriptor, Refusal> {
        self.descriptors.get(&descriptor).copied().ok_or(BAD_PARAM)
    }

    fn blob(&self, descriptor: usize) -> Result<(Format, [c_int; 4]), Refusal> {
        match self.descriptor(descriptor)? {
            Descriptor::Blob(Some(blob)) => Ok(blob),
            _ => Err(BAD_PARAM),
        }
    }

    fn describe_blob(
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

    /// Puts a pass on the handle's stream; descriptors and addresses are those of input, filters and output.
    fn convolve(
        &mut self,
        handle: cudnnHandle_t,
        pass: ConvolutionPass,
        conv: cudnnConvolutionDescriptor_t,
        descriptors: [usize; 3],
        addresses: [u64; 3],
        Call { algorithm, room, factors: [alpha, beta] }: Call,
    ) -> Result<(), Refusal> {
        let stream = self.networks.get(&(handle as usize)).ok_or(NOT_INITIALIZED)?.stream;
        let Descriptor::Convolution { pad, stride, dilation, math, groups } = self.descriptor(conv as usize)? else {
            return Err(BAD_PARAM);
        };
        let [(format, x), (of_w, w), (of_y, y)] =
            [self.blob(descriptors[0])?, self.blob(descriptors[1])?, self.blob(descriptors[2])?];
        if of_w != format || of_y != format {
            return Err(NOT_SUPPORTED);
        }
        if algorithm != RUNS {
            self.counted().refusals += 1;
            return Err(NOT_SUPPORTED);
        }
        let size = |value: c_int| value.max(0) as usize;
        let conv = DeviceConvolution {
            batch: size(x[0]),
            channels: size(x[1]),
            outputs: size(y[1]),
            windows: [0, 1].map(|axis| Window {
                input: size(x[2 + axis]),
                output: size(y[2 + axis]),
                kernel: size(w[2 + axis]),
                stride: size(stride[axis]),
                pad: pad[axis] as isize,
                dilation: size(dilation[axis]),
            }),
            groups: size(groups),
            format,
        };
        if !is_known(&conv) || y[0] != x[0] || w[0] != y[1] || w[1] * groups != x[1] || room.1 < WORKSPACE {
            return Err(BAD_PARAM);
        }
        if addresses.iter().chain([&room.0]).any(|at| at % 16 != 0) {
            self.violation(&format!(
                "{pass:?} of {conv:?} at addresses that are no multiples of 16: {addresses:?}, {room:?}"
            ));
        }
        self.counted().convolutions += 1;
        let dry = self.settings.dry;
        let short = format.element == Element::F32 && math != cudnnMathType_t::CUDNN_FMA_MATH;
        self.put(stream, "convolution", move |gpu| {
            let blobs = conv.shapes();
            for (at, shape) in addresses.iter().zip(&blobs) {
                if !gpu.must_be_memory(*at, format.bytes(shape), &format!("{pass:?} of a convolution")) {
                    return;
                }
            }
            if !gpu.must_be_memory(room.0, room.1, "a convolution's workspace") || dry {
                return;
            }
            let values = |i: usize| {
                // SAFETY: checked above.
                let values = unsafe { read(addresses[i], blobs[i].count(), format, &blobs[i]) };
                if short { values.into_iter().map(rounded_to_tf32).collect() } else { values }
            };
            let (operands, result) = match pass {
                ConvolutionPass::Forward => ([0, 1], 2),
                ConvolutionPass::Data => ([2, 1], 0),
                ConvolutionPass::Filter => ([0, 2], 1),
            };
            let [a, b] = operands.map(values);
            let mut sums = vec![0.0; blobs[result].count()];
            add_products(&conv, pass, [&a, &b], &mut sums);
            // SAFETY: checked above.
            let held = unsafe { read(addresses[result], sums.len(), format, &blobs[result]) };
            let scaled = |(sum, held): (&f64, &f32)| alpha * *sum as f32 + if beta == 0.0 { 0.0 } else { beta * held };
            let bytes = format.encode(&blobs[result], &sums.iter().zip(&held).map(scaled).collect::<Vec<f32>>());
            // SAFETY: checked above.
            unsafe {
                (room.0 as *mut u8).write_bytes(0xff, room.1.min(WORKSPACE));
                std::ptr::copy_nonoverlapping(bytes.as_ptr(), addresses[result] as *mut u8, bytes.len());
            }
        })
    }
}
