//! What cuDNN's statuses mean, and its order of operands.

use std::ffi::{CStr, c_int};

use lgm_core::{ConvolutionPass, Error, Result};

use crate::gpu::api::*;

pub(super) fn check(api: &CudnnApi, call: &str, status: c_int) -> Result<()> {
    if status == CUDNN_STATUS_SUCCESS {
        return Ok(());
    }
    // SAFETY: cuDNN gives a static text for every number.
    let meaning = unsafe {
        let text = (api.cudnnGetErrorString)(status);
        if text.is_null() { "unknown".into() } else { CStr::from_ptr(text).to_string_lossy() }
    };
    let mut detail = [0u8; 1024];
    // SAFETY: the buffer is longer than the length given, so the text ends whatever cuDNN writes.
    unsafe { (api.cudnnGetLastErrorString)(detail.as_mut_ptr().cast(), detail.len() - 1) };
    let detail =
        CStr::from_bytes_until_nul(&detail).map(|d| d.to_string_lossy().trim().to_string()).unwrap_or_default();
    let detail = if detail.is_empty() { detail } else { format!("; {detail}") };
    let (file, version) = (api.found.path.display(), api.found.version);
    Err(Error::device(format!("cuDNN {version} ({file}): {call} failed: {meaning} ({status}){detail}")))
}

/// cuDNN's order of a pass's operands: the filter comes last forward and first backward to the data.
pub(super) fn in_order<T>(pass: ConvolutionPass, [first, second]: [T; 2]) -> [T; 2] {
    match pass {
        ConvolutionPass::Forward | ConvolutionPass::Filter => [first, second],
        ConvolutionPass::Data => [second, first],
    }
}
