//! Max pooling, and its gradient by the indices of the maxima.

use std::ops::Range;

use smallvec::SmallVec;

use super::PoolGeometry;
use super::windows::{LANES, OfWindow, for_windows};
use crate::kernel::vectorized;
use crate::scratch::Scratch;
use crate::{BLOCK, Float, for_each_part_of, for_each_row};

impl PoolGeometry {
    /// Whether windows of 2 × 2 cover the input once, without a gap.
    fn is_in_squares(&self) -> bool {
        self.windows.iter().all(|w| (w.kernel, w.stride, w.pad) == (2, 2, 0) && w.input == 2 * w.output)
    }

    /// Where each window of a row begins, for [`is_in_squares`](Self::is_in_squares).
    fn square_columns<T: Float>(&self) -> SmallVec<[T; 64]> {
        (0..self.windows[1].output).map(|j| T::of(2.0 * j as f64)).collect()
    }

    /// y = the largest of each window, and `index` = where in the plane it is, the first if there are several.
    ///
    /// A window without an element above −[`f32::MAX`] (all NaN, say) gives that value and the index −1, as in Caffe. An
    /// index is exact in `f32` up to planes of 2²⁴ elements.
    ///
    /// # Panics
    /// When `x` is not `y.len() / output_area()` planes, or `index` is not as long as `y`.
    pub fn max_forward<T: Float>(&self, x: &[T], y: &mut [T], index: Option<&mut [T]>) {
        let (area, out) = (self.input_area(), self.output_area());
        assert_eq!(x.len() / area.max(1), y.len() / out.max(1));
        let mut unused;
        let index = match index {
            Some(index) => index,
            None => {
                unused = Scratch::<T>::new(y.len());
                &mut unused[..]
            }
        };
        assert_eq!(index.len(), y.len());
        if self.is_in_squares() {
            let (columns, at_once) = (self.square_columns(), (BLOCK / area).max(1));
            return for_each_part_of([y, index], out * at_once, |group, [y, index]| {
                let planes = y.chunks_exact_mut(out).zip(index.chunks_exact_mut(out));
                let x = &x[group * at_once * area..];
                planes.zip(x.chunks_exact(area)).for_each(|((y, index), x)| largest_of_squares(x, &columns, y, index));
            });
        }
        for_each_part_of([y, index], LANES * out, |group, [y, index]| {
            let x = &x[group * LANES * area..][..y.len() / out * area];
            match self.windows.map(|w| w.kernel) {
                [2, 2] => max_planes(&[(); 2], self, x, y, index),
                [3, 3] => max_planes(&[(); 3], self, x, y, index),
                _ => max_planes(&[], self, x, y, index),
            }
        });
    }

    /// dx from dy and the indices of [`max_forward`](Self::max_forward), overwriting dx.
    ///
    /// # Panics
    /// When the slices are not of as many planes.
    pub fn max_backward<T: Float>(&self, dy: &[T], index: &[T], dx: &mut [T]) {
        let (area, out) = (self.input_area(), self.output_area());
        assert!(dx.len() / area.max(1) == dy.len() / out.max(1) && index.len() == dy.len());
        let plane = |n: usize| (&dy[n * out..(n + 1) * out], &index[n * out..(n + 1) * out]);
        if self.is_in_squares() {
            let columns = self.square_columns();
            return for_each_row(dx, area, |n, dx| pass_to_squares(plane(n).0, plane(n).1, &columns, dx));
        }
        for_each_row(dx, area, |n, dx| {
            dx.fill(T::zero());
            add_at(plane(n).0, plane(n).1, dx);
        });
    }
}

/// The largest of some positions of [`LANES`] planes side by side, and where each is, the first of several; where none is
/// above −[`f32::MAX`], that and −1. The positions are `rows` × `columns` of a region of `width` that begins with row `top`
/// of the planes.
#[inline(always)]
fn largest<T: Float>(
    region: &[[T; LANES]],
    top: usize,
    width: usize,
    rows: Range<usize>,
    columns: Range<usize>,
) -> [[T; LANES]; 2] {
    let (mut values, mut places) = ([T::of(-f32::MAX as f64); LANES], [-T::one(); LANES]);
    for row in rows {
        for column in columns.clone() {
            let (at, here) = ((row - top) * width + column, T::of((row * width + column) as f64));
            for l in 0..LANES {
                let v = region[at][l];
                let above = v > values[l];
                values[l] = if above { v } else { values[l] };
                places[l] = if above { here } else { places[l] };
            }
        }
    }
    [values, places]
}

/// The largest of each window of K × K, or of any if K is 0, and its place.
struct Largest<const K: usize>;

impl<const K: usize> OfWindow<2> for Largest<K> {
    #[inline(always)]
    fn take<T: Float>(
        g: &PoolGeometry,
        region: &[[T; LANES]],
        top: usize,
        _: [usize; 2],
        rows: Range<usize>,
        columns: Range<usize>,
    ) -> [[T; LANES]; 2] {
        if K > 0 && rows.len() == K && columns.len() == K {
            let (row, column) = (rows.start, columns.start);
            largest(region, top, g.windows[1].input, row..row + K, column..column + K)
        } else {
            largest(region, top, g.windows[1].input, rows, columns)
        }
    }
}

vectorized! {
    /// Max pooling of [`LANES`] planes at most, for windows of K × K, or of any if K is 0.
    fn max_planes[T: Float, const K: usize](
        _kernel: &[(); K],
        g: &PoolGeometry,
        x: &[T],
        y: &mut [T],
        index: &mut [T],
    ) {
        for_windows::<T, Largest<K>, 2>(g, x, [y, index]);
    }
}

/// An index as an integer, −1 being the largest: in this sum it is what the lowest bits hold. A cast would mind values
/// that no integer has, one at a time.
#[inline(always)]
fn whole_number<T: Float>(index: T) -> u32 {
    (index.f64() + 1.5 * (1u64 << 52) as f64).to_bits() as u32
}

vectorized! {
    /// Adds to dx each element of dy at its index; a window without a maximum has index −1 and passes nothing back.
    fn add_at[T: Float](dy: &[T], index: &[T], dx: &mut [T]) {
        let mut add = |dy: T, at: u32| {
            if let Some(dx) = dx.get_mut(at as usize) {
                *dx += dy;
            }
        };
        let ((dy, last_dy), (index, last)) = (dy.as_chunks::<LANES>(), index.as_chunks::<LANES>());
        for (dy, index) in dy.iter().zip(index) {
            let at = index.map(whole_number);
            (0..LANES).for_each(|l| add(dy[l], at[l]));
        }
        last_dy.iter().zip(last).for_each(|(&dy, &i)| add(dy, whole_number(i)));
    }
}

vectorized! {
    /// What [`largest`] finds, in a plane that windows of 2 × 2 cover without a gap; `columns` is where each window of a row
    /// begins.
    fn largest_of_squares[T: Float](x: &[T], columns: &[T], y: &mut [T], index: &mut [T]) {
        let (wide, width) = (columns.len(), 2 * columns.len());
        let down = T::of(width as f64);
        for (i, rows) in x.chunks_exact(2 * width).enumerate() {
            let (upper, lower) = rows.split_at(width);
            let begins = T::of((2 * i * width) as f64);
            let found = y[i * wide..][..wide].iter_mut().zip(&mut index[i * wide..][..wide]);
            let squares = upper.as_chunks::<2>().0.iter().zip(lower.as_chunks::<2>().0);
            for (((y, index), (upper, lower)), &column) in found.zip(squares).zip(columns) {
                let at = begins + column;
                let (mut value, mut place) = (T::of(-f32::MAX as f64), -T::one());
                for (v, here) in [
                    (upper[0], at),
                    (upper[1], at + T::one()),
                    (lower[0], at + down),
                    (lower[1], at + down + T::one()),
                ] {
                    let above = v > value;
                    (value, place) = (if above { v } else { value }, if above { here } else { place });
                }
                (*y, *index) = (value, place);
            }
        }
    }
}

vectorized! {
    /// dx of a plane that windows of 2 × 2 cover without a gap: each element of dy at its index, and 0 elsewhere. `columns`
    /// is where each window of a row begins.
    fn pass_to_squares[T: Float](dy: &[T], index: &[T], columns: &[T], dx: &mut [T]) {
        let (wide, width) = (columns.len(), 2 * columns.len());
        let down = T::of(width as f64);
        for (i, rows) in dx.chunks_exact_mut(2 * width).enumerate() {
            let (upper, lower) = rows.split_at_mut(width);
            let begins = T::of((2 * i * width) as f64);
            let (dy, index) = (&dy[i * wide..][..wide], &index[i * wide..][..wide]);
            let squares = upper.as_chunks_mut::<2>().0.iter_mut().zip(lower.as_chunks_mut::<2>().0);
            for ((((upper, lower), &dy), &index), &column) in squares.zip(dy).zip(index).zip(columns) {
                let at = index - begins - column;
                let passed = |to: T| if at == to { dy } else { T::zero() };
                *upper = [passed(T::zero()), passed(T::one())];
                *lower = [passed(down), passed(down + T::one())];
            }
        }
    }
}
