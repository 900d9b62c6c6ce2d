//! Ground truth: the boxes that a net is to find, rows of (image, class, instance, xmin, ymin, xmax, ymax, difficult) as
//! AnnotatedData gives them. A row of image −1 is none.

use lgm_core::{BlobSpec, Error, Fault, Float, Result, ensure};

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
    if !(0.0..9e15).contains(&image) {
        return Err(not_an_image(row, image));
    }
    if !(0.0..classes as f64).contains(&class) || background == Some(class as usize) {
        return Err(not_a_class(row, class, classes, background));
    }
    Ok(Some(Truth {
        image: image as usize,
        class: class as usize,
        corners: std::array::from_fn(|k| numbers[3 + k]),
        difficult: numbers[7] != T::zero(),
    }))
}

/// What is wrong with a row of ground truth that is of no image.
pub(super) fn not_an_image(row: usize, image: f64) -> Error {
    Error::config(format!(
        "row {row} of the ground truth is of image {image}, where a number from 0, or -1 for no box, was expected"
    ))
}

/// What is wrong with one of a class that there is not.
pub(super) fn not_a_class(row: usize, class: f64, classes: usize, background: Option<usize>) -> Error {
    let background = background.map_or(String::new(), |b| format!(", of which {b} is the background"));
    Error::config(format!(
        "row {row} of the ground truth has class {class}, which is not one of the {classes} classes of num_classes\
         {background}; check the labels of the data"
    ))
}

/// An object on an image, of which the first and the last pixel belong to it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Object<T> {
    /// Where it is, in pixels.
    pub corners: Corners<T>,
    /// Its class, at least 1.
    pub class: usize,
}

/// Numbers of a row of (x1, y1, x2, y2, class), in pixels.
const PIXELS: usize = 5;

/// How the objects of one image are given: as rows of pixels, or as AnnotatedData gives them.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Objects {
    row: usize,
    rows: usize,
}

impl Objects {
    /// Those of bottom `i`, by its shape.
    ///
    /// # Errors
    /// When it consists of neither kind of rows.
    pub fn of(bottom: &BlobSpec, i: usize) -> Result<Objects> {
        let row = bottom.shape.last().copied().unwrap_or_default();
        ensure!(
            row == PIXELS || row == ROW,
            "bottom {i}, the objects, must have rows of {PIXELS} numbers (x1, y1, x2, y2, class) in pixels, or of {ROW} \
             (image, class, instance, xmin, ymin, xmax, ymax, difficult) as fractions of the image, found shape {}",
            bottom.shape
        );
        Ok(Objects { row, rows: bottom.shape.count() / row })
    }

    /// The most there can be.
    pub fn most(self) -> usize {
        self.rows
    }

    /// Numbers of a row.
    pub fn width(self) -> usize {
        self.row
    }

    /// Whether they are given in pixels.
    pub fn are_of_pixels(self) -> bool {
        self.row == PIXELS
    }

    /// The objects of an image, of a height and a width. A row of a class below 1 is none, and so is one of image −1, or marked as
    /// difficult.
    ///
    /// # Errors
    /// When an object has no extent, is of another image, or of none of `classes`.
    pub fn read<T: Float>(self, rows: &[T], image: Option<[T; 2]>, classes: Option<usize>) -> Result<Vec<Object<T>>> {
        let mut found = Vec::new();
        for (i, row) in rows.chunks_exact(self.row).enumerate() {
            let (corners, class) = if self.are_of_pixels() {
                ([row[0], row[1], row[2], row[3]], row[4])
            } else {
                if row[0] != T::zero() && row[0] != -T::one() {
                    return Err(other_image("row", i, "of the objects", row[0].f64()));
                }
                if row[0] != T::zero() || row[7] != T::zero() {
                    continue;
                }
                let [height, width] = image.ok_or_else(|| Error::internal("fractions of an image without extents"))?;
                let last = |v: T| v - T::one();
                ([row[3] * width, row[4] * height, last(row[5] * width), last(row[6] * height)], row[1])
            };
            let class = class.f64().trunc();
            if class < 1.0 {
                continue;
            }
            let [x1, y1, x2, y2] = corners.map(|v| v.f64());
            if !(x2 - x1 > -1.0 && y2 - y1 > -1.0 && corners.iter().all(|v| v.is_finite())) {
                return Err(no_box(i, &format!(": x1 {x1}, y1 {y1}, x2 {x2} and y2 {y2}")));
            }
            let known = known(classes);
            if class >= known || class.is_nan() {
                return Err(not_known(i, class, known));
            }
            found.push(Object { corners, class: class as usize });
        }
        Ok(found)
    }
}

fn known(classes: Option<usize>) -> f64 {
    classes.map_or(9e15, |classes| classes as f64)
}

/// What is wrong with something in a batch of one image that is of another.
pub(super) fn other_image(what: &str, i: usize, of: &str, image: f64) -> Error {
    let of = if of.is_empty() { String::new() } else { format!(" {of}") };
    Error::config(format!(
        "{what} {i}{of} is of image {image}, where there is but one, number 0; give the layer one image at a time"
    ))
}

fn no_box(i: usize, found: &str) -> Error {
    Error::config(format!("row {i} of the objects is no box{found}"))
}

fn not_known(i: usize, class: f64, known: f64) -> Error {
    Error::config(format!(
        "row {i} of the objects has class {class}, which is not one of the {known} classes, the background counted; check the \
         labels of the data"
    ))
}

/// Kinds of faults that kernels report of objects and regions; a first is that a row is no box.
const OTHER_IMAGE: u32 = 2;
const NO_CLASS: u32 = 3;
const OTHER_REGION: u32 = 4;

/// What is wrong with objects, or with regions, that a kernel could not take.
pub(super) fn explain(fault: Fault, classes: Option<usize>) -> Error {
    let (i, detail) = (fault[1] as usize, f64::from(f32::from_bits(fault[2])));
    match fault[0] {
        OTHER_IMAGE => other_image("row", i, "of the objects", detail),
        NO_CLASS => not_known(i, detail, known(classes)),
        OTHER_REGION => other_image("region", i, "", detail),
        _ => no_box(i, ", whose last corner must not be before its first"),
    }
}
