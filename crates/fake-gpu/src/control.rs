//! What tests ask of the fake GPU, by name.

use std::ffi::c_int;

use crate::process::lock;

/// Sets counts back and says what is to fail from now on; 0 for nothing, and status 0 for that of the library's own.
/// A lost device is well again.
#[unsafe(no_mangle)]
pub extern "C" fn fake_gpu_arm(fail: u64, status: c_int, lose: u64, oom: u64) {
    let at = |n: u64| (n > 0).then_some(n);
    let mut gpu = lock();
    gpu.settings.fail = at(fail).map(|n| (n, (status != 0).then_some(status)));
    gpu.settings.lose = at(lose);
    gpu.settings.oom = at(oom);
    gpu.set_back();
}

/// A count by its name, or the greatest number there is where there is none of that name.
///
/// # Safety
/// The name has so many bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fake_gpu_count(name: *const u8, length: usize) -> u64 {
    // SAFETY: the caller's promise.
    lock().counts().of(unsafe { std::slice::from_raw_parts(name, length) }).unwrap_or(u64::MAX)
}

/// Writes the names of the calls since the counts were set back, one a line and as many as fit, and how many bytes they are.
///
/// # Safety
/// There is room for so many bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fake_gpu_calls(to: *mut u8, room: usize) -> usize {
    let gpu = lock();
    let text = gpu.names.join("\n");
    let length = text.len().min(room);
    if length == 0 {
        return text.len();
    }
    // SAFETY: the caller's promise.
    unsafe { std::ptr::copy_nonoverlapping(text.as_ptr(), to, length) };
    text.len()
}
