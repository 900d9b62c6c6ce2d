//! Algorithms, and the passes that they run.

use std::ffi::{c_int, c_void};

use cudarc::cudnn::sys::{cudnnConvolutionDescriptor_t, cudnnConvolutionFwdAlgoPerf_t, cudnnHandle_t, cudnnMathType_t};
use lgm_core::{ConvolutionPass, DeviceConvolution, Element, Window};
use lgm_cuda::sim::{add_products, is_known, rounded_to_tf32};

use super::status::{BAD_PARAM, NOT_INITIALIZED, NOT_SUPPORTED};
use crate::gpu::Gpu;
use crate::memory::read;
use crate::objects::Descriptor;
use crate::status::{Refusal, give};

/// The algorithm that runs, the one that does not and the one that is not deterministic; they are in every pass's enumeration.
const RUNS: c_int = 1;
const REFUSES: c_int = 3;
const VARIES: c_int = 0;
/// Bytes of workspace that they want.
const WORKSPACE: usize = 4096;

/// What cuDNN says of an algorithm: numbers in place of the enumerations of each pass, whose structures lie alike.
#[repr(C)]
pub struct Perf {
    algorithm: c_int,
    status: Refusal,
    time: f32,
    memory: usize,
    determinism: c_int,
    math: c_int,
    reserved: [c_int; 3],
}
const _: () = assert!(size_of::<Perf>() == size_of::<cudnnConvolutionFwdAlgoPerf_t>());

/// How a pass is to be run.
pub struct Call {
    pub algorithm: c_int,
    pub room: (u64, usize),
    /// α and β.
    pub factors: [f32; 2],
}

/// # Safety
/// The place is valid.
pub unsafe fn number(at: *const c_void) -> f32 {
    // SAFETY: the caller's promise.
    unsafe { at.cast::<f32>().read() }
}

pub fn workspace(algorithm: c_int) -> usize {
    match algorithm {
        RUNS => WORKSPACE,
        REFUSES => 2048,
        _ => 512,
    }
}

impl Gpu {
    /// Gives as many algorithms as there is room for.
    pub fn propose(
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

    /// Puts a pass on the handle's stream; descriptors and addresses are those of input, filters and output.
    pub fn convolve(
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
                pad_end: pad[axis] as isize,
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
