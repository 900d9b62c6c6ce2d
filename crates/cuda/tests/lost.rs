//! A device that a kernel's bad address has lost; a process of its own, since the device is lost to all of it.

#![allow(clippy::unwrap_used, clippy::panic)]

use lgm_core::{DevicePtr, DeviceQueue, Grid, args};
use lgm_cuda::{Allocator, Cuda, Precision};

#[test]
fn a_lost_device_says_so_from_then_on() {
    let id = std::env::var("LGM_TEST_GPU").ok().map_or(0, |id| id.parse().unwrap());
    let gpu = match lgm_cuda::devices() {
        Ok(_) => Cuda::open(id, Precision::Fp32).unwrap(),
        Err(error) => return lgm_testkit::skipped("gpu", error.summary()),
    };
    assert_eq!(gpu.lost(), None);
    gpu.launch("relu_forward", Grid::elements(32), args![DevicePtr(64), DevicePtr(64), 0f32, 32i64]).unwrap();
    let text = gpu.finish().unwrap_err().to_string();
    assert!(text.contains("is lost") && text.contains("the last good snapshot stands"), "{text}");
    assert_eq!(gpu.lost(), Some(text.as_str()));
    assert_eq!(gpu.alloc(4).unwrap_err().to_string(), text);
}
