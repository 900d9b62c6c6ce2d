//! The fake GPU that a test runs on, where `scripts/fake-gpu` runs the test: what is to fail on it, and what was done.

use std::ffi::c_int;

/// The fake GPU of this process; see `crates/fake-gpu`.
pub struct FakeGpu {
    arm: unsafe extern "C" fn(u64, c_int, u64, u64),
    count: unsafe extern "C" fn(*const u8, usize) -> u64,
    calls: unsafe extern "C" fn(*mut u8, usize) -> usize,
}

/// What fails on the fake GPU, counted from 1.
#[derive(Clone, Copy, Debug, Default)]
pub enum Fails {
    /// Nothing.
    #[default]
    Nothing,
    /// A call, with this status or, where that is 0, the library's own.
    Call(u64, i32),
    /// Every call from this one on: the device is lost.
    EveryCallFrom(u64),
    /// An allocation finds no room.
    Allocation(u64),
}

impl FakeGpu {
    /// The one that the process has, if `scripts/fake-gpu` runs it; otherwise the test is skipped.
    pub fn get() -> Option<FakeGpu> {
        let Some(path) = std::env::var_os("LGM_FAKE_GPU") else {
            return crate::skip("fake-gpu", "scripts/fake-gpu runs this test on a fake GPU");
        };
        // SAFETY: the fake GPU's library, with functions of these types; it stays loaded.
        unsafe {
            let library = Box::leak(Box::new(libloading::Library::new(path).unwrap()));
            let [arm, count, calls] = [b"fake_gpu_arm", &b"fake_gpu_count"[..], b"fake_gpu_calls"];
            Some(FakeGpu {
                arm: *library.get(arm).unwrap(),
                count: *library.get(count).unwrap(),
                calls: *library.get(calls).unwrap(),
            })
        }
    }

    /// Resets the counts and sets what fails; a lost device works again.
    pub fn set(&self, fails: Fails) {
        let (call, status, lost, allocation) = match fails {
            Fails::Nothing => (0, 0, 0, 0),
            Fails::Call(call, status) => (call, status, 0, 0),
            Fails::EveryCallFrom(call) => (0, 0, call, 0),
            Fails::Allocation(allocation) => (0, 0, 0, allocation),
        };
        // SAFETY: numbers alone.
        unsafe { (self.arm)(call, status, lost, allocation) }
    }

    /// A count by its name: `violations`, `blocks`, …
    ///
    /// # Panics
    /// When there is none of that name.
    pub fn count(&self, name: &str) -> u64 {
        // SAFETY: the name has this length.
        let count = unsafe { (self.count)(name.as_ptr(), name.len()) };
        assert_ne!(count, u64::MAX, "the fake GPU does not count '{name}'");
        count
    }

    /// The calls since the counts were reset.
    ///
    /// # Panics
    /// Never: they are plain names.
    pub fn calls(&self) -> Vec<String> {
        // SAFETY: both lengths are those of the buffer.
        let text = unsafe {
            let mut text = vec![0; (self.calls)(std::ptr::null_mut(), 0)];
            (self.calls)(text.as_mut_ptr(), text.len());
            text
        };
        String::from_utf8(text).unwrap().lines().map(String::from).collect()
    }
}
