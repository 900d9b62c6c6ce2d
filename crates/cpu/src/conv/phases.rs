//! A row of a strided convolution's input with columns of equal remainder by the stride together: what a tap takes from the
//! row for consecutive outputs, or adds to it, is then contiguous.

use std::ops::Range;

use lgm_core::Window;
use smallvec::SmallVec;

use crate::Float;
use crate::kernel::{Micro, vectorized};

/// The columns that some windows reach over, `stride` phases of `len` columns.
#[derive(Clone, Debug)]
pub(super) struct Phases {
    stride: usize,
    len: usize,
    /// Where the elements of each tap begin.
    taps: SmallVec<[usize; 64]>,
    /// The column of the row that is the first of them; negative in the padding.
    first: isize,
}

impl Phases {
    /// Those of the windows of `outputs`.
    pub fn new(columns: &Window, outputs: Range<usize>) -> Phases {
        let Window { stride, dilation, pad, .. } = *columns;
        let len = outputs.len() + (columns.reach() - 1) / stride;
        let tap = |at: usize| at % stride * len + at / stride;
        let taps = (0..columns.kernel).map(|j| tap(j * dilation)).collect();
        Phases { stride, len, taps, first: (outputs.start * stride) as isize - pad }
    }

    /// Columns of all phases.
    pub fn count(&self) -> usize {
        self.stride * self.len
    }

    /// Where the elements of each tap begin among the phases.
    pub fn taps(&self) -> &[usize] {
        &self.taps
    }

    /// The columns that a row of `width` has of these, and the row's first among them.
    fn inside(&self, width: usize) -> (Range<usize>, usize) {
        let from = (-self.first).max(0) as usize;
        let end = (width as isize - self.first).clamp(0, self.count() as isize) as usize;
        (from.min(end)..end, self.first.max(0) as usize)
    }

    /// The phases of a row, zero where it has no column; `line` is scratch of as many elements.
    pub fn split<T: Float>(&self, micro: &Micro<T>, row: &[T], line: &mut [T], phases: &mut [T]) {
        let (inside, start) = self.inside(row.len());
        let (before, after) = (inside.start, inside.end);
        line[..before].fill(T::zero());
        line[after..self.count()].fill(T::zero());
        line[inside].copy_from_slice(&row[start.min(row.len())..][..after - before]);
        transpose(micro, (self.len, self.stride), &line[..self.count()], &mut phases[..self.count()]);
    }

    /// Adds phases to a row, or overwrites it with them and with zeros where no window reaches; `line` as above.
    pub fn join<T: Float>(&self, micro: &Micro<T>, phases: &[T], line: &mut [T], row: &mut [T], add: bool) {
        transpose(micro, (self.stride, self.len), &phases[..self.count()], &mut line[..self.count()]);
        let (inside, start) = self.inside(row.len());
        let start = start.min(row.len());
        if !add {
            row[..start].fill(T::zero());
            row[start + inside.len()..].fill(T::zero());
            row[start..][..inside.len()].copy_from_slice(&line[inside]);
        } else {
            row[start..].iter_mut().zip(&line[inside]).for_each(|(row, &v)| *row += v);
        }
    }
}

/// dst = srcᵀ, src being so many rows and columns.
fn transpose<T: Float>(micro: &Micro<T>, (rows, columns): (usize, usize), src: &[T], dst: &mut [T]) {
    match (rows, columns) {
        (1, _) | (_, 1) => dst.copy_from_slice(src),
        (2, _) => interleave(src, dst.as_chunks_mut::<2>().0),
        (4, _) => interleave(src, dst.as_chunks_mut::<4>().0),
        (_, 2) => deal(src.as_chunks::<2>().0, dst),
        (_, 4) => deal(src.as_chunks::<4>().0, dst),
        _ => {
            assert!(src.len() >= rows * columns && dst.len() >= rows * columns);
            // SAFETY: both spans were just checked; the table is that of an available instruction set.
            unsafe { (micro.transpose)(rows, columns, src.as_ptr(), columns, dst.as_mut_ptr(), rows) }
        }
    }
}

vectorized! {
    /// Rows to groups of an element of each.
    fn interleave[T: Float, const N: usize](src: &[T], groups: &mut [[T; N]]) {
        let rows: [&[T]; N] = std::array::from_fn(|i| &src[i * groups.len()..][..groups.len()]);
        for (t, group) in groups.iter_mut().enumerate() {
            for i in 0..N {
                group[i] = rows[i][t];
            }
        }
    }
}

vectorized! {
    /// Groups of an element of each row to the rows.
    fn deal[T: Float, const N: usize](groups: &[[T; N]], dst: &mut [T]) {
        for (i, row) in dst.chunks_exact_mut(groups.len()).enumerate().take(N) {
            row.iter_mut().zip(groups).for_each(|(v, group)| *v = group[i]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::{Kernel, micro};

    #[test]
    fn taps_find_their_columns_and_rows_come_back() {
        for (input, kernel, stride, pad, dilation) in [
            (9, 4, 2, 1, 1),
            (17, 8, 4, 2, 1),
            (20, 6, 3, 4, 2),
            (50, 1, 17, 0, 1),
            (6, 2, 5, 5, 3),
            (70, 40, 20, 10, 1),
        ] {
            let w = Window::new(input, kernel, stride, pad, dilation).unwrap();
            let row: Vec<f32> = (1..=input).map(|v| v as f32).collect();
            for outputs in [0..w.output, w.output / 2..w.output] {
                let p = Phases::new(&w, outputs.clone());
                for kernel in Kernel::ALL.into_iter().filter(|k| k.is_available()) {
                    let micro = micro::<f32>(kernel);
                    let mut scratch = vec![f32::NAN; 2 * p.count()];
                    let (line, phases) = scratch.split_at_mut(p.count());
                    p.split(micro, &row, line, phases);
                    for (t, o) in outputs.clone().enumerate() {
                        for j in 0..w.kernel {
                            let want = w.position(o, j).map_or(0.0, |at| row[at]);
                            assert_eq!(phases[p.taps()[j] + t], want, "{w:?}, output {o}, tap {j}");
                        }
                    }
                    let mut back = vec![7.0; input];
                    p.join(micro, phases, line, &mut back, false);
                    assert!(back.iter().zip(&row).all(|(b, r)| b == r || *b == 0.0));
                    let mut sum = row.clone();
                    p.join(micro, phases, line, &mut sum, true);
                    assert!(sum.iter().zip(&row).zip(&back).all(|((s, r), b)| *s == r + b), "{w:?}");
                }
            }
        }
    }
}
