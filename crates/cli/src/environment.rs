//! Variables of the environment that change how a run computes: a value that says nothing is warned of, and counts as not
//! set.

/// Variables that are 0 or 1.
const SWITCHES: [&str; 4] = ["LGM_FUSE", "LGM_WINOGRAD", "LGM_GRAPH", "LGM_CUDNN_BENCHMARK"];
/// Variables with the number of threads, the first that is set and makes sense.
const THREADS: [&str; 2] = ["LGM_NUM_THREADS", "OMP_NUM_THREADS"];

/// Warns of values that cannot be read.
pub fn check() {
    let value = |name: &str| std::env::var_os(name).map(|value| value.to_string_lossy().into_owned());
    warnings(value, lgm_cpu::num_threads).iter().for_each(|warning| tracing::warn!("{warning}"));
}

fn warnings(value: impl Fn(&str) -> Option<String>, taken: impl Fn() -> usize) -> Vec<String> {
    let mut warnings = Vec::new();
    for name in THREADS {
        let Some(value) = value(name).filter(|value| !value.is_empty()) else { continue };
        if value.trim().parse().is_ok_and(|threads: usize| threads > 0) {
            break;
        }
        warnings.push(format!("{name}={value}: expected a number of threads above 0; {} are taken", taken()));
    }
    for name in SWITCHES {
        if let Some(value) = value(name).filter(|value| !["", "0", "1"].contains(&value.as_str())) {
            warnings.push(format!("{name}={value}: expected 0 or 1; it counts as not set"));
        }
    }
    warnings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_that_say_nothing_are_warned_of() {
        for (set, expected) in [
            (&[("LGM_NUM_THREADS", "4"), ("OMP_NUM_THREADS", "x"), ("LGM_FUSE", "0"), ("LGM_GRAPH", "1")][..], &[][..]),
            (&[("LGM_NUM_THREADS", ""), ("LGM_WINOGRAD", "")], &[]),
            (
                &[("LGM_NUM_THREADS", "x"), ("OMP_NUM_THREADS", "3")],
                &["LGM_NUM_THREADS=x: expected a number of threads above 0; 3 are taken"],
            ),
            (&[("OMP_NUM_THREADS", "0")], &["OMP_NUM_THREADS=0: expected a number of threads above 0; 3 are taken"]),
            (
                &[("LGM_FUSE", "no"), ("LGM_CUDNN_BENCHMARK", "true")],
                &[
                    "LGM_FUSE=no: expected 0 or 1; it counts as not set",
                    "LGM_CUDNN_BENCHMARK=true: expected 0 or 1; it counts as not set",
                ],
            ),
        ] {
            let value = |name: &str| set.iter().find(|(set, _)| *set == name).map(|(_, value)| value.to_string());
            assert_eq!(warnings(value, || 3), expected, "{set:?}");
        }
    }
}
