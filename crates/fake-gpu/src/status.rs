//! What calls answer.

use std::ffi::c_int;

/// A status that is not success.
pub type Refusal = c_int;

/// CUDA_ERROR_INVALID_VALUE, CUDA_ERROR_OUT_OF_MEMORY, CUDA_ERROR_INVALID_HANDLE, CUDA_ERROR_NOT_FOUND
pub const INVALID_VALUE: Refusal = 1;
pub const OUT_OF_MEMORY: Refusal = 2;
pub const INVALID_HANDLE: Refusal = 400;
pub const NOT_FOUND: Refusal = 500;

/// Writes a result where the caller wants it.
///
/// # Safety
/// The place is null or valid.
pub unsafe fn give<T>(to: *mut T, value: T) -> Result<(), Refusal> {
    if to.is_null() {
        return Err(1);
    }
    // SAFETY: the caller's promise.
    unsafe { to.write(value) };
    Ok(())
}
