//! What one step of a recurrent layer does to each unit of each stream. A row is a stream; its four gates of an LSTM, input,
//! forget, output and candidate, follow one another.

use crate::Float;
use crate::kernel::vectorized;
use crate::math::{sigmoid, tanh};
use crate::parallel::{Shared, tasks};

/// Units that a task takes, about.
const UNITS: usize = 2048;

/// Calls `row` with the number of each of `rows` rows of `width` units, in parallel.
fn rows(rows: usize, width: usize, row: impl Fn(usize) + Sync) {
    let at_once = (UNITS / width.max(1)).max(1);
    tasks(rows.div_ceil(at_once), rows * width > UNITS, |t| {
        (t * at_once..((t + 1) * at_once).min(rows)).for_each(&row);
    });
}

/// Row `i` of a slice, or none of an empty one.
fn row<T>(all: &[T], i: usize, width: usize) -> &[T] {
    if all.is_empty() { all } else { &all[i * width..][..width] }
}

/// Row `i` of a shared slice, or none of an empty one.
///
/// # Safety
/// No other task may touch the row while it lives.
#[allow(clippy::mut_from_ref)]
unsafe fn row_mut<'a, T>(all: &'a Shared<'_, T>, empty: bool, i: usize, width: usize) -> &'a mut [T] {
    // SAFETY: by the caller's promise.
    unsafe { all.part(if empty { 0..0 } else { i * width..(i + 1) * width }) }
}

/// What a step leaves for the next: its output times the next step's continuation.
pub struct Next<'a, T> {
    /// For each stream.
    pub cont: &'a [T],
    /// The output, scaled.
    pub hidden: &'a mut [T],
}

/// What a step adds to its gates before anything else.
#[derive(Clone, Copy)]
pub enum Offset<'a, T> {
    /// The same for every stream.
    Shared(&'a [T]),
    /// A row for each stream.
    Each(&'a [T]),
    /// Nothing.
    None,
}

impl<'a, T: Float> Offset<'a, T> {
    fn row(&self, i: usize, width: usize) -> &'a [T] {
        match self {
            Offset::Shared(row) => row,
            Offset::Each(all) => &all[i * width..][..width],
            Offset::None => &[],
        }
    }
}

vectorized! {
    /// x += offset, if there is one.
    fn add[T: Float](x: &mut [T], offset: &[T]) {
        x.iter_mut().zip(offset).for_each(|(x, &o)| *x += o);
    }
}

vectorized! {
    fn scaled[T: Float](x: &[T], by: T, y: &mut [T]) {
        y.iter_mut().zip(x).for_each(|(y, &x)| *y = by * x);
    }
}

/// y = scale · x, row by row.
///
/// # Panics
/// When a slice is too short.
pub fn scale_rows<T: Float>(width: usize, x: &[T], scale: &[T], y: &mut [T]) {
    let y = Shared::new(y);
    rows(scale.len(), width, |i| {
        // SAFETY: a row is one task's.
        let y = unsafe { row_mut(&y, false, i, width) };
        scaled(row(x, i, width), scale[i], y);
    });
}

/// A step of an LSTM: `gates` become i = σ(·), f = σ(·), o = σ(·) and g = tanh(·) of themselves and `offset`; then
/// cell = cont · f · previous + i · g and hidden = o · tanh(cell).
///
/// # Panics
/// When a slice is shorter than its rows, of which there are as many as `cont` has elements.
pub fn lstm_forward<T: Float>(
    width: usize,
    (gates, offset): (&mut [T], Offset<'_, T>),
    (previous, cont): (&[T], &[T]),
    (cell, hidden): (&mut [T], &mut [T]),
    next: Option<Next<'_, T>>,
) {
    let last = next.is_none();
    let Next { cont: next_cont, hidden: next } = next.unwrap_or(Next { cont: &[], hidden: &mut [] });
    let [gates, cell, hidden, next] = [gates, cell, hidden, next].map(Shared::new);
    rows(cont.len(), width, |i| {
        // SAFETY: a row is one task's.
        let (gates, cell) = unsafe { (row_mut(&gates, false, i, 4 * width), row_mut(&cell, false, i, width)) };
        // SAFETY: as above.
        let (hidden, next) = unsafe { (row_mut(&hidden, false, i, width), row_mut(&next, last, i, width)) };
        add(gates, offset.row(i, 4 * width));
        lstm_row(gates, row(previous, i, width), cont[i], cell, hidden);
        if !last {
            scaled(hidden, next_cont[i], next);
        }
    });
}

/// The four gates of a row.
fn quarters<T>(gates: &[T]) -> [&[T]; 4] {
    let width = gates.len() / 4;
    std::array::from_fn(|k| &gates[k * width..][..width])
}

/// The four gates of a row.
fn quarters_mut<T>(gates: &mut [T]) -> [&mut [T]; 4] {
    let half = gates.len() / 2;
    let (first, second) = gates.split_at_mut(half);
    let ((a, b), (c, d)) = (first.split_at_mut(half / 2), second.split_at_mut(half / 2));
    [a, b, c, d]
}

vectorized! {
    fn lstm_row[T: Float](gates: &mut [T], previous: &[T], cont: T, cell: &mut [T], hidden: &mut [T]) {
        let width = cell.len();
        let (previous, hidden) = (&previous[..width], &mut hidden[..width]);
        let [i, f, o, g] = quarters_mut(gates).map(|gate| &mut gate[..width]);
        for d in 0..width {
            (i[d], f[d], o[d], g[d]) = (sigmoid(i[d]), sigmoid(f[d]), sigmoid(o[d]), tanh(g[d]));
            cell[d] = cont * f[d] * previous[d] + i[d] * g[d];
            hidden[d] = o[d] * tanh(cell[d]);
        }
    }
}

/// What backward of an LSTM's step reads of forward.
#[derive(Clone, Copy)]
pub struct LstmStep<'a, T> {
    /// The gates as forward left them.
    pub gates: &'a [T],
    /// Cells before.
    pub previous: &'a [T],
    /// Cells after.
    pub cell: &'a [T],
    /// Whether each stream goes on, or by how much.
    pub cont: &'a [T],
}

/// The gradients of a step's gates before σ and tanh, and of the cells before, from those of the output and of the cells
/// after, which `dc` holds on entry and those before on return.
///
/// # Panics
/// When a slice is shorter than its rows.
pub fn lstm_backward<T: Float>(width: usize, step: LstmStep<'_, T>, dh: &[T], dc: &mut [T], dgates: &mut [T]) {
    let (dc, dgates) = (Shared::new(dc), Shared::new(dgates));
    rows(step.cont.len(), width, |i| {
        // SAFETY: a row is one task's.
        let (dc, dgates) = unsafe { (row_mut(&dc, false, i, width), row_mut(&dgates, false, i, 4 * width)) };
        let (gates, cont) = (row(step.gates, i, 4 * width), step.cont[i]);
        lstm_row_backward(
            gates,
            row(step.previous, i, width),
            row(step.cell, i, width),
            cont,
            row(dh, i, width),
            dc,
            dgates,
        );
    });
}

vectorized! {
    fn lstm_row_backward[T: Float](
        gates: &[T],
        previous: &[T],
        cell: &[T],
        cont: T,
        dh: &[T],
        dc: &mut [T],
        dgates: &mut [T],
    ) {
        let (width, one) = (dc.len(), T::one());
        let (previous, cell, dh) = (&previous[..width], &cell[..width], &dh[..width]);
        let [i, f, o, g] = quarters(gates).map(|gate| &gate[..width]);
        let [di, df, d_o, dg] = quarters_mut(dgates).map(|gate| &mut gate[..width]);
        for d in 0..width {
            let t = tanh(cell[d]);
            let by_cell = dc[d] + dh[d] * o[d] * (one - t * t);
            di[d] = by_cell * g[d] * i[d] * (one - i[d]);
            df[d] = by_cell * cont * previous[d] * f[d] * (one - f[d]);
            d_o[d] = dh[d] * t * o[d] * (one - o[d]);
            dg[d] = by_cell * i[d] * (one - g[d] * g[d]);
            dc[d] = by_cell * cont * f[d];
        }
    }
}

/// A step of a plain recurrent layer, `streams` rows of `width`: z becomes tanh of itself and `offset`.
///
/// # Panics
/// When a slice is shorter than its rows.
pub fn tanh_forward<T: Float>(
    (streams, width): (usize, usize),
    z: &mut [T],
    offset: Offset<'_, T>,
    next: Option<Next<'_, T>>,
) {
    let last = next.is_none();
    let Next { cont, hidden: next } = next.unwrap_or(Next { cont: &[], hidden: &mut [] });
    let [z, next] = [z, next].map(Shared::new);
    rows(streams, width, |i| {
        // SAFETY: a row is one task's.
        let (z, next) = unsafe { (row_mut(&z, false, i, width), row_mut(&next, last, i, width)) };
        add(z, offset.row(i, width));
        tanh_row(z);
        if !last {
            scaled(z, cont[i], next);
        }
    });
}

vectorized! {
    fn tanh_row[T: Float](z: &mut [T]) {
        z.iter_mut().for_each(|z| *z = tanh(*z));
    }
}

/// dz = dy · (1 − y²), where y is tanh(z).
///
/// # Panics
/// When a slice is shorter than dz.
pub fn tanh_backward<T: Float>(y: &[T], dy: &[T], dz: &mut [T]) {
    crate::for_each_block(dz, |at, dz| tanh_block(&y[at..][..dz.len()], &dy[at..][..dz.len()], dz));
}

vectorized! {
    fn tanh_block[T: Float](y: &[T], dy: &[T], dz: &mut [T]) {
        for ((dz, &y), &dy) in dz.iter_mut().zip(y).zip(dy) {
            *dz = dy * (T::one() - y * y);
        }
    }
}

/// dh = dy + scale · dh, row by row, or with a scale of 1 where none is given: the gradient of a step's output, by what was
/// read of it and by the step after it.
///
/// # Panics
/// When a slice is too short.
pub fn join_gradients<T: Float>((streams, width): (usize, usize), dy: &[T], scale: Option<&[T]>, dh: &mut [T]) {
    let dh = Shared::new(dh);
    rows(streams, width, |i| {
        // SAFETY: a row is one task's.
        let dh = unsafe { row_mut(&dh, false, i, width) };
        join_row(row(dy, i, width), scale.map_or(T::one(), |scale| scale[i]), dh);
    });
}

vectorized! {
    fn join_row[T: Float](dy: &[T], scale: T, dh: &mut [T]) {
        dh.iter_mut().zip(dy).for_each(|(dh, &dy)| *dh = dy + scale * *dh);
    }
}
