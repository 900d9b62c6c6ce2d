//! Class labels, which arrive as floating-point numbers.

use lgm_core::{Arg, BlobSpec, Error, Fault, Float, Result, ensure};

use super::launch::extent;

/// Which labels count, and what class each names.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Labels {
    /// How many classes there are.
    pub classes: usize,
    /// A label that does not count.
    pub ignored: Option<i32>,
    /// The label of the first class; then others than those of the classes do not count. Else it is 0, and they are errors.
    pub start: Option<i32>,
}

impl Labels {
    /// All labels of `classes` classes.
    pub fn of(classes: usize) -> Labels {
        Labels { classes, ..Labels::default() }
    }

    /// The class that element `i` of a label blob names, or none where it does not count.
    ///
    /// # Errors
    /// When it is neither.
    pub fn class<T: Float>(&self, labels: &[T], i: usize) -> Result<Option<usize>> {
        let label = labels[i].trunc().f64();
        if self.ignored.is_some_and(|ignored| label == f64::from(ignored)) {
            return Ok(None);
        }
        match self.start {
            Some(start) => {
                let from = label - f64::from(start);
                Ok((0.0..self.classes as f64).contains(&from).then_some(from as usize))
            }
            None => class_at(labels, i, self.classes).map(Some),
        }
    }

    /// How many labels count.
    ///
    /// # Errors
    /// When one names no class.
    pub fn count<T: Float>(&self, labels: &[T]) -> Result<usize> {
        (0..labels.len()).try_fold(0, |n, i| Ok(n + usize::from(self.class(labels, i)?.is_some())))
    }

    /// The class of element `i`, in labels that were counted.
    pub fn known<T: Float>(&self, labels: &[T], i: usize) -> Option<usize> {
        self.class(labels, i).ok().flatten()
    }

    /// The last arguments of kernels that read labels.
    ///
    /// # Errors
    /// When there are more classes than kernels count.
    pub fn args(&self) -> Result<[Arg; 5]> {
        Ok([
            extent(self.classes)?.into(),
            u32::from(self.ignored.is_some()).into(),
            self.ignored.unwrap_or(0).into(),
            u32::from(self.start.is_some()).into(),
            self.start.unwrap_or(0).into(),
        ])
    }

    /// Arguments of a kernel that reads labels, those of all such last.
    ///
    /// # Errors
    /// As for [`Labels::args`].
    pub fn after(&self, args: &[Arg]) -> Result<Vec<Arg>> {
        Ok([args, &self.args()?].concat())
    }
}

/// The class that element `i` of a label blob names, its fraction cut off as in Caffe.
///
/// # Errors
/// When it is not one of `classes` classes.
pub(crate) fn class_at<T: Float>(labels: &[T], i: usize, classes: usize) -> Result<usize> {
    let label = labels[i].trunc().f64();
    if (0.0..classes as f64).contains(&label) { Ok(label as usize) } else { Err(not_a_class(labels[i], i, classes)) }
}

/// Scores of items, an element a class, with a label for each item: how losses over whole items have them.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Items {
    /// How many items there are.
    pub items: usize,
    /// How many classes: the elements of an item.
    pub classes: usize,
}

impl Items {
    /// Of scores and labels, the first two bottoms.
    ///
    /// # Errors
    /// When the scores have no batch axis, or there is not a label for each item.
    pub fn of(bottoms: &[BlobSpec]) -> Result<Items> {
        let shape = &bottoms[0].shape;
        ensure!(!shape.is_empty(), "the scores must have a batch axis, found a scalar");
        check_count(&bottoms[1], shape[0], &bottoms[0])?;
        Ok(Items { items: shape[0], classes: shape.count_from(1) })
    }

    /// How many scores.
    pub fn count(&self) -> usize {
        self.items * self.classes
    }

    /// The number of items, but at least 1: what losses are divided by.
    pub fn z(&self) -> f32 {
        self.items.max(1) as f32
    }

    /// The class of item `i`.
    ///
    /// # Errors
    /// When its label names none.
    pub fn class<T: Float>(&self, labels: &[T], i: usize) -> Result<usize> {
        class_at(labels, i, self.classes)
    }

    /// Checks every label.
    ///
    /// # Errors
    /// When one names no class.
    pub fn check<T: Float>(&self, labels: &[T]) -> Result<()> {
        Labels::of(self.classes).count(labels).map(drop)
    }

    /// The class of item `i`, in labels that were checked.
    pub fn known<T: Float>(&self, labels: &[T], i: usize) -> Option<usize> {
        Labels::of(self.classes).known(labels, i)
    }

    /// See [`Labels::after`].
    ///
    /// # Errors
    /// As there.
    pub fn after(&self, args: &[Arg]) -> Result<Vec<Arg>> {
        Labels::of(self.classes).after(args)
    }
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

/// Checks that labels are of as many items as the predictions, whose order they would not be in otherwise.
///
/// # Errors
/// When they are not.
pub(crate) fn check_items(labels: &BlobSpec, of: &BlobSpec) -> Result<()> {
    let items = of.shape.first();
    ensure!(
        labels.shape.first() == items,
        "labels: expected a first extent of {}, as of the predictions of shape {}, found shape {}; a Reshape gives them one",
        items.copied().unwrap_or(1),
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
