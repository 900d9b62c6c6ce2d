//! What the environment asks of the fake GPU, and what a test does in the same process.
//!
//! | variable | what |
//! | --- | --- |
//! | `FAKE_GPU_FAIL=N` or `N:STATUS` | the N-th call, from 1, gives that status and does nothing |
//! | `FAKE_GPU_LOSE=N` | from the N-th call on the device is lost |
//! | `FAKE_GPU_OOM=N` | the N-th allocation, of device or pinned memory, finds no room |
//! | `FAKE_GPU_MEMORY=BYTES` | the device has so much memory (80 GiB without) |
//! | `FAKE_GPU_DRY=1` | nothing is computed, and memory is not touched: large nets cost nothing |
//! | `FAKE_GPU_STATS=1` | counts, at the end, and the nodes of each graph |
//! | `FAKE_GPU_TRACE=1` | every call with its number, and what each graph holds |
//!
//! Calls are counted that can fail, releases and questions about errors and versions left out.

use std::env;
use std::ffi::c_int;

/// See the module.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    pub fail: Option<(u64, Option<c_int>)>,
    pub lose: Option<u64>,
    pub oom: Option<u64>,
    pub memory: Option<u64>,
    pub dry: bool,
    pub stats: bool,
    pub trace: bool,
}

impl Settings {
    /// Those of the environment; what cannot be read is told and left out.
    pub fn from_env() -> Settings {
        let text = |name: &str| env::var(name).ok().filter(|value| !value.is_empty());
        let number = |name: &str| {
            let text = text(name)?;
            text.parse::<u64>().inspect_err(|error| eprintln!("fake GPU: {name}={text}: {error}")).ok()
        };
        let fail = text("FAKE_GPU_FAIL").and_then(|text| {
            let read = failure(&text);
            if read.is_none() {
                eprintln!("fake GPU: FAKE_GPU_FAIL={text} is neither N nor N:STATUS");
            }
            read
        });
        let on = |name: &str| text(name).is_some_and(|value| value == "1");
        Settings {
            fail,
            lose: number("FAKE_GPU_LOSE"),
            oom: number("FAKE_GPU_OOM"),
            memory: number("FAKE_GPU_MEMORY"),
            dry: on("FAKE_GPU_DRY"),
            stats: on("FAKE_GPU_STATS"),
            trace: on("FAKE_GPU_TRACE"),
        }
    }
}

fn failure(text: &str) -> Option<(u64, Option<c_int>)> {
    match text.split_once(':') {
        None => Some((text.parse().ok()?, None)),
        Some((call, status)) => Some((call.parse().ok()?, Some(status.parse().ok()?))),
    }
}

#[cfg(test)]
mod tests {
    use super::failure;

    #[test]
    fn a_failure_is_a_call_and_perhaps_its_status() {
        assert_eq!([failure("3"), failure("12:700")], [Some((3, None)), Some((12, Some(700)))]);
        assert_eq!([failure("x"), failure("3:"), failure(":7")], [None; 3]);
    }
}
