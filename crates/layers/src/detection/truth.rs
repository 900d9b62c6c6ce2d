//! Ground truth: the boxes that a net is to find, rows of (image, class, instance, xmin, ymin, xmax, ymax, difficult) as
//! AnnotatedData gives them. A row of image −1 is none.

use lgm_core::{BlobSpec, Error, Float, Result, ensure};

use super::boxes::Corners;

/// Numbers of a row.
const ROW: usize = 8;

/// A box of an image.
#[derive(Clone, Copy, Debug)]
pub(super) struct Truth<T> {
    /// The image's number in the batch.
    pub image: usize,
    /// Its class.
    pub class: usize,
    /// Where it is.
    pub corners: Corners<T>,
    /// Whether it is marked as hard to recognize.
    pub difficult: bool,
}

/// Rows that may be in a bottom, after a check of its shape.
///
/// # Errors
/// When it does not consist of rows.
pub(super) fn rows_of(bottom: &BlobSpec, i: usize) -> Result<usize> {
    let shape = &bottom.shape;
    ensure!(
        shape.last() == Some(&ROW),
        "bottom {i}, the ground truth, must have rows of {ROW} numbers (image, class, instance, xmin, ymin, xmax, ymax, \
         difficult), found shape {shape}"
    );
    Ok(shape.count() / ROW)
}

/// The box of a row, or none.
///
/// # Errors
/// When its class is none of `classes`, or that of the background.
pub(super) fn truth<T: Float>(
    rows: &[T],
    row: usize,
    classes: usize,
    background: Option<usize>,
) -> Result<Option<Truth<T>>> {
    let numbers = &rows[ROW * row..][..ROW];
    let (image, class) = (numbers[0].trunc().f64(), numbers[1].trunc().f64());
    if image == -1.0 {
        return Ok(None);
    }
    ensure!(
        (0.0..9e15).contains(&image),
        "row {row} of the ground truth is of image {image}, where a number from 0, or -1 for no box, was expected"
    );
    if !(0.0..classes as f64).contains(&class) || background == Some(class as usize) {
        let background = background.map_or(String::new(), |b| format!(", of which {b} is the background"));
        return Err(Error::config(format!(
            "row {row} of the ground truth has class {class}, which is not one of the {classes} classes of num_classes\
             {background}; check the labels of the data"
        )));
    }
    Ok(Some(Truth {
        image: image as usize,
        class: class as usize,
        corners: std::array::from_fn(|k| numbers[3 + k]),
        difficult: numbers[7] != T::zero(),
    }))
}
