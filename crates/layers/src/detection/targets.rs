//! What AnchorTarget and ProposalTarget have in common: overlaps with the objects of an image, and draws.

use lgm_core::rng::Sequence;
use lgm_core::{BlobSpec, Device, DevicePtr, Float, Fwd, Result, args};

use super::boxes::{Corners, pixel_iou};
use super::lists::blocks;
use super::truth::{Object, Objects};
use crate::common::launch::extent;
use crate::common::loops::for_rows;

/// Operations of an intersection over union.
const IOU: usize = 16;

/// The overlap of every box with every object, a row for each box.
pub(super) fn overlaps<T: Float>(boxes: &[Corners<T>], objects: &[Object<T>]) -> Vec<T> {
    let mut found = vec![T::zero(); boxes.len() * objects.len()];
    for_rows(&mut found, objects.len(), IOU * objects.len(), |i, row| {
        row.iter_mut().zip(objects).for_each(|(found, object)| *found = pixel_iou(boxes[i], object.corners));
    });
    found
}

/// The largest of a row of overlaps, and which object's it is, the first of equals; 0 where there are no objects.
pub(super) fn most<T: Float>(row: &[T]) -> (T, usize) {
    let larger = |best: (T, usize), (i, &overlap): (usize, &T)| if overlap > best.0 { (overlap, i) } else { best };
    row.iter().enumerate().fold((T::zero(), 0), larger)
}

/// At most `count` of `among`, drawn without replacement, in their order.
pub(super) fn draw(draws: &mut Sequence, mut among: Vec<usize>, count: usize) -> Vec<usize> {
    if among.len() > count {
        for i in 0..count {
            let other = i + draws.below(among.len() - i);
            among.swap(i, other);
        }
        among.truncate(count);
        among.sort_unstable();
    }
    among
}

/// The objects of an image on a device: corners, classes and how many there are.
pub(super) struct Found {
    pub boxes: DevicePtr,
    pub kinds: DevicePtr,
    pub count: DevicePtr,
}

impl Found {
    /// The scratch that they take.
    pub fn scratch(objects: Objects, like: &BlobSpec) -> BlobSpec {
        like.with_shape([5 * objects.most() + 1])
    }

    /// Reads them from bottom 1 to scratch `at`; bottom 2 has the image's height and width, where they are shares of these.
    pub fn read(io: &mut Fwd<'_, Device>, at: usize, objects: Objects, classes: Option<usize>) -> Result<Found> {
        let boxes = io.scratch(at)?;
        let kinds = boxes.floats(4 * objects.most());
        let found = Found { boxes, kinds, count: kinds.floats(objects.most()) };
        let image = if io.bottoms.len() > 2 { Some(io.bottom(2)?) } else { None };
        let (rows, width, classes) = (extent(objects.most())?, extent(objects.width())?, extent(classes.unwrap_or(0))?);
        let args = args![boxes, kinds, found.count, io.bottom(1)?, image, rows, width, classes, io.call.fault];
        io.launch("target_objects", blocks(1, objects.most()), args)?;
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lgm_core::rng::Philox;

    #[test]
    fn draws_are_of_all_alike_and_in_order() {
        let among: Vec<usize> = (10..20).collect();
        let mut seen = [0; 10];
        for i in 0..2000 {
            let drawn = draw(&mut Philox::new(1, 2).from(i << 32), among.clone(), 3);
            assert!(drawn.len() == 3 && drawn.is_sorted_by(|a, b| a < b), "{drawn:?}");
            drawn.iter().for_each(|n| seen[n - 10] += 1);
        }
        assert!(seen.iter().all(|n| (500..700).contains(n)), "600 of each were expected: {seen:?}");
        let mut sequence = Philox::new(1, 2).from(0);
        assert_eq!(draw(&mut sequence, among.clone(), 10), among);
        assert_eq!(draw(&mut sequence, among, 0), []);
    }

    #[test]
    fn the_first_of_equals_is_taken() {
        assert_eq!(most(&[0.1, 0.5, 0.5, 0.2]), (0.5, 1));
        assert_eq!(most::<f64>(&[]), (0.0, 0));
    }
}
