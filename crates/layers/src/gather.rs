//! Gather: of each row of the first bottom, the element that the second bottom picks; with `inverse`, all others.
//!
//! Shapes: x [M, K]; indices, M of them in any shape, each from 0 to K − 1 (its fraction is cut off); top like the
//! indices, with `inverse` [M, K − 1]. Gradient: dy where an element was taken, 0 elsewhere; none to the indices.
//!
//! Source: the L-GM fork's layer of this name, which runs on the GPU alone and passes no gradient down; ours does. There
//! an index out of range reads other memory; here it is an error that names it.

use lgm_core::{
    Arity, BlobSpec, BuildCx, Bwd, Device, DeviceLayer, Error, Fault, Float, Fwd, Grid, Host, HostLayer, Layer, Node,
    Plan, Result, args, ensure,
};
use lgm_proto::LayerParameter;

use crate::common::indices::{self, index_at};
use crate::common::launch::{extent, row_grid};
use crate::common::loops::for_rows;

/// The layer; see the module.
pub struct Gather {
    inverse: bool,
    rows: usize,
    width: usize,
}

impl Gather {
    pub(crate) fn build(param: &LayerParameter, _cx: &BuildCx) -> Result<Node> {
        Node::compute(Gather { inverse: param.gather_param.unwrap_or_default().inverse(), rows: 0, width: 1 })
    }

    /// Elements of a row of the top.
    fn taken(&self) -> usize {
        if self.inverse { self.width - 1 } else { 1 }
    }
}

impl Layer for Gather {
    fn arity(&self) -> Arity {
        Arity::exactly(2, 1)
    }

    fn plan(&mut self, bottoms: &[BlobSpec], _tops: usize) -> Result<Plan> {
        let (shape, indices) = (&bottoms[0].shape, &bottoms[1].shape);
        ensure!(shape.len() == 2, "the first bottom must have two axes, rows and their elements, found shape {shape}");
        ensure!(shape[1] > 0, "the rows of the first bottom {shape} have no elements to pick");
        ensure!(
            indices.count() == shape[0],
            "the second bottom must have {} indices, one for each row of the first, found {} in shape {indices}",
            shape[0],
            indices.count()
        );
        (self.rows, self.width) = (shape[0], shape[1]);
        let top = if self.inverse { [self.rows, self.taken()].into() } else { indices.clone() };
        Ok(Plan { backward_bottoms: vec![1], no_gradient: vec![1], ..Plan::new(vec![bottoms[0].with_shape(top)]) })
    }
}

impl HostLayer for Gather {
    fn forward<T: Float>(&self, mut io: Fwd<'_, Host>) -> Result<()> {
        let (x, indices) = (io.bottom::<T>(0)?, io.bottom::<T>(1)?);
        (0..self.rows).try_for_each(|row| index_at(indices, row, self.width).map(drop))?;
        for_rows(io.top::<T>(0)?, self.taken(), self.taken(), |row, y| {
            let (x, at) = (&x[row * self.width..][..self.width], indices[row].f64() as usize);
            if self.inverse {
                y[..at].copy_from_slice(&x[..at]);
                y[at..].copy_from_slice(&x[at + 1..]);
            } else {
                y[0] = x[at];
            }
        });
        Ok(())
    }

    fn backward<T: Float>(&self, mut io: Bwd<'_, Host>) -> Result<()> {
        let (dy, indices) = (io.top_diff::<T>(0)?, io.bottom::<T>(1)?);
        let Some(dx) = io.bottom_diff::<T>(0)? else { return Ok(()) };
        for_rows(dx, self.width, self.width, |row, dx| {
            let (dy, at) = (&dy[row * self.taken()..][..self.taken()], indices[row].f64() as usize);
            if self.inverse {
                dx[..at].copy_from_slice(&dy[..at]);
                dx[at + 1..].copy_from_slice(&dy[at..]);
                dx[at] = T::zero();
            } else {
                dx.fill(T::zero());
                dx[at] = dy[0];
            }
        });
        Ok(())
    }
}

impl DeviceLayer for Gather {
    fn explain(&self, fault: Fault) -> Error {
        indices::explain(fault, self.width)
    }

    fn forward(&self, mut io: Fwd<'_, Device>) -> Result<()> {
        let (x, at, y) = (io.bottom(0)?, io.bottom(1)?, io.top(0)?);
        let (rows, width) = (extent(self.rows)?, extent(self.width)?);
        io.launch("arrange_check", Grid::rows(1, 1024), args![at, width, rows, io.call.fault])?;
        let args = args![y, x, at, u32::from(self.inverse), rows, width];
        io.launch("arrange_pick", row_grid(self.rows, self.taken()), args)
    }

    fn backward(&self, mut io: Bwd<'_, Device>) -> Result<()> {
        let Some(dx) = io.bottom_diff(0) else { return Ok(()) };
        let (rows, width) = (extent(self.rows)?, extent(self.width)?);
        let args = args![dx, io.top_diff(0)?, io.bottom(1)?, u32::from(self.inverse), rows, width];
        io.launch("arrange_pick_backward", row_grid(self.rows, self.width), args)
    }
}

#[cfg(test)]
mod tests {
    use crate::tests::registry;
    use lgm_core::{DType, Phase, Shape};
    use lgm_testkit::{Case, Fill, Harness, check, config_error};

    fn layer(inverse: bool) -> String {
        format!(
            "layer {{ name: 'g' type: 'Gather' bottom: 'x' bottom: 'i' top: 'y' gather_param {{ inverse: {inverse} }} }}"
        )
    }

    fn gather(inverse: bool, rows: usize, width: usize, indices: impl Into<Shape>) -> Case {
        Case::new(layer(inverse)).bottom([rows, width]).bottom_of(indices, Fill::Labels(width))
    }

    #[test]
    fn cases() {
        let ends = Fill::Given(vec![0.0, 3.0, 1.0]);
        check(
            &registry(),
            &[
                gather(false, 5, 4, [5]),
                gather(false, 5, 4, [5, 1]),
                gather(true, 6, 3, [6]),
                gather(true, 3, 1, [3]),
                gather(false, 0, 4, [0]),
                gather(true, 40, 300, [40]).without_gradients(),
                Case::new(layer(true)).bottom([3, 4]).bottom_of([3], ends.clone()),
                Case::new(layer(false)).bottom([3, 4]).bottom_of([3], ends),
            ],
        );
    }

    #[test]
    fn values_are_those_picked_and_the_others() {
        let run = |inverse| {
            let shapes = [[2, 3].into(), [2].into()];
            let harness = Harness::new(&registry(), &layer(inverse), Phase::Test, DType::F32, &shapes).unwrap();
            let x = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0];
            harness.run(&harness.forward_inputs(&[&x, &[1.0, 2.0]]).unwrap()).unwrap().tops.remove(0)
        };
        assert_eq!(run(false), [2.0, 6.0]);
        assert_eq!(run(true), [1.0, 3.0, 4.0, 5.0]);
    }

    #[test]
    fn mistakes_are_named() {
        let refused = |x: Shape, i: Shape, needles: &[&str]| config_error(&registry(), &layer(false), &[x, i], needles);
        refused([2, 3, 1].into(), [2].into(), &["two axes", "(2, 3, 1)"]);
        refused([2, 0].into(), [2].into(), &["(2, 0) have no elements"]);
        refused([4, 3].into(), [3].into(), &["4 indices", "found 3 in shape (3)"]);
    }
}
