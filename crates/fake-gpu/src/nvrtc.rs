//! libnvrtc.so.13, where NVIDIA's own is not at hand: what it "compiles" is an ELF header with the source behind it, which
//! the driver here takes, since it knows the kernels by name.

use std::ffi::{CStr, c_char, c_int};

use cudarc::nvrtc::sys::{self, nvrtcProgram};

use crate::enter::functions;
use crate::gpu::Gpu;
use crate::status::{Refusal, give};

/// NVRTC_ERROR_INVALID_PROGRAM
const INVALID_PROGRAM: Refusal = 4;
/// Bytes before the source.
const HEADER: usize = 64;

/// A version that NVIDIA's own does not have, so that what either made is not taken for the other's.
///
/// # Safety
/// The places are valid.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvrtcVersion(major: *mut c_int, minor: *mut c_int) -> c_int {
    // SAFETY: the caller's promise.
    unsafe { give(major, 13).and_then(|()| give(minor, 99)) }.map_or_else(|status| status, |()| 0)
}

/// A status in words.
#[unsafe(no_mangle)]
pub extern "C" fn nvrtcGetErrorString(_status: c_int) -> *const c_char {
    c"as the fake GPU has it".as_ptr()
}

// SAFETY, of all blocks: the places are the caller's, who has them valid, as the header asks.
functions! { sys, Nvrtc, nvrtcResult;
    fn nvrtcGetNumSupportedArchs(count: *mut c_int) [anywhere] |_gpu| { unsafe { give(count, 2) } }
    fn nvrtcGetSupportedArchs(list: *mut c_int) [anywhere] |_gpu| {
        unsafe { give(list, 80).and_then(|()| give(list.add(1), 90)) }
    }
    fn nvrtcCreateProgram(
        program: *mut nvrtcProgram, text: *const c_char, _name: *const c_char, _headers: c_int,
        _texts: *const *const c_char, _names: *const *const c_char,
    ) [anywhere] |gpu| {
        let text = unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned();
        let handle = gpu.handle();
        gpu.programs.insert(handle, text);
        unsafe { give(program, handle as nvrtcProgram) }
    }
    fn nvrtcDestroyProgram(program: *mut nvrtcProgram) [anywhere releases] |gpu| {
        let handle = unsafe { program.read() } as usize;
        gpu.programs.remove(&handle).map(drop).ok_or(INVALID_PROGRAM)
    }
    fn nvrtcCompileProgram(program: nvrtcProgram, _count: c_int, _options: *const *const c_char) [anywhere] |gpu| {
        gpu.image(program).map(drop)
    }
    fn nvrtcGetCUBINSize(program: nvrtcProgram, size: *mut usize) [anywhere] |gpu| {
        let image = gpu.image(program)?;
        unsafe { give(size, image.len()) }
    }
    fn nvrtcGetCUBIN(program: nvrtcProgram, to: *mut c_char) [anywhere] |gpu| {
        let image = gpu.image(program)?;
        unsafe { std::ptr::copy_nonoverlapping(image.as_ptr().cast(), to, image.len()) };
        Ok(())
    }
    fn nvrtcGetProgramLogSize(program: nvrtcProgram, size: *mut usize) [anywhere] |gpu| {
        gpu.image(program)?;
        unsafe { give(size, 1) }
    }
    fn nvrtcGetProgramLog(program: nvrtcProgram, to: *mut c_char) [anywhere] |gpu| {
        gpu.image(program)?;
        unsafe { give(to, 0) }
    }
}

impl Gpu {
    fn image(&self, program: nvrtcProgram) -> Result<Vec<u8>, Refusal> {
        let text = self.programs.get(&(program as usize)).ok_or(INVALID_PROGRAM)?;
        let mut image = vec![0; HEADER];
        image[..5].copy_from_slice(b"\x7fELF\x02");
        // One section header, of one byte, that stands at the end: the driver finds the image's length by it.
        image[40..48].copy_from_slice(&((HEADER + text.len()) as u64).to_le_bytes());
        (image[58], image[60]) = (1, 1);
        image.extend_from_slice(text.as_bytes());
        image.push(0);
        Ok(image)
    }
}
