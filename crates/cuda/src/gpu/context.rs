//! One GPU's primary context and its two streams, and what the driver's refusals mean.

use std::collections::HashMap;
use std::ffi::c_int;
use std::sync::{Arc, Mutex, OnceLock};

use lgm_core::memory::in_units;
use lgm_core::{DevicePtr, Error, Result};

use crate::Device;
use crate::gpu::api::*;

/// Calls a function of the driver in a context, which is made the thread's own first.
macro_rules! driver {
    ($context:expr, $function:ident($($arg:expr),* $(,)?)) => {
        $context.make_current().and_then(|()| {
            // SAFETY: the function's type is the driver's; pointers among the arguments are to live values, and handles
            // are those of live objects of this context.
            let status = unsafe { ($context.api.$function)($($arg),*) };
            $context.check(stringify!($function), status)
        })
    };
}
pub(crate) use driver;

/// A stream: what is put on one runs in order, what is on two may overlap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stream {
    /// Kernels, products and copies within the device.
    Compute,
    /// Copies from the host ahead of the computation.
    Copy,
}

pub(crate) struct Context {
    listing: DriverApi,
    pub(crate) api: RunApi,
    pub(crate) gpu: Device,
    device: c_int,
    raw: Handle<driver::CUctx_st>,
    streams: [Handle<driver::CUstream_st>; 2],
    /// Blocks given out, with their sizes.
    blocks: Mutex<HashMap<u64, usize>>,
    lost: OnceLock<String>,
}

impl Context {
    /// The context of a GPU that the driver listed.
    pub(crate) fn open(listing: DriverApi, api: RunApi, gpu: Device) -> Result<Arc<Self>> {
        let blocks = Mutex::default();
        let lost = OnceLock::new();
        let mut context =
            Context { listing, api, gpu, device: 0, raw: Handle::NULL, streams: [Handle::NULL; 2], blocks, lost };
        let ordinal = context.gpu.id as c_int;
        // SAFETY, of all three: the types are the driver's and the pointers are to live values.
        context.check("cuInit", unsafe { (context.listing.cuInit)(0) })?;
        let mut device = 0;
        context.check("cuDeviceGet", unsafe { (context.listing.cuDeviceGet)(&mut device, ordinal) })?;
        let mut raw = Handle::NULL;
        let status = unsafe { (context.api.cuDevicePrimaryCtxRetain)(&mut raw.0, device) };
        context.check("cuDevicePrimaryCtxRetain", status)?;
        (context.device, context.raw) = (device, raw);
        for i in 0..context.streams.len() {
            let mut stream = Handle::NULL;
            driver!(context, cuStreamCreate(&mut stream.0, driver::CUstream_flags::CU_STREAM_NON_BLOCKING as u32))?;
            context.streams[i] = stream;
        }
        Ok(Arc::new(context))
    }

    pub(crate) fn stream(&self, stream: Stream) -> CUstream {
        self.streams[stream as usize].0
    }

    /// Why the device is lost, if it is.
    pub(crate) fn lost(&self) -> Option<&str> {
        self.lost.get().map(String::as_str)
    }

    pub(crate) fn make_current(&self) -> Result<()> {
        if let Some(lost) = self.lost() {
            return Err(Error::Device { text: lost.into(), lost: true });
        }
        // SAFETY: the context is alive.
        self.check("cuCtxSetCurrent", unsafe { (self.api.cuCtxSetCurrent)(self.raw.0) })
    }

    /// An error unless the driver's code is success. From a code after which the device takes no more work, the device
    /// counts as lost.
    pub(crate) fn check(&self, call: &str, status: c_int) -> Result<()> {
        if status == 0 {
            return Ok(());
        }
        let call = call.trim_end_matches("_v2");
        let code = self.listing.code(status);
        if is_sticky(status) {
            let text = lost_text(&self.gpu, call, &code);
            return Err(Error::Device { text: self.lost.get_or_init(|| text).clone(), lost: true });
        }
        Err(Error::device(failure_text(&self.gpu, call, &code)))
    }

    pub(crate) fn alloc(&self, bytes: usize) -> Result<DevicePtr> {
        self.make_current()?;
        let mut at = 0;
        // The driver refuses blocks of no bytes.
        // SAFETY: the pointer is to a live integer.
        let status = unsafe { (self.api.cuMemAlloc_v2)(&mut at, bytes.max(1)) };
        if status == CUDA_ERROR_OUT_OF_MEMORY {
            let (free, total) = self.free_bytes()?;
            let (wanted, text) = (bytes as u64, memory_text(&self.gpu, bytes as u64, free, total));
            return Err(Error::DeviceMemory { text, wanted, free });
        }
        self.check("cuMemAlloc", status)?;
        self.blocks().insert(at, bytes);
        Ok(DevicePtr(at))
    }

    pub(crate) fn free(&self, block: DevicePtr) -> Result<()> {
        if !self.blocks().contains_key(&block.0) {
            return Err(Error::internal(format!("{:#x} is not the address of a block of device memory", block.0)));
        }
        self.finish(Stream::Copy)?;
        self.finish(Stream::Compute)?;
        driver!(self, cuMemFree_v2(block.0))?;
        self.blocks().remove(&block.0);
        Ok(())
    }

    fn blocks(&self) -> std::sync::MutexGuard<'_, HashMap<u64, usize>> {
        self.blocks.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    pub(crate) fn free_bytes(&self) -> Result<(u64, u64)> {
        let (mut free, mut total) = (0, 0);
        driver!(self, cuMemGetInfo_v2(&mut free, &mut total))?;
        Ok((free as u64, total as u64))
    }

    pub(crate) fn finish(&self, stream: Stream) -> Result<()> {
        driver!(self, cuStreamSynchronize(self.stream(stream)))
    }

    pub(crate) fn copy(&self, from: DevicePtr, to: DevicePtr, bytes: usize) -> Result<()> {
        if bytes == 0 {
            return Ok(());
        }
        driver!(self, cuMemcpyDtoDAsync_v2(to.0, from.0, bytes, self.stream(Stream::Compute)))
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // A lost device gives its memory back when the process ends, whatever these calls answer.
        // SAFETY: streams and blocks are this context's own and nothing else holds them now.
        unsafe {
            (self.api.cuCtxSetCurrent)(self.raw.0);
            for stream in self.streams.iter().filter(|s| !s.is_null()) {
                (self.api.cuStreamSynchronize)(stream.0);
                (self.api.cuStreamDestroy_v2)(stream.0);
            }
            for &block in self.blocks().keys() {
                (self.api.cuMemFree_v2)(block);
            }
            if !self.raw.is_null() {
                (self.api.cuDevicePrimaryCtxRelease_v2)(self.device);
            }
        }
    }
}

/// The driver's code, with its name and meaning where the driver gave them.
/// Whether a context takes no more work after this code.
fn is_sticky(code: c_int) -> bool {
    matches!(
        code,
        CUDA_ERROR_DEINITIALIZED
            | CUDA_ERROR_ECC_UNCORRECTABLE
            | CUDA_ERROR_NVLINK_UNCORRECTABLE
            | CUDA_ERROR_CONTAINED
            | CUDA_ERROR_ILLEGAL_ADDRESS
            | CUDA_ERROR_LAUNCH_TIMEOUT
            | CUDA_ERROR_CONTEXT_IS_DESTROYED
            | CUDA_ERROR_ASSERT
            | CUDA_ERROR_HARDWARE_STACK_ERROR
            | CUDA_ERROR_ILLEGAL_INSTRUCTION
            | CUDA_ERROR_MISALIGNED_ADDRESS
            | CUDA_ERROR_INVALID_ADDRESS_SPACE
            | CUDA_ERROR_INVALID_PC
            | CUDA_ERROR_LAUNCH_FAILED
            | CUDA_ERROR_TENSOR_MEMORY_LEAK
            | CUDA_ERROR_MPS_CLIENT_TERMINATED
            | CUDA_ERROR_EXTERNAL_DEVICE
            | CUDA_ERROR_UNKNOWN
    )
}

fn remedy(code: c_int) -> &'static str {
    match code {
        CUDA_ERROR_OUT_OF_MEMORY => "the GPU's memory is used up: lower batch_size, or end what else runs on the GPU",
        CUDA_ERROR_DEVICE_UNAVAILABLE => "another process holds the GPU exclusively; nvidia-smi lists the processes",
        CUDA_ERROR_NO_BINARY_FOR_GPU => "the kernels were compiled for another GPU; empty the cache ~/.cache/lgm-caffe",
        CUDA_ERROR_INVALID_IMAGE | CUDA_ERROR_UNSUPPORTED_PTX_VERSION => {
            "the driver is older than NVRTC, or the kernels kept in ~/.cache/lgm-caffe are of another kind of GPU: update the \
             driver, or empty that folder"
        }
        CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES => "a kernel wants more registers or threads than the GPU has",
        CUDA_ERROR_SYSTEM_NOT_READY => "on machines with NVSwitch, start the service nvidia-fabricmanager",
        CUDA_ERROR_SYSTEM_DRIVER_MISMATCH => {
            "the kernel's driver and libcuda are of different versions: restart the machine or reinstall the driver"
        }
        CUDA_ERROR_COMPAT_NOT_SUPPORTED_ON_DEVICE => {
            "the libcuda of a compatibility package (cuda-compat) was taken, which runs on data-center GPUs alone: put the \
             driver's own folder first in LD_LIBRARY_PATH"
        }
        CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED..=CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD => {
            "work that cannot be recorded was put on the GPU while a graph was being recorded"
        }
        _ => "nvidia-smi tells whether the GPU is well",
    }
}

fn failure_text(gpu: &Device, call: &str, code: &Code) -> String {
    format!("GPU {} ({}): {call} failed: {code}; {}", gpu.id, gpu.name, remedy(code.number))
}

fn lost_text(gpu: &Device, call: &str, code: &Code) -> String {
    let timeout = match code.number {
        CUDA_ERROR_LAUNCH_TIMEOUT => "; the driver stops long kernels on a GPU that also drives a display",
        _ => "",
    };
    format!(
        "GPU {} ({}) is lost: {call} failed: {code}{timeout}. What it held is gone; the last good snapshot stands and \
         -snapshot resumes from it. The kernel's log (dmesg, lines with Xid) may tell the reason; with LGM_GRAPH=0 and \
         CUDA_LAUNCH_BLOCKING=1 in the environment the error names the layer",
        gpu.id, gpu.name
    )
}

fn memory_text(gpu: &Device, wanted: u64, free: u64, total: u64) -> String {
    format!(
        "GPU {} ({}) is out of memory: cuMemAlloc failed, {} wanted, {} of {} free; lower batch_size, or end what else runs on the GPU \
         (nvidia-smi lists it)",
        gpu.id,
        gpu.name,
        in_units(wanted),
        in_units(free),
        in_units(total)
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::tests::gpu;

    fn code(number: c_int, name: &str, meaning: &str) -> Code {
        Code { number, name: Some(name.into()), meaning: Some(meaning.into()) }
    }

    #[test]
    fn a_refusal_names_call_code_and_remedy() {
        let text = failure_text(&gpu(3), "cuLaunchKernel", &code(701, "CUDA_ERROR_X", "too many resources"));
        assert_eq!(
            text,
            "GPU 3 (Test GPU): cuLaunchKernel failed: CUDA_ERROR_X (701: too many resources); a kernel wants more \
             registers or threads than the GPU has"
        );
        let bare = Code { number: 12345, name: None, meaning: None };
        assert!(failure_text(&gpu(0), "cuInit", &bare).contains("cuInit failed: code 12345; nvidia-smi tells"));
    }

    #[test]
    fn a_lost_device_says_what_stands() {
        for lost in [4, 214, 220, 226, 700, 702, 709, 710, 714, 715, 716, 717, 718, 719, 721, 810, 911, 999] {
            assert!(is_sticky(lost), "{lost}");
        }
        for not in [1, 2, 46, 100, 101, 209, 400, 500, 600, 701, 801, 900, 901] {
            assert!(!is_sticky(not), "{not}");
        }
        let text = lost_text(&gpu(0), "cuStreamSynchronize", &code(700, "CUDA_ERROR_ILLEGAL_ADDRESS", "illegal"));
        assert!(text.starts_with("GPU 0 (Test GPU) is lost: cuStreamSynchronize failed: CUDA_ERROR_ILLEGAL_ADDRESS"));
        assert!(text.contains("the last good snapshot stands") && text.contains("Xid"), "{text}");
    }

    #[test]
    fn out_of_memory_tells_how_much() {
        assert_eq!(
            memory_text(&gpu(1), 3 << 30, 1 << 29, 80 << 30),
            "GPU 1 (Test GPU) is out of memory: cuMemAlloc failed, 3.0 GiB wanted, 512.0 MiB of 80.0 GiB free; lower batch_size, or end \
             what else runs on the GPU (nvidia-smi lists it)"
        );
    }
}
