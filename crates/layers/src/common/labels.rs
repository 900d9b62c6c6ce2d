//! Class labels, which arrive as floating-point numbers.

use lgm_core::{BlobSpec, Error, Fault, Float, Result, ensure};

/// The class that element `i` of a label blob names, its fraction cut off as in Caffe.
///
/// # Errors
/// When it is not one of `classes` classes.
pub(crate) fn class_at<T: Float>(labels: &[T], i: usize, classes: usize) -> Result<usize> {
    let label = labels[i].trunc().f64();
    if (0.0..classes as f64).contains(&label) { Ok(label as usize) } else { Err(not_a_class(labels[i], i, classes)) }
}

/// What the kernels that read labels report: that the label of an item, in words 1 and 2, names no class.
pub(crate) fn explain(fault: Fault, classes: usize) -> Error {
    not_a_class(f32::from_bits(fault[2]), fault[1] as usize, classes)
}

#[cold]
fn not_a_class<T: Float>(label: T, i: usize, classes: usize) -> Error {
    let last = classes.saturating_sub(1);
    Error::config(format!(
        "label {label} of item {i} of the batch is not one of the {classes} classes, 0 to {last}; check the labels of \
         the data and the number of outputs of the net"
    ))
}

/// Checks that a label blob has a label for each of `rows` rows of `of`.
///
/// # Errors
/// When it has not.
pub(crate) fn check_count(labels: &BlobSpec, rows: usize, of: &BlobSpec) -> Result<()> {
    let found = labels.shape.count();
    ensure!(
        found == rows,
        "labels: expected {rows}, one for each prediction of the first bottom of shape {}, found {found} in shape {}",
        of.shape,
        labels.shape
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_outside_the_classes_are_named() {
        assert_eq!(class_at(&[0.0f32, 2.0, 1.5], 2, 3).unwrap(), 1);
        assert_eq!(class_at(&[-0.5f32], 0, 3).unwrap(), 0);
        for bad in [3.0, -1.0, f32::NAN, f32::INFINITY] {
            let err = class_at(&[0.0, bad], 1, 3).unwrap_err().to_string();
            assert!(err.contains(&format!("label {bad} of item 1")) && err.contains("0 to 2"), "{err}");
        }
        assert!(class_at(&[0.0f32], 0, 0).is_err());
    }
}
