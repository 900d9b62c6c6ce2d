//! The fake GPU finds what it is for finding, and defers what a stream defers.

#![allow(clippy::unwrap_used)]

use std::ffi::{c_int, c_void};
use std::sync::{Mutex, MutexGuard, PoisonError};

use cudarc::driver::sys::{CUevent, CUgraph, CUgraphExec, CUmodule, CUstream, CUstreamCaptureMode};

use crate::control::fake_gpu_arm;
use crate::driver::*;
use crate::process::lock;

const NON_BLOCKING: u32 = 1;
const THREAD_LOCAL: CUstreamCaptureMode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;

/// A context and a stream, for one test at a time; what the test did wrong is forgotten when it ends.
struct Open {
    stream: CUstream,
    _alone: MutexGuard<'static, ()>,
}

impl Open {
    fn new() -> Open {
        static TURN: Mutex<()> = Mutex::new(());
        let alone = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        fake_gpu_arm(0, 0, 0, 0);
        let (mut context, mut stream) = (std::ptr::null_mut(), std::ptr::null_mut());
        // SAFETY, here and below: the places are this test's own.
        unsafe {
            assert_eq!(cuDevicePrimaryCtxRetain(&mut context, 0), 0);
            assert_eq!(cuCtxSetCurrent(context), 0);
            assert_eq!(cuStreamCreate(&mut stream, NON_BLOCKING), 0);
        }
        Open { stream, _alone: alone }
    }

    fn memory(&self, bytes: usize) -> u64 {
        let mut at = 0;
        assert_eq!(unsafe { cuMemAlloc_v2(&mut at, bytes) }, 0);
        at
    }

    fn pinned(&self, bytes: usize) -> *mut u8 {
        let mut at: *mut c_void = std::ptr::null_mut();
        assert_eq!(unsafe { cuMemHostAlloc(&mut at, bytes, 0) }, 0);
        at.cast()
    }

    fn finish(&self) -> c_int {
        unsafe { cuStreamSynchronize(self.stream) }
    }

    /// What was found since it was last asked.
    fn violations(&self) -> u64 {
        std::mem::take(&mut lock().counted().violations)
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        unsafe {
            cuStreamDestroy_v2(self.stream);
            cuDevicePrimaryCtxRelease_v2(0);
        }
        fake_gpu_arm(0, 0, 0, 0);
    }
}

#[test]
fn work_runs_when_something_waits_for_it() {
    let open = Open::new();
    let (device, from, to) = (open.memory(4), open.pinned(4), open.pinned(4));
    unsafe {
        from.cast::<u32>().write(1);
        to.cast::<u32>().write(0);
        assert_eq!(cuMemcpyHtoDAsync_v2(device, from.cast(), 4, open.stream), 0);
        assert_eq!(cuMemcpyDtoHAsync_v2(to.cast(), device, 4, open.stream), 0);
        // Whoever does not wait finds what was there, and has the device read what comes after.
        assert_eq!(to.cast::<u32>().read(), 0);
        from.cast::<u32>().write(2);
        assert_eq!(open.finish(), 0);
        assert_eq!(to.cast::<u32>().read(), 2);
        for host in [from, to] {
            assert_eq!(cuMemFreeHost(host.cast()), 0);
        }
        assert_eq!(cuMemFree_v2(device), 0);
    }
    assert_eq!(open.violations(), 0);
}

#[test]
fn an_event_has_another_stream_wait_and_no_more_than_it_marks() {
    let open = Open::new();
    let (device, host) = (open.memory(4), open.pinned(4));
    let (mut other, mut event): (CUstream, CUevent) = (std::ptr::null_mut(), std::ptr::null_mut());
    unsafe {
        assert_eq!(cuStreamCreate(&mut other, NON_BLOCKING), 0);
        assert_eq!(cuEventCreate(&mut event, 2), 0);
        assert_eq!(cuMemsetD32Async(device, 7, 1, other), 0);
        assert_eq!(cuEventRecord(event, other), 0);
        assert_eq!(cuMemsetD32Async(device, 8, 1, other), 0);
        assert_eq!(cuStreamWaitEvent(open.stream, event, 0), 0);
        assert_eq!(cuMemcpyDtoHAsync_v2(host.cast(), device, 4, open.stream), 0);
        assert_eq!(open.finish(), 0);
        assert_eq!(host.cast::<u32>().read(), 7);
        assert_eq!(cuEventDestroy_v2(event), 0);
        assert_eq!(cuStreamDestroy_v2(other), 0);
        assert_eq!(cuMemFreeHost(host.cast()), 0);
        assert_eq!(cuMemFree_v2(device), 0);
    }
    assert_eq!(open.violations(), 0);
}

#[test]
fn a_graph_runs_when_it_is_put_on_a_stream_and_as_often() {
    let open = Open::new();
    let (from, to) = (open.memory(4), open.memory(4));
    let (mut graph, mut ready): (CUgraph, CUgraphExec) = (std::ptr::null_mut(), std::ptr::null_mut());
    let mut nodes = 0;
    let host = open.pinned(4);
    unsafe {
        assert_eq!(cuMemsetD32Async(to, 1, 1, open.stream), 0);
        assert_eq!(cuStreamBeginCapture_v2(open.stream, THREAD_LOCAL), 0);
        assert_eq!(cuMemcpyDtoDAsync_v2(to, from, 4, open.stream), 0);
        assert_eq!(cuStreamEndCapture(open.stream, &mut graph), 0);
        assert_eq!(cuGraphGetNodes(graph, std::ptr::null_mut(), &mut nodes), 0);
        assert_eq!(nodes, 1);
        assert_eq!(cuGraphInstantiateWithFlags(&mut ready, graph, 0), 0);
        assert_eq!(cuGraphDestroy(graph), 0);
        for value in [3, 4] {
            assert_eq!(cuMemsetD32Async(from, value, 1, open.stream), 0);
            assert_eq!(cuGraphLaunch(ready, open.stream), 0);
            assert_eq!(cuMemcpyDtoHAsync_v2(host.cast(), to, 4, open.stream), 0);
            assert_eq!(open.finish(), 0);
            assert_eq!(host.cast::<u32>().read(), value);
        }
        assert_eq!(cuGraphExecDestroy(ready), 0);
        assert_eq!(cuMemFreeHost(host.cast()), 0);
        [from, to].into_iter().for_each(|at| assert_eq!(cuMemFree_v2(at), 0));
    }
    assert_eq!(open.violations(), 0);
}

#[test]
fn what_may_not_be_done_while_a_stream_is_recorded_spoils_the_recording() {
    let open = Open::new();
    let (mut graph, mut at, mut event) = (std::ptr::null_mut(), 0, std::ptr::null_mut());
    unsafe {
        assert_eq!(cuEventCreate(&mut event, 0), 0);
        let mut forbidden: [(&str, &mut dyn FnMut() -> c_int); 6] = [
            ("cuMemAlloc", &mut || cuMemAlloc_v2(&mut at, 4)),
            ("cuStreamSynchronize", &mut || cuStreamSynchronize(open.stream)),
            ("cuEventSynchronize", &mut || cuEventSynchronize(event)),
            ("cuEventRecord", &mut || cuEventRecord(event, open.stream)),
            ("cuStreamWaitEvent", &mut || cuStreamWaitEvent(open.stream, event, 0)),
            ("cuMemFree", &mut || cuMemFree_v2(8)),
        ];
        for (name, call) in &mut forbidden {
            assert_eq!(cuStreamBeginCapture_v2(open.stream, THREAD_LOCAL), 0);
            assert!([900, 901].contains(&call()), "{name}");
            assert_eq!(cuStreamEndCapture(open.stream, &mut graph), 901, "{name}");
            assert!(graph.is_null());
            assert_eq!(open.violations(), 1, "{name}");
        }
        assert_eq!(cuEventDestroy_v2(event), 0);
    }
}

#[test]
fn mistakes_are_found() {
    let open = Open::new();
    let device = open.memory(64);
    let host = open.pinned(64);
    let mut heap = vec![0u8; 64];
    let mut other = std::ptr::null_mut();
    unsafe {
        assert_ne!(cuMemcpyHtoDAsync_v2(device, heap.as_ptr().cast(), 64, open.stream), 0);
        assert_eq!(open.violations(), 1, "memory that is not pinned");
        assert_ne!(cuMemcpyDtoHAsync_v2(heap.as_mut_ptr().cast(), device, 64, open.stream), 0);
        assert_ne!(cuMemcpyDtoHAsync_v2(host.cast(), device, 64, std::ptr::null_mut()), 0);
        assert_eq!(open.violations(), 2, "the same, and the legacy stream");
        assert_eq!(cuStreamCreate(&mut other, 0), 0);
        assert_eq!(open.violations(), 1, "a stream that waits for others");
        assert_eq!(cuStreamDestroy_v2(other), 0);
        assert_ne!(cuMemsetD32Async(device + 2, 0, 1, open.stream), 0);
        assert_eq!(open.violations(), 1, "an address that is no multiple of 4");
        assert_ne!(cuMemFree_v2(device + 4), 0);
        assert_eq!(open.violations(), 1, "no block's first byte");
        std::thread::spawn(|| assert_eq!(cuMemAlloc_v2(&mut 0, 4), 201)).join().unwrap();
        assert_eq!(open.violations(), 1, "no current context");
        // Blocks that are left are told when the context goes.
        let alone = open;
        cuStreamDestroy_v2(alone.stream);
        cuDevicePrimaryCtxRelease_v2(0);
        assert_eq!(alone.violations(), 1, "blocks that are left");
        let _ = cuMemFreeHost(host.cast());
    }
}

#[test]
fn work_outside_memory_loses_the_device() {
    let open = Open::new();
    let device = open.memory(64);
    unsafe {
        assert_eq!(cuMemsetD8Async(device, 0, 65, open.stream), 0);
        assert_eq!(open.finish(), 700);
        assert_eq!(cuMemAlloc_v2(&mut 0, 4), 700);
    }
}

#[test]
fn a_launch_finds_its_kernel_and_refuses_what_no_device_takes() {
    let open = Open::new();
    let mut image = vec![0u8; 64];
    image[..5].copy_from_slice(b"\x7fELF\x02");
    image[40..48].copy_from_slice(&64u64.to_le_bytes());
    (image[58], image[60]) = (32, 1);
    image.extend_from_slice(b"relu_forward and no more\0\0\0\0\0\0\0\0");
    let mut module: CUmodule = std::ptr::null_mut();
    let mut kernel = std::ptr::null_mut();
    let (device, none) = (open.memory(4 * 64), std::ptr::null_mut());
    let (mut to, mut slope, mut count) = (device, 0.5f32, 64i64);
    let mut from = device;
    let mut arguments: [*mut c_void; 4] =
        [(&raw mut to).cast(), (&raw mut from).cast(), (&raw mut slope).cast(), (&raw mut count).cast()];
    if lock().kernels.is_err() {
        return lgm_testkit::skipped("simulator", "no C++ compiler");
    }
    unsafe {
        assert_eq!(cuModuleLoadData(&mut module, b"MZ".repeat(32).as_ptr().cast()), 200);
        assert_eq!(cuModuleLoadData(&mut module, image.as_ptr().cast()), 0);
        assert_eq!(cuModuleGetFunction(&mut kernel, module, c"tanh_forward".as_ptr()), 500);
        assert_eq!(cuModuleGetFunction(&mut kernel, module, c"relu_forward".as_ptr()), 0);
        assert_eq!(cuMemsetD32Async(device, (-1.0f32).to_bits(), 64, open.stream), 0);
        let all = arguments.as_mut_ptr();
        assert_eq!(cuLaunchKernel(kernel, 1, 1, 1, 64, 1, 1, 0, open.stream, all, none), 0);
        let host = open.pinned(4);
        assert_eq!(cuMemcpyDtoHAsync_v2(host.cast(), device + 4 * 63, 4, open.stream), 0);
        assert_eq!(open.finish(), 0);
        assert_eq!(host.cast::<f32>().read(), -0.5);
        assert_eq!(open.violations(), 0);
        for grid in [[0, 1, 1, 64], [1, 65536, 1, 64], [1, 1, 1, 1025]] {
            let [x, y, z, threads] = grid;
            assert_ne!(cuLaunchKernel(kernel, x, y, z, threads, 1, 1, 0, open.stream, all, none), 0);
        }
        assert_eq!(open.violations(), 3);
        // What it writes beside its block is found.
        (&raw mut to).write(device + 4);
        assert_eq!(cuLaunchKernel(kernel, 1, 1, 1, 64, 1, 1, 0, open.stream, all, none), 0);
        open.finish();
        assert_eq!(open.violations(), 1);
    }
}

#[test]
fn what_is_told_to_fail_fails_once() {
    let open = Open::new();
    let at = &mut 0;
    unsafe {
        fake_gpu_arm(2, 0, 0, 0);
        assert_eq!([cuMemAlloc_v2(at, 4), cuMemAlloc_v2(at, 4), cuMemAlloc_v2(at, 4)], [0, 1, 0]);
        fake_gpu_arm(1, 46, 0, 0);
        assert_eq!([cuMemAlloc_v2(at, 4), cuMemAlloc_v2(at, 4)], [46, 0]);
        fake_gpu_arm(0, 0, 0, 2);
        assert_eq!([cuMemAlloc_v2(at, 4), cuMemAlloc_v2(at, 4), cuMemAlloc_v2(at, 4)], [0, 2, 0]);
        fake_gpu_arm(0, 0, 2, 0);
        assert_eq!([cuMemAlloc_v2(at, 4), cuMemAlloc_v2(at, 4), open.finish()], [0, 719, 719]);
    }
}
