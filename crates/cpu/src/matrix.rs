//! Views of row-major matrices in slices, as [`Gemm`](crate::Gemm) takes them.

use crate::pack::Strides;

/// A matrix to read: `rows` × `columns` elements of a slice, stored row by row or, when transposed, column by column.
#[derive(Clone, Copy, Debug)]
pub struct MatRef<'a, T> {
    data: &'a [T],
    rows: usize,
    columns: usize,
    stride: usize,
    transposed: bool,
}

impl<'a, T> MatRef<'a, T> {
    /// `rows` × `columns` with no gap between rows.
    ///
    /// # Panics
    /// When the slice is shorter.
    pub fn new(data: &'a [T], rows: usize, columns: usize) -> Self {
        Self::with_stride(data, rows, columns, columns)
    }

    /// `rows` × `columns`, the rows `stride` elements apart.
    ///
    /// # Panics
    /// When the slice is shorter, or rows overlap.
    pub fn with_stride(data: &'a [T], rows: usize, columns: usize, stride: usize) -> Self {
        check(data.len(), rows, columns, stride);
        MatRef { data, rows, columns, stride, transposed: false }
    }

    /// The transposed matrix, of the same elements.
    pub fn t(self) -> Self {
        MatRef { rows: self.columns, columns: self.rows, transposed: !self.transposed, ..self }
    }

    /// [`t`](Self::t) if `transpose`, else the matrix as it is.
    pub fn t_if(self, transpose: bool) -> Self {
        if transpose { self.t() } else { self }
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of columns.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// Elements between one row and the next.
    #[inline]
    pub(crate) fn row_stride(&self) -> usize {
        if self.transposed { 1 } else { self.stride }
    }

    /// Elements between one column and the next.
    #[inline]
    pub(crate) fn column_stride(&self) -> usize {
        if self.transposed { self.stride } else { 1 }
    }

    /// Strides for packing rows across a panel, the inner extent running along them.
    pub(crate) fn strides(&self) -> Strides {
        Strides { across: self.row_stride(), along: self.column_stride() }
    }

    /// The elements from (row, column) on, with whatever is between and behind them in the slice.
    #[inline]
    pub(crate) fn from(&self, row: usize, column: usize) -> &'a [T] {
        &self.data[row * self.row_stride() + column * self.column_stride()..]
    }
}

/// A matrix to write: `rows` × `columns` elements of a slice, row by row.
#[derive(Debug)]
pub struct MatMut<'a, T> {
    data: &'a mut [T],
    rows: usize,
    columns: usize,
    stride: usize,
}

impl<'a, T> MatMut<'a, T> {
    /// `rows` × `columns` with no gap between rows.
    ///
    /// # Panics
    /// When the slice is shorter.
    pub fn new(data: &'a mut [T], rows: usize, columns: usize) -> Self {
        Self::with_stride(data, rows, columns, columns)
    }

    /// `rows` × `columns`, the rows `stride` elements apart; what is between them is left as it is.
    ///
    /// # Panics
    /// When the slice is shorter, or rows overlap.
    pub fn with_stride(data: &'a mut [T], rows: usize, columns: usize, stride: usize) -> Self {
        check(data.len(), rows, columns, stride);
        MatMut { data, rows, columns, stride }
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of columns.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// Elements between one row and the next.
    pub(crate) fn stride(&self) -> usize {
        self.stride
    }

    /// The slice, gaps between rows included.
    pub(crate) fn data(&mut self) -> &mut [T] {
        self.data
    }

    /// The rows one after another.
    pub(crate) fn each_row(&mut self) -> impl Iterator<Item = &mut [T]> {
        let columns = self.columns;
        self.data.chunks_mut(self.stride.max(1)).take(self.rows).map(move |row| &mut row[..columns])
    }
}

fn check(len: usize, rows: usize, columns: usize, stride: usize) {
    assert!(stride >= columns, "rows of {columns} elements, {stride} apart, overlap");
    let last = rows.checked_sub(1).filter(|_| columns > 0).map(|last| last.checked_mul(stride));
    let need = last.map_or(Some(0), |start| start?.checked_add(columns));
    assert!(need.is_some_and(|need| need <= len), "{rows} rows of {columns}, {stride} apart, in a slice of {len}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transposed_view_reads_columns_as_rows() {
        let data = [0, 1, 2, -1, 3, 4, 5];
        let a = MatRef::with_stride(&data, 2, 3, 4);
        assert_eq!((a.rows(), a.columns(), a.from(1, 2)[0]), (2, 3, 5));
        assert_eq!((a.t().rows(), a.t().columns(), a.t().from(2, 1)[0]), (3, 2, 5));
        assert_eq!(a.t().t_if(true).from(0, 1)[0], 1);
    }

    #[test]
    fn rows_to_write_leave_out_the_gaps() {
        let mut data = [0; 7];
        MatMut::with_stride(&mut data, 2, 3, 4).each_row().for_each(|row| row.fill(1));
        assert_eq!(data, [1, 1, 1, 0, 1, 1, 1]);
    }

    #[test]
    fn slices_that_are_too_short_are_refused() {
        let refused = |len: usize, rows, columns, stride| {
            std::panic::catch_unwind(|| MatRef::with_stride(&vec![0; len], rows, columns, stride).rows()).is_err()
        };
        assert!(refused(6, 2, 3, 4) && !refused(7, 2, 3, 4));
        assert!(refused(6, 2, 3, 2));
        assert!(refused(6, usize::MAX, 2, 2));
        assert!(!refused(0, 0, 3, 3) && !refused(0, 3, 0, 0));
    }
}
