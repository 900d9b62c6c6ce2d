//! The one device of the process, and how a process ends that made mistakes.

use std::ffi::c_int;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use crate::gpu::Gpu;
use crate::settings::Settings;

/// The device, locked.
pub fn lock() -> MutexGuard<'static, Gpu> {
    static GPU: OnceLock<Mutex<Gpu>> = OnceLock::new();
    let gpu = GPU.get_or_init(|| {
        report_at_exit();
        Mutex::new(Gpu::new(Settings::from_env()))
    });
    gpu.lock().unwrap_or_else(PoisonError::into_inner)
}

unsafe extern "C" {
    fn atexit(function: extern "C" fn()) -> c_int;
    fn _exit(status: c_int) -> !;
}

/// Has the process tell the counts, where that is wanted, and fail when there were violations.
fn report_at_exit() {
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
