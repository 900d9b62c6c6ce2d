//! Indices into an axis, which arrive as floating-point numbers.

use lgm_core::{Error, Fault, Float, Result};

/// The index that element `i` of a blob gives, its fraction cut off as in Caffe.
///
/// # Errors
/// When it is none of an axis of `extent` elements.
pub(crate) fn index_at<T: Float>(indices: &[T], i: usize, extent: usize) -> Result<usize> {
    let index = indices[i].f64();
    if (0.0..extent as f64).contains(&index) { Ok(index as usize) } else { Err(not_an_index(indices[i], i, extent)) }
}

/// What the kernels that read indices report: that the one in word 1, which is word 2, is none.
pub(crate) fn explain(fault: Fault, extent: usize) -> Error {
    not_an_index(f32::from_bits(fault[2]), fault[1] as usize, extent)
}

#[cold]
fn not_an_index<T: Float>(index: T, i: usize, extent: usize) -> Error {
    Error::config(format!(
        "index {index} at position {i} of the second bottom is not one of the {extent} of the first, from 0 to {}; \
         check the data that gives the indices",
        extent.saturating_sub(1)
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn indices_outside_the_axis_are_named() {
        assert_eq!(index_at(&[0.0f32, 2.9], 1, 3).unwrap(), 2);
        for bad in [3.0, -0.5, f32::NAN, f32::INFINITY] {
            let error = index_at(&[0.0, bad], 1, 3).unwrap_err().to_string();
            assert!(error.contains(&format!("index {bad} at position 1")) && error.contains("0 to 2"), "{error}");
        }
        assert!(explain([1, 4, 7f32.to_bits(), 0], 3).to_string().contains("index 7 at position 4"));
    }
}
