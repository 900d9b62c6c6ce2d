//! Diffs that share memory.

use lgm_core::{Error, Result};

/// The top's diff: its own memory, or the bottom's diff that holds it.
pub(crate) fn diff_source<'a, T>(own: Option<&'a [T]>, shared: Option<&'a [T]>) -> Result<&'a [T]> {
    own.or(shared).ok_or_else(|| Error::internal("a top's diff is neither given nor in a bottom's diff"))
}
