//! What was done, and how the process ends that did it.

use std::ffi::c_int;

use crate::gpu::lock;

macro_rules! counts {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {
        /// How often something was done since the process began or a test set the counts back.
        #[derive(Clone, Copy, Debug, Default)]
        pub struct Counts {
            $($(#[$doc])* pub $name: u64,)*
        }

        impl Counts {
            fn of(&self, name: &[u8]) -> Option<u64> {
                $(if name == stringify!($name).as_bytes() {
                    return Some(self.$name);
                })*
                None
            }
        }
    };
}

counts! {
    /// Calls that can fail.
    calls,
    /// Blocks of device and of pinned memory that were asked for.
    allocations,
    /// Blocks of either now.
    blocks,
    /// The most bytes of device memory at a time.
    peak,
    /// Kernels put on a stream or recorded.
    launches,
    /// Products.
    products,
    /// Passes of convolutions.
    convolutions,
    /// Those that cuDNN refused when it was to run them.
    refusals,
    /// Copies, within the device and to and from the host.
    copies,
    /// Bytes that copies to and from the host moved.
    bytes,
    /// Memory set to a value.
    fills,
    /// Graphs made.
    graphs,
    /// Nodes of the last.
    nodes,
    /// Graphs put on a stream.
    replays,
    /// Times that the host waited for a stream or an event.
    waits,
    /// Contexts that were opened.
    contexts,
    /// Objects alive now.
    objects,
    /// Mistakes.
    violations,
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
