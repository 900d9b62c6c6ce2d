//! What the tests of a queue share: the devices that they run on, and their numbers.

#![allow(dead_code)]

use std::sync::OnceLock;

use lgm_core::{ConvolutionPass, DeviceConvolution, DevicePtr, DeviceQueue, Element, Format, Shape, Window, rounded};
use lgm_cuda::sim::{Order, Sim};
use lgm_cuda::{Allocator, Cuda, Precision};

pub trait Machine: DeviceQueue + Allocator {}

impl<T: DeviceQueue + Allocator> Machine for T {}

pub fn open(precision: Precision) -> Option<Cuda> {
    let id = std::env::var("LGM_TEST_GPU").ok().map_or(0, |id| id.parse().unwrap());
    match lgm_cuda::devices() {
        Ok(gpus) if precision == Precision::Bf16 && gpus.iter().any(|gpu| gpu.id == id && gpu.capability.0 < 8) => {
            println!("skipped: the GPU has no bf16");
            None
        }
        Ok(_) => Some(Cuda::open(id, precision).unwrap()),
        Err(error) => lgm_testkit::skip("gpu", error.summary()),
    }
}

/// The GPU in single precision.
pub fn gpu() -> Option<&'static Cuda> {
    static GPU: OnceLock<Option<Cuda>> = OnceLock::new();
    GPU.get_or_init(|| open(Precision::Fp32)).as_ref()
}

pub fn everywhere(body: impl Fn(&dyn Machine)) {
    body(&Sim::new(Order::Forward).unwrap());
    match gpu() {
        Some(gpu) => body(gpu),
        None => println!("skipped: no GPU; the simulated device alone"),
    }
}

pub fn bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_ne_bytes()).collect()
}

pub fn put(machine: &dyn Machine, values: &[f32]) -> DevicePtr {
    let at = machine.alloc(4 * values.len()).unwrap();
    machine.upload(&bytes(values), at).unwrap();
    at
}

pub fn get(machine: &dyn Machine, at: DevicePtr, len: usize) -> Vec<f32> {
    let mut raw = vec![0; 4 * len];
    machine.download(at, &mut raw).unwrap();
    raw.chunks_exact(4).map(|c| f32::from_ne_bytes(c.try_into().unwrap())).collect()
}

/// Numbers in -1 to 1 that differ from place to place.
pub fn draw(len: usize, seed: u32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(12345);
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..len).map(|_| next()).collect()
}

pub fn assert_near(got: &[f32], want: &[f64], tolerance: f64, what: &str) {
    let scale = want.iter().fold(1e-2, |m: f64, v| m.max(v.abs()));
    let worst = got.iter().zip(want).map(|(g, w)| (f64::from(*g) - w).abs()).fold(0.0, f64::max);
    assert!(got.iter().all(|v| v.is_finite()) && worst <= tolerance * scale, "{what}: off by {worst:e} of {scale:e}");
    assert_eq!(got.len(), want.len());
}

pub fn put_stored(machine: &dyn Machine, format: Format, shape: &Shape, values: &[f32]) -> DevicePtr {
    let at = machine.alloc(format.bytes(shape)).unwrap();
    machine.upload(&format.encode(shape, values), at).unwrap();
    at
}

pub fn get_stored(machine: &dyn Machine, format: Format, shape: &Shape, at: DevicePtr) -> Vec<f32> {
    let mut raw = vec![0; format.bytes(shape)];
    machine.download(at, &mut raw).unwrap();
    format.decode(shape, &raw)
}

/// Numbers that bf16 can hold.
pub fn draw_narrow(len: usize, seed: u32) -> Vec<f32> {
    draw(len, seed).into_iter().map(|v| rounded(v, Element::Bf16)).collect()
}

#[allow(clippy::too_many_arguments)]
pub fn square(
    batch: usize,
    channels: usize,
    outputs: usize,
    size: usize,
    kernel: usize,
    stride: usize,
    pad: usize,
    dilation: usize,
    groups: usize,
) -> DeviceConvolution {
    DeviceConvolution {
        batch,
        channels,
        outputs,
        windows: [Window::new(size, kernel, stride, pad, dilation).unwrap(); 2],
        groups,
        format: Format::PLAIN,
    }
}

pub fn geometries() -> Vec<DeviceConvolution> {
    let odd = DeviceConvolution {
        windows: [Window::new(9, 3, 2, 1, 2).unwrap(), Window::new(11, 2, 1, 0, 2).unwrap()],
        ..square(2, 6, 4, 9, 3, 1, 0, 1, 2)
    };
    vec![
        square(2, 3, 8, 12, 3, 1, 1, 1, 1),
        square(3, 1, 20, 28, 5, 1, 0, 1, 1),
        square(2, 16, 16, 8, 1, 1, 0, 1, 1),
        square(2, 8, 12, 15, 3, 2, 1, 1, 4),
        square(2, 8, 8, 10, 3, 1, 1, 1, 8),
        square(2, 32, 32, 14, 3, 2, 1, 1, 4),
        square(2, 32, 32, 14, 3, 1, 1, 1, 32),
        square(2, 16, 32, 9, 3, 2, 1, 1, 16),
        square(1, 4, 6, 17, 3, 1, 2, 2, 1),
        square(1, 3, 16, 23, 7, 4, 3, 1, 1),
        odd,
    ]
}

/// The simulated device with a library of convolutions, and the GPU of this machine.
pub fn by_library(precision: Precision, body: impl Fn(&dyn Machine)) {
    body(&Sim::new(Order::Forward).unwrap().in_precision(precision).with_library(&ConvolutionPass::ALL));
    if let Some(gpu) = open(precision) {
        body(&gpu);
    }
}
