//! cuDNN's algorithms for a pass of a convolution: which may be taken, in which order, and what is left of them when
//! they have been tried.

use std::collections::VecDeque;
use std::ffi::c_int;
use std::fmt;

use lgm_core::memory::in_units;
use lgm_core::{Error, Result};

use crate::Precision;
use crate::gpu::api::*;

/// More than cuDNN has algorithms to run any pass.
pub(super) const MOST_ALGORITHMS: usize = 16;

/// Largest workspace, in bytes, of a fallback algorithm behind a first one that was not tried. Behind one that runs,
/// those are kept that want no more than it.
const SPARE: usize = 256 << 20;

/// The most workspace a convolution may want: a sixteenth of the device's memory, and no more than a GiB. It depends on
/// nothing but the device, so that the choice, and with it the result, is the same each time.
pub(super) fn workspace_limit(memory: u64) -> usize {
    (memory / 16).min(1 << 30) as usize
}

/// One of cuDNN's algorithms.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Algorithm {
    pub(super) number: c_int,
    pub(super) math: c_int,
    pub(super) workspace: usize,
}

impl Algorithm {
    /// Its name among those for the same pass.
    pub(super) fn name(&self) -> String {
        let math = match self.math {
            CUDNN_FMA_MATH => "in fused multiply-adds",
            CUDNN_TENSOR_OP_MATH => "on tensor cores",
            _ => "in the default mathematics",
        };
        format!("algorithm {} {math}", self.number)
    }
}

impl fmt::Display for Algorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} with {} of workspace", self.name(), in_units(self.workspace as u64))
    }
}

/// In single precision nothing but fused multiply-adds; the default mathematics permit TF32, those of tensor cores what is
/// stored in 16 bits too, and one of cuDNN's algorithms may ask for its own.
pub(super) fn math_type(precision: Precision, algorithm: Option<c_int>) -> c_int {
    match precision {
        Precision::Fp32 => CUDNN_FMA_MATH,
        Precision::Tf32 => algorithm.unwrap_or(CUDNN_DEFAULT_MATH),
        Precision::Bf16 => algorithm.unwrap_or(CUDNN_TENSOR_OP_MATH),
    }
}

fn admissible(perf: &AlgorithmPerf, precision: Precision, limit: usize) -> bool {
    // Conversions to half precision (CUDNN_TENSOR_OP_MATH_ALLOW_CONVERSION) are never wanted.
    let math = match precision {
        Precision::Fp32 => [CUDNN_FMA_MATH, CUDNN_DEFAULT_MATH, CUDNN_DEFAULT_MATH],
        Precision::Tf32 | Precision::Bf16 => [CUDNN_FMA_MATH, CUDNN_DEFAULT_MATH, CUDNN_TENSOR_OP_MATH],
    };
    perf.status == CUDNN_STATUS_SUCCESS
        && perf.determinism == CUDNN_DETERMINISTIC
        && perf.memory <= limit
        && math.contains(&perf.math)
}

/// The algorithms among those that cuDNN gives, fastest first by its own estimate, which are deterministic and not too greedy, each
/// once. In single precision those that it gives for fused multiply-adds come first: what it gives for other mathematics
/// is an estimate of those.
pub(super) fn listed(found: &[AlgorithmPerf], precision: Precision, limit: usize) -> Vec<Algorithm> {
    let mut found: Vec<&AlgorithmPerf> = found.iter().filter(|perf| admissible(perf, precision, limit)).collect();
    if precision == Precision::Fp32 {
        found.sort_by_key(|perf| perf.math != CUDNN_FMA_MATH);
    }
    let mut algorithms: Vec<Algorithm> = Vec::new();
    for perf in found {
        let (number, math) = (perf.algorithm, math_type(precision, Some(perf.math)));
        if !algorithms.iter().any(|known| (known.number, known.math) == (number, math)) {
            algorithms.push(Algorithm { number, math, workspace: perf.memory });
        }
    }
    algorithms
}

/// What came of trying an algorithm.
pub(super) enum Trial {
    /// It runs, and took so many milliseconds, where that was asked for.
    Ran(Option<f32>),
    /// cuDNN refuses it.
    Refused(Error),
    /// There is no room to try it.
    NoRoom,
}

/// What is left of algorithms when they are tried: the one that is taken, and behind it those for when cuDNN refuses it after all.
/// The first that runs is taken or, where all are timed, the quickest; what is refused goes.
///
/// # Errors
/// Those of `attempt`.
pub(super) fn tried(
    algorithms: Vec<Algorithm>,
    mut attempt: impl FnMut(Algorithm) -> Result<Trial>,
) -> Result<VecDeque<Algorithm>> {
    let (mut first, mut quickest) = (None, f32::INFINITY);
    let mut left = Vec::new();
    // Enough is known when one runs that nobody times: the first call of each loads kernels, which takes long.
    let mut settled = false;
    for algorithm in algorithms {
        if settled {
            left.push(algorithm);
            continue;
        }
        match attempt(algorithm)? {
            Trial::Refused(error) => {
                tracing::debug!("cuDNN refuses {algorithm}: {error}");
                continue;
            }
            Trial::NoRoom => {}
            Trial::Ran(None) => {
                first.get_or_insert(left.len());
                settled = true;
            }
            Trial::Ran(Some(time)) => {
                tracing::debug!("{algorithm} takes {time:.3} ms");
                if time < quickest {
                    (first, quickest) = (Some(left.len()), time);
                }
            }
        }
        left.push(algorithm);
    }
    Ok(match first {
        Some(first) => {
            let taken = left.remove(first);
            kept(taken, left, taken.workspace)
        }
        None if left.is_empty() => VecDeque::new(),
        None => {
            let taken = left.remove(0);
            kept(taken, left, taken.workspace.max(SPARE))
        }
    })
}

/// The algorithm that is taken and those others that want no more than so many bytes.
fn kept(taken: Algorithm, others: Vec<Algorithm>, most: usize) -> VecDeque<Algorithm> {
    [taken].into_iter().chain(others.into_iter().filter(|algorithm| algorithm.workspace <= most)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TF32: Precision = Precision::Tf32;
    const FP32: Precision = Precision::Fp32;

    #[test]
    fn only_deterministic_ways_in_the_precision_asked_for_are_taken() {
        let algorithm = AlgorithmPerf { memory: 100, determinism: CUDNN_DETERMINISTIC, ..AlgorithmPerf::default() };
        assert!(admissible(&algorithm, TF32, 100) && admissible(&algorithm, FP32, 100));
        assert!(!admissible(&algorithm, TF32, 99));
        assert!(!admissible(&AlgorithmPerf { determinism: 0, ..algorithm }, TF32, 100));
        assert!(!admissible(&AlgorithmPerf { status: 3000, ..algorithm }, TF32, 100));
        let tensor = AlgorithmPerf { math: CUDNN_TENSOR_OP_MATH, ..algorithm };
        assert!(admissible(&tensor, TF32, 100) && !admissible(&tensor, FP32, 100));
        // CUDNN_TENSOR_OP_MATH_ALLOW_CONVERSION
        let half = AlgorithmPerf { math: 2, ..algorithm };
        assert!(!admissible(&half, TF32, 100) && !admissible(&half, FP32, 100));
        assert_eq!([math_type(FP32, Some(CUDNN_TENSOR_OP_MATH)), math_type(FP32, None)], [CUDNN_FMA_MATH; 2]);
        assert_eq!(math_type(TF32, Some(CUDNN_TENSOR_OP_MATH)), CUDNN_TENSOR_OP_MATH);
        assert_eq!([TF32, Precision::Bf16].map(|p| math_type(p, None)), [CUDNN_DEFAULT_MATH, CUDNN_TENSOR_OP_MATH]);
        assert_eq!((workspace_limit(8 << 30), workspace_limit(80 << 30)), (512 << 20, 1 << 30));
    }

    #[test]
    fn fused_multiply_adds_come_first_in_single_precision_and_nothing_twice() {
        let perf = |algorithm, math| AlgorithmPerf {
            algorithm,
            math,
            determinism: CUDNN_DETERMINISTIC,
            ..AlgorithmPerf::default()
        };
        let found = [perf(1, CUDNN_DEFAULT_MATH), perf(0, CUDNN_FMA_MATH), perf(1, CUDNN_FMA_MATH), perf(7, 1)];
        let list = |precision| -> Vec<(c_int, c_int)> {
            listed(&found, precision, 0).iter().map(|algorithm| (algorithm.number, algorithm.math)).collect()
        };
        let (default, fma) = (CUDNN_DEFAULT_MATH, CUDNN_FMA_MATH);
        assert_eq!(list(FP32), [(0, fma), (1, fma)]);
        assert_eq!(list(TF32), [(1, default), (0, fma), (1, fma), (7, CUDNN_TENSOR_OP_MATH)]);
    }

    fn algorithm(algorithm: c_int, workspace: usize) -> Algorithm {
        Algorithm { number: algorithm, math: CUDNN_DEFAULT_MATH, workspace }
    }

    /// What is left of algorithms where `attempt` says what comes of each, by its algorithm, and which were tried.
    fn left(algorithms: &[Algorithm], attempt: impl Fn(c_int) -> Trial) -> (Vec<c_int>, Vec<c_int>) {
        let mut attempts = Vec::new();
        let attempt = |algorithm: Algorithm| {
            attempts.push(algorithm.number);
            Ok(attempt(algorithm.number))
        };
        let left = tried(algorithms.to_vec(), attempt).unwrap().iter().map(|algorithm| algorithm.number).collect();
        (left, attempts)
    }

    fn refused() -> Trial {
        Trial::Refused(Error::config("CUDNN_STATUS_NOT_SUPPORTED"))
    }

    #[test]
    fn the_first_that_runs_is_taken_and_what_is_refused_goes() {
        let algorithms = [algorithm(5, 0), algorithm(1, 100), algorithm(0, 0), algorithm(2, 101)];
        let attempt = |algorithm| if algorithm == 5 { refused() } else { Trial::Ran(None) };
        assert_eq!(left(&algorithms, attempt), (vec![1, 0], vec![5, 1]));
        assert_eq!(left(&algorithms, |_| refused()), (vec![], vec![5, 1, 0, 2]));
        assert_eq!(left(&[], |_| refused()), (vec![], vec![]));
        // One behind another that there was no room to try is one that is known to run.
        let attempt = |algorithm| if algorithm == 5 { Trial::NoRoom } else { Trial::Ran(None) };
        assert_eq!(left(&algorithms, attempt), (vec![1, 5, 0], vec![5, 1]));
    }

    #[test]
    fn of_those_that_were_timed_the_quickest_is_taken() {
        let algorithms = [algorithm(5, 0), algorithm(1, 100), algorithm(0, 0), algorithm(2, 101)];
        let time = |algorithm| if algorithm == 0 { refused() } else { Trial::Ran(Some(algorithm as f32)) };
        assert_eq!(left(&algorithms, time), (vec![1, 5], vec![5, 1, 0, 2]));
    }

    #[test]
    fn behind_one_that_was_not_tried_some_that_want_more_are_kept() {
        let algorithms = [algorithm(0, 0), algorithm(1, SPARE), algorithm(2, SPARE + 1)];
        assert_eq!(left(&algorithms, |_| Trial::NoRoom).0, [0, 1]);
        assert_eq!(left(&[algorithm(1, 2 * SPARE), algorithm(2, 2 * SPARE)], |_| Trial::NoRoom).0, [1, 2]);
        let text = algorithm(6, 3 << 20).to_string();
        assert_eq!(text, "algorithm 6 in the default mathematics with 3.0 MiB of workspace");
    }
}
