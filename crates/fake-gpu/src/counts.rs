//! What was done, and how the process ends that did it.

use std::ffi::c_int;

use crate::gpu::lock;

/// How often something was done since the process began or a test set the counts back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Counts {
    /// Calls that can fail.
    pub calls: u64,
    /// Blocks of device and of pinned memory that were asked for.
    pub allocations: u64,
    /// Blocks of either now, and the most bytes of device memory at a time.
    pub blocks: u64,
    pub peak: u64,
    /// Kernels, products and passes of convolutions put on a stream or recorded.
    pub launches: u64,
    pub products: u64,
    pub convolutions: u64,
    /// Passes that cuDNN refused when it was to run them.
    pub refusals: u64,
    /// Copies and fills, and the bytes that copies to and from the host moved.
    pub copies: u64,
    pub fills: u64,
    pub bytes: u64,
    /// Graphs made, nodes of the last, and how often any was put on a stream.
    pub graphs: u64,
    pub nodes: u64,
    pub replays: u64,
    /// Times that the host waited for a stream or an event.
    pub waits: u64,
    /// Contexts that were opened, and objects alive now.
    pub contexts: u64,
    pub objects: u64,
    /// Mistakes.
    pub violations: u64,
}

unsafe extern "C" {
    fn atexit(function: extern "C" fn()) -> c_int;
    fn _exit(status: c_int) -> !;
}

/// Has the process tell the counts, where that is wanted, and fail when there were violations.
pub fn report_at_exit() {
    // SAFETY: the function stays loaded as long as the process; it only reads, writes to standard error and ends.
    unsafe { atexit(report) };
}

extern "C" fn report() {
    let gpu = lock();
    let counts = gpu.counts();
    if gpu.settings.stats {
        eprintln!("fake GPU: {counts:?}");
    }
    if counts.violations > 0 {
        eprintln!("fake GPU: {} violations", counts.violations);
        // SAFETY: ends the process, whatever status it was to end with.
        unsafe { _exit(70) };
    }
}

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

/// The counts now.
#[unsafe(no_mangle)]
pub extern "C" fn fake_gpu_counts() -> Counts {
    lock().counts()
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
    // SAFETY: the caller's promise.
    unsafe { std::ptr::copy_nonoverlapping(text.as_ptr(), to, length) };
    text.len()
}
