//! Comparisons of what layers compute.

use crate::{Case, Inputs, Outputs};

/// Refuses what was not written.
pub(crate) fn finite(case: &Case, what: &str, values: &[f64]) {
    if let Some(i) = values.iter().position(|v| v.is_nan()) {
        panic!("{}: element {i} of {what} was not written, or was computed from memory never written", case.name);
    }
}

/// Refuses bits that differ, in what both have.
pub(crate) fn same(case: &Case, how: &str, plain: &Outputs, other: &Outputs) {
    let bits = |what: &str, i: usize, a: &[f64], b: &[f64]| {
        for (j, (x, y)) in a.iter().zip(b).enumerate() {
            assert!(x.to_bits() == y.to_bits(), "{}: {what} {i} element {j} is {x}, but {y} with {how}", case.name);
        }
    };
    (0..plain.tops.len()).for_each(|i| bits("top", i, &plain.tops[i], &other.tops[i]));
    (0..plain.params.len()).for_each(|i| bits("parameter", i, &plain.params[i], &other.params[i]));
    for (i, (a, b)) in plain.bottom_diffs.iter().zip(&other.bottom_diffs).enumerate() {
        if let (Some(a), Some(b)) = (a, b) {
            bits("bottom diff", i, a, b);
        }
    }
    for (i, (a, b)) in plain.param_diffs.iter().zip(&other.param_diffs).enumerate() {
        if let (Some(a), Some(b)) = (a, b) {
            bits("parameter diff", i, a, b);
        }
    }
}

/// What backward added to a parameter's diff.
pub(crate) fn added(inputs: &Inputs, out: &Outputs, i: usize) -> Option<Vec<f64>> {
    let after = out.param_diffs.get(i)?.as_ref()?;
    Some(after.iter().zip(&inputs.param_diffs[i]).map(|(a, b)| a - b).collect())
}

/// Compares two arrays: the largest difference, relative to the largest magnitude wanted (or 0.01 if that is more).
///
/// # Panics
/// When it exceeds `tolerance`, naming `what`, the element and both values.
pub fn assert_close(what: &str, found: &[f64], want: &[f64], tolerance: f64) {
    assert_eq!(found.len(), want.len(), "{what}: number of elements");
    let scale = want.iter().fold(1e-2f64, |m, v| m.max(v.abs()));
    for (i, (f, w)) in found.iter().zip(want).enumerate() {
        assert!((f - w).abs() <= tolerance * scale, "{what}: element {i} is {f}, expected {w}");
    }
}
