//! libcuda.so.1

use std::ffi::{CStr, c_char, c_int, c_void};

use cudarc::driver::sys::{
    self, CUcontext, CUdevice, CUdevice_attribute, CUdeviceptr, CUevent, CUevent_flags, CUfunction, CUgraph,
    CUgraphExec, CUgraphNode, CUmodule, CUstream, CUstream_flags, CUstreamCaptureMode,
};
use lgm_core::Grid;

use crate::enter::{CURRENT, functions};
use crate::gpu::Gpu;
use crate::objects::{Event, Stream};
use crate::status::{INVALID_HANDLE, INVALID_VALUE, NOT_FOUND, Refusal, give};

/// The context's handle.
const CONTEXT: usize = 0xc0de0;
/// CUDA_ERROR_INVALID_IMAGE, CUDA_ERROR_NOT_READY, CUDA_ERROR_INVALID_DEVICE, CUDA_ERROR_INVALID_CONTEXT
const INVALID_IMAGE: Refusal = 200;
const NOT_READY: Refusal = 600;
const INVALID_DEVICE: Refusal = 101;
const INVALID_CONTEXT: Refusal = 201;

/// The device's name.
const NAME: &str = "Fake H100";

/// # Safety
/// The place is valid.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDriverGetVersion(version: *mut c_int) -> c_int {
    // SAFETY: the caller's promise.
    unsafe { give(version, 13000) }.map_or_else(|status| status, |()| 0)
}

/// # Safety
/// The place is valid.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuGetErrorName(status: c_int, text: *mut *const c_char) -> c_int {
    let name: &CStr = match status {
        0 => c"CUDA_SUCCESS",
        1 => c"CUDA_ERROR_INVALID_VALUE",
        2 => c"CUDA_ERROR_OUT_OF_MEMORY",
        101 => c"CUDA_ERROR_INVALID_DEVICE",
        200 => c"CUDA_ERROR_INVALID_IMAGE",
        201 => c"CUDA_ERROR_INVALID_CONTEXT",
        400 => c"CUDA_ERROR_INVALID_HANDLE",
        401 => c"CUDA_ERROR_ILLEGAL_STATE",
        500 => c"CUDA_ERROR_NOT_FOUND",
        600 => c"CUDA_ERROR_NOT_READY",
        700 => c"CUDA_ERROR_ILLEGAL_ADDRESS",
        719 => c"CUDA_ERROR_LAUNCH_FAILED",
        900 => c"CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED",
        901 => c"CUDA_ERROR_STREAM_CAPTURE_INVALIDATED",
        999 => c"CUDA_ERROR_UNKNOWN",
        _ => return INVALID_VALUE,
    };
    // SAFETY: the caller's promise.
    unsafe { give(text, name.as_ptr()) }.map_or_else(|status| status, |()| 0)
}

/// # Safety
/// The place is valid.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuGetErrorString(_status: c_int, text: *mut *const c_char) -> c_int {
    // SAFETY: the caller's promise.
    unsafe { give(text, c"as the fake GPU has it".as_ptr()) }.map_or_else(|status| status, |()| 0)
}

/// NVRTC asks for tables that nobody documents, and does without.
///
/// # Safety
/// The place is valid.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuGetExportTable(table: *mut *const c_void, _of: *const c_void) -> c_int {
    // SAFETY: the caller's promise.
    let _ = unsafe { give(table, std::ptr::null()) };
    NOT_FOUND
}

/// A function by its name, for NVRTC.
///
/// # Safety
/// The name ends in zero, the places are valid or null.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuGetProcAddress_v2(
    name: *const c_char,
    function: *mut *mut c_void,
    _version: c_int,
    _flags: u64,
    found: *mut c_int,
) -> c_int {
    // SAFETY: this library, which is loaded already.
    let library = unsafe { libloading::Library::new("libcuda.so.1") };
    // SAFETY: the caller's promise.
    let name = unsafe { CStr::from_ptr(name) };
    let newer = [name.to_bytes(), b"_v2\0"].concat();
    let address = library.ok().and_then(|library| {
        // SAFETY: only the address is taken.
        let get = |name: &[u8]| unsafe { library.get::<*mut c_void>(name) }.ok().map(|at| *at);
        get(&newer).or_else(|| get(name.to_bytes_with_nul()))
    });
    // SAFETY: the caller's promise.
    unsafe {
        let _ = give(function, address.unwrap_or(std::ptr::null_mut()));
        let _ = give(found, c_int::from(address.is_none()));
    }
    if address.is_some() { 0 } else { NOT_FOUND }
}

/// What is asked for of an H100.
fn attribute(which: CUdevice_attribute) -> c_int {
    use CUdevice_attribute as A;
    match which {
        A::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR => 9,
        A::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT => 132,
        A::CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_BLOCK
        | A::CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_X
        | A::CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_Y => 1024,
        A::CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_Z => 64,
        A::CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_X | A::CU_DEVICE_ATTRIBUTE_MAX_PITCH => c_int::MAX,
        A::CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_Y | A::CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_Z => 65535,
        A::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK => 48 << 10,
        A::CU_DEVICE_ATTRIBUTE_TOTAL_CONSTANT_MEMORY | A::CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_BLOCK => 64 << 10,
        A::CU_DEVICE_ATTRIBUTE_WARP_SIZE => 32,
        A::CU_DEVICE_ATTRIBUTE_CLOCK_RATE => 1_980_000,
        A::CU_DEVICE_ATTRIBUTE_TEXTURE_ALIGNMENT => 512,
        A::CU_DEVICE_ATTRIBUTE_GPU_OVERLAP => 1,
        _ => 0,
    }
}

fn only_device(device: c_int) -> Result<(), Refusal> {
    if device == 0 { Ok(()) } else { Err(INVALID_DEVICE) }
}

// SAFETY, of all blocks: the places are the caller's, who has them valid, as the header asks.
functions! { sys, Driver, CUresult;
    fn cuInit(_flags: u32) [anywhere] |_gpu| { Ok(()) }
    fn cuDeviceGetCount(count: *mut c_int) [anywhere] |_gpu| { unsafe { give(count, 1) } }
    fn cuDeviceGet(device: *mut CUdevice, ordinal: c_int) [anywhere] |_gpu| {
        only_device(ordinal)?;
        unsafe { give(device, 0) }
    }
    fn cuDeviceGetName(to: *mut c_char, room: c_int, device: CUdevice) [anywhere] |_gpu| {
        only_device(device)?;
        let length = NAME.len().min(room.max(1) as usize - 1);
        unsafe {
            std::ptr::copy_nonoverlapping(NAME.as_ptr().cast(), to, length);
            give(to.add(length), 0)
        }
    }
    fn cuDeviceTotalMem_v2(bytes: *mut usize, device: CUdevice) [anywhere] |gpu| {
        only_device(device)?;
        unsafe { give(bytes, gpu.room().1 as usize) }
    }
    fn cuDeviceGetAttribute(value: *mut c_int, which: CUdevice_attribute, device: CUdevice) [anywhere] |_gpu| {
        only_device(device)?;
        unsafe { give(value, attribute(which)) }
    }
    fn cuDevicePrimaryCtxRetain(context: *mut CUcontext, device: CUdevice) [anywhere] |gpu| {
        only_device(device)?;
        gpu.held += 1;
        gpu.counted().contexts += 1;
        unsafe { give(context, CONTEXT as CUcontext) }
    }
    fn cuDevicePrimaryCtxRelease_v2(device: CUdevice) [anywhere releases] |gpu| {
        only_device(device)?;
        gpu.held = gpu.held.checked_sub(1).ok_or(INVALID_CONTEXT)?;
        if gpu.held == 0 {
            gpu.close();
        }
        Ok(())
    }
    fn cuCtxSetCurrent(context: CUcontext) [anywhere releases] |gpu| {
        let known = context as usize == CONTEXT && gpu.held > 0;
        CURRENT.set(known);
        if known || context.is_null() { Ok(()) } else { Err(INVALID_CONTEXT) }
    }
    fn cuMemGetInfo_v2(free: *mut usize, all: *mut usize) [] |gpu| {
        let room = gpu.room();
        unsafe { give(free, room.0 as usize).and_then(|()| give(all, room.1 as usize)) }
    }
    fn cuMemAlloc_v2(at: *mut CUdeviceptr, bytes: usize) [not_recorded] |gpu| {
        let block = gpu.alloc(bytes)?;
        unsafe { give(at, block) }
    }
    fn cuMemFree_v2(at: CUdeviceptr) [not_recorded releases] |gpu| { gpu.free(at) }
    fn cuMemHostAlloc(at: *mut *mut c_void, bytes: usize, _flags: u32) [not_recorded] |gpu| {
        let block = gpu.alloc_pinned(bytes)?;
        unsafe { give(at, block as *mut c_void) }
    }
    fn cuMemFreeHost(at: *mut c_void) [not_recorded releases] |gpu| { gpu.free_pinned(at as usize) }

    fn cuStreamCreate(stream: *mut CUstream, flags: u32) [] |gpu| {
        if flags != CUstream_flags::CU_STREAM_NON_BLOCKING as u32 {
            gpu.violation("cuStreamCreate of a stream that waits for the legacy stream");
        }
        let handle = gpu.handle();
        gpu.streams.insert(handle, Stream::default());
        unsafe { give(stream, handle as CUstream) }
    }
    fn cuStreamDestroy_v2(stream: CUstream) [not_recorded releases] |gpu| {
        gpu.run(stream as usize, u64::MAX);
        gpu.streams.remove(&(stream as usize)).map(drop).ok_or(INVALID_HANDLE)
    }
    fn cuStreamSynchronize(stream: CUstream) [] |gpu| { gpu.wait_for_stream(stream as usize) }
    fn cuStreamWaitEvent(stream: CUstream, event: CUevent, _flags: u32) [] |gpu| {
        gpu.wait_on_stream(stream as usize, event as usize)
    }
    fn cuStreamBeginCapture_v2(stream: CUstream, mode: CUstreamCaptureMode) [] |gpu| {
        if mode != CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL {
            gpu.violation("cuStreamBeginCapture in a mode that other threads may not disturb, or that forbids nothing");
        }
        gpu.begin_recording(stream as usize)
    }
    fn cuStreamEndCapture(stream: CUstream, graph: *mut CUgraph) [ends] |gpu| {
        unsafe { give(graph, std::ptr::null_mut())? };
        let recorded = gpu.end_recording(stream as usize)?;
        unsafe { give(graph, recorded as CUgraph) }
    }
    fn cuEventCreate(event: *mut CUevent, flags: u32) [] |gpu| {
        let timed = flags & CUevent_flags::CU_EVENT_DISABLE_TIMING as u32 == 0;
        let handle = gpu.handle();
        gpu.events.insert(handle, Event { timed, at: None, reached: None });
        unsafe { give(event, handle as CUevent) }
    }
    fn cuEventDestroy_v2(event: CUevent) [releases] |gpu| {
        gpu.events.remove(&(event as usize)).map(drop).ok_or(INVALID_HANDLE)
    }
    fn cuEventRecord(event: CUevent, stream: CUstream) [] |gpu| { gpu.record_event(event as usize, stream as usize) }
    fn cuEventQuery(event: CUevent) [not_recorded] |gpu| {
        // What is asked for once is under way, and done when it is asked for again.
        if gpu.is_reached(event as usize, "cuEventQuery", true)? { Ok(()) } else { Err(NOT_READY) }
    }
    fn cuEventSynchronize(event: CUevent) [not_recorded] |gpu| {
        gpu.is_reached(event as usize, "cuEventSynchronize", true).map(drop)
    }
    fn cuEventElapsedTime like cuEventElapsedTime_v2 (time: *mut f32, from: CUevent, to: CUevent) [] |gpu| {
        let reached = |gpu: &mut Gpu, event: CUevent| -> Result<u64, Refusal> {
            let event = gpu.event(event as usize, "cuEventElapsedTime")?;
            if !event.timed || event.at.is_none() {
                return Err(INVALID_HANDLE);
            }
            event.reached.ok_or(NOT_READY)
        };
        let (from, to) = (reached(gpu, from)?, reached(gpu, to)?);
        // A hundredth of a millisecond for each piece of work, whatever the host took for it.
        unsafe { give(time, (to.saturating_sub(from) as f32 / 100.0).max(1e-4)) }
    }

    fn cuMemcpyHtoDAsync_v2(to: CUdeviceptr, from: *const c_void, bytes: usize, stream: CUstream) [] |gpu| {
        gpu.copy_from_host(to, from as usize, bytes, stream as usize)
    }
    fn cuMemcpyDtoHAsync_v2(to: *mut c_void, from: CUdeviceptr, bytes: usize, stream: CUstream) [] |gpu| {
        gpu.copy_to_host(to as usize, from, bytes, stream as usize)
    }
    fn cuMemcpyDtoDAsync_v2(to: CUdeviceptr, from: CUdeviceptr, bytes: usize, stream: CUstream) [] |gpu| {
        gpu.counted().copies += 1;
        let dry = gpu.settings.dry;
        gpu.put(stream as usize, "copy", move |gpu| {
            let known = gpu.must_be_memory(from, bytes, "the source of a copy");
            if known && gpu.must_be_memory(to, bytes, "the target of a copy") && !dry {
                // SAFETY: both are memory of the device.
                unsafe { std::ptr::copy(from as *const u8, to as *mut u8, bytes) };
            }
        })
    }
    fn cuMemsetD8Async(at: CUdeviceptr, value: u8, count: usize, stream: CUstream) [] |gpu| {
        gpu.fill(at, [value].into(), count, stream as usize)
    }
    fn cuMemsetD32Async(at: CUdeviceptr, value: u32, count: usize, stream: CUstream) [] |gpu| {
        if !at.is_multiple_of(4) {
            gpu.violation("cuMemsetD32 at an address that is no multiple of 4");
            return Err(INVALID_VALUE);
        }
        gpu.fill(at, value.to_ne_bytes().into(), count, stream as usize)
    }

    fn cuModuleLoadData(module: *mut CUmodule, image: *const c_void) [not_recorded] |gpu| {
        let code = unsafe { image_of(image.cast()) }.ok_or(INVALID_IMAGE)?;
        let handle = gpu.handle();
        gpu.modules.insert(handle, code);
        unsafe { give(module, handle as CUmodule) }
    }
    fn cuModuleUnload(module: CUmodule) [not_recorded releases] |gpu| {
        gpu.functions.retain(|_, (of, _)| *of != module as usize);
        gpu.modules.remove(&(module as usize)).map(drop).ok_or(INVALID_HANDLE)
    }
    fn cuModuleGetFunction(function: *mut CUfunction, module: CUmodule, name: *const c_char) [] |gpu| {
        let name = unsafe { CStr::from_ptr(name) }.to_string_lossy().into_owned();
        let code = gpu.modules.get(&(module as usize)).ok_or(INVALID_HANDLE)?;
        if !code.windows(name.len()).any(|text| text == name.as_bytes()) {
            return Err(NOT_FOUND);
        }
        let handle = gpu.handle();
        gpu.functions.insert(handle, (module as usize, name));
        unsafe { give(function, handle as CUfunction) }
    }
    fn cuLaunchKernel(
        function: CUfunction, x: u32, y: u32, z: u32, tx: u32, ty: u32, tz: u32, shared: u32, stream: CUstream,
        arguments: *mut *mut c_void, extra: *mut *mut c_void,
    ) [] |gpu| {
        let grid = Grid { blocks: [x, y, z], threads: [tx, ty, tz] };
        if shared > 48 << 10 || !extra.is_null() {
            return Err(INVALID_VALUE);
        }
        unsafe { gpu.launch(function as usize, grid, stream as usize, arguments) }
    }

    fn cuGraphInstantiateWithFlags(ready: *mut CUgraphExec, graph: CUgraph, _flags: u64) [] |gpu| {
        let nodes = gpu.graphs.get(&(graph as usize)).cloned().ok_or(INVALID_HANDLE)?;
        let handle = gpu.handle();
        gpu.runnable.insert(handle, nodes);
        gpu.counted().graphs += 1;
        unsafe { give(ready, handle as CUgraphExec) }
    }
    fn cuGraphGetNodes(graph: CUgraph, nodes: *mut CUgraphNode, count: *mut usize) [] |gpu| {
        if !nodes.is_null() {
            return Err(INVALID_VALUE);
        }
        let all = gpu.graphs.get(&(graph as usize)).ok_or(INVALID_HANDLE)?;
        unsafe { give(count, all.len()) }
    }
    fn cuGraphUpload(graph: CUgraphExec, stream: CUstream) [] |gpu| {
        gpu.stream(stream as usize, "cuGraphUpload")?;
        gpu.runnable.contains_key(&(graph as usize)).then_some(()).ok_or(INVALID_HANDLE)
    }
    fn cuGraphLaunch(graph: CUgraphExec, stream: CUstream) [] |gpu| { gpu.replay(graph as usize, stream as usize) }
    fn cuGraphExecDestroy(graph: CUgraphExec) [releases] |gpu| {
        gpu.run_all();
        gpu.runnable.remove(&(graph as usize)).map(drop).ok_or(INVALID_HANDLE)
    }
    fn cuGraphDestroy(graph: CUgraph) [releases] |gpu| {
        gpu.graphs.remove(&(graph as usize)).map(drop).ok_or(INVALID_HANDLE)
    }
}

/// An ELF image, whose length is that of its last section or table.
///
/// # Safety
/// The image is whole.
unsafe fn image_of(at: *const u8) -> Option<Vec<u8>> {
    // SAFETY: every ELF file has so long a header.
    let header = unsafe { std::slice::from_raw_parts(at, 64) };
    if !header.starts_with(b"\x7fELF\x02") {
        return None;
    }
    let short = |at: usize| usize::from(u16::from_le_bytes([header[at], header[at + 1]]));
    let long = |at: usize| Some(u64::from_le_bytes(header.get(at..at + 8)?.try_into().ok()?) as usize);
    // Section headers, and program headers, come last in what NVRTC makes.
    let sections = long(40)? + short(58) * short(60);
    let programs = long(32)? + short(54) * short(56);
    // SAFETY: the caller's promise.
    Some(unsafe { std::slice::from_raw_parts(at, sections.max(programs).max(64)) }.to_vec())
}
