//! Statuses of cuDNN.

use crate::status::Refusal;

/// CUDNN_STATUS_NOT_INITIALIZED, _BAD_PARAM, _NOT_SUPPORTED
pub const NOT_INITIALIZED: Refusal = 1001;
pub const BAD_PARAM: Refusal = 2000;
pub const NOT_SUPPORTED: Refusal = 3000;
