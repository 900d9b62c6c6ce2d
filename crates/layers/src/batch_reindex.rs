//! BatchReindex: items of the first bottom by index: y\[n\] = x\[i\[n\]\].
//!
//! Shapes: x [N, …], indices `[M]`, each from 0 to N − 1 (its fraction is cut off); top [M, …]. Gradient: dx\[k\] = Σ dy\[n\]
//! over the n with i\[n\] = k, in their order; none to the indices. An index out of range is an error that names it.
//!
//! Source: Caffe's layer of this name.

use lgm_core::{
    Arity, BlobSpec, BuildCx, Bwd, Device, DeviceLayer, Error, Fault, Float, Format, Formats, Fwd, Grid, Host,
    HostLayer, Layer, Node, Offer, Plan, Result, args, ensure, kernel,
};
use lgm_proto::LayerParameter;

use crate::common::indices::{self, index_at};
use crate::common::launch::{extent, row_grid};
use crate::common::loops::for_rows;

/// The layer; see the module.
#[derive(Default)]
pub struct BatchReindex {
    /// Items of the bottom and of the top, and elements of an item.
    items: usize,
    picked: usize,
    len: usize,
}

impl BatchReindex {
    pub(crate) fn build(_param: &LayerParameter, _cx: &BuildCx) -> Result<Node> {
        Node::compute(BatchReindex::default())
    }
}

impl Layer for BatchReindex {
    fn arity(&self) -> Arity {
        Arity::exactly(2, 1)
    }

    fn plan(&mut self, bottoms: &[BlobSpec], _tops: usize) -> Result<Plan> {
        let (shape, indices) = (&bottoms[0].shape, &bottoms[1].shape);
        ensure!(!shape.is_empty(), "the first bottom is a scalar; it needs a first axis to pick items from");
        ensure!(indices.len() == 1, "the indices must have one axis, found shape {indices}");
        (self.items, self.picked, self.len) = (shape[0], indices[0], shape.count_from(1));
        let top = bottoms[0].with_shape(shape.splice(0..1, [self.picked]));
        Ok(Plan { backward_bottoms: vec![1], no_gradient: vec![1], ..Plan::new(vec![top]) })
    }
}

impl HostLayer for BatchReindex {
    fn forward<T: Float>(&self, mut io: Fwd<'_, Host>) -> Result<()> {
        let (x, indices) = (io.bottom::<T>(0)?, io.bottom::<T>(1)?);
        (0..self.picked).try_for_each(|n| index_at(indices, n, self.items).map(drop))?;
        for_rows(io.top::<T>(0)?, self.len, self.len, |n, y| {
            let item = indices[n].f64() as usize;
            y.copy_from_slice(&x[item * self.len..][..self.len]);
        });
        Ok(())
    }

    fn backward<T: Float>(&self, mut io: Bwd<'_, Host>) -> Result<()> {
        let (dy, indices) = (io.top_diff::<T>(0)?, io.bottom::<T>(1)?);
        let Some(dx) = io.bottom_diff::<T>(0)? else { return Ok(()) };
        for_rows(dx, self.len, self.len + self.picked, |item, dx| {
            dx.fill(T::zero());
            let here = indices.iter().enumerate().filter(|(_, index)| index.f64() as usize == item);
            for (n, _) in here {
                dx.iter_mut().zip(&dy[n * self.len..]).for_each(|(dx, &dy)| *dx += dy);
            }
        });
        Ok(())
    }
}

impl DeviceLayer for BatchReindex {
    fn formats(&self, offer: &Offer<'_>) -> Formats {
        // Whole items move, in whatever order their elements lie.
        let format = offer.follow().top(0);
        Formats { bottoms: [format, Format::PLAIN].into_iter().collect(), tops: [format].into_iter().collect() }
    }

    fn explain(&self, fault: Fault) -> Error {
        indices::explain(fault, self.items)
    }

    fn forward(&self, mut io: Fwd<'_, Device>) -> Result<()> {
        let (x, at, y) = (io.bottom(0)?, io.bottom(1)?, io.top(0)?);
        let (items, picked) = (extent(self.items)?, extent(self.picked)?);
        io.launch("arrange_check", Grid::rows(1, 1024), args![at, items, picked, io.call.fault])?;
        let args = args![y, x, at, items, picked, extent(self.len)?];
        io.launch(kernel!("arrange_reindex"), row_grid(self.picked, self.len), args)
    }

    fn backward(&self, mut io: Bwd<'_, Device>) -> Result<()> {
        let Some(dx) = io.bottom_diff(0) else { return Ok(()) };
        let (items, picked) = (extent(self.items)?, extent(self.picked)?);
        let args = args![dx, io.top_diff(0)?, io.bottom(1)?, items, picked, extent(self.len)?];
        io.launch(kernel!("arrange_reindex_backward"), row_grid(self.items, self.len), args)
    }
}

#[cfg(test)]
mod tests {
    use crate::tests::registry;
    use lgm_core::{DType, Phase};
    use lgm_testkit::{Case, Fill, Harness, check, config_error};

    const LAYER: &str = "layer { name: 'b' type: 'BatchReindex' bottom: 'x' bottom: 'i' top: 'y' }";

    #[test]
    fn cases() {
        check(
            &registry(),
            &[
                Case::golden("layers/batchreindex_0"),
                Case::golden("layers/batchreindex_1"),
                Case::new(LAYER).bottom([5]).bottom_of([9], Fill::Labels(5)),
                Case::new(LAYER).bottom([3, 2, 2, 3]).bottom_of([4], Fill::Given(vec![2.0, 0.5, 2.0, 2.9])),
                Case::new(LAYER).bottom([3, 2]).bottom_of([0], Fill::Labels(3)),
            ],
        );
    }

    #[test]
    fn an_index_out_of_range_is_named() {
        let harness = Harness::new(&registry(), LAYER, Phase::Train, DType::F32, &[[2, 1].into(), [3].into()]).unwrap();
        let inputs = harness.forward_inputs(&[&[1.0, 2.0], &[1.0, 2.0, 7.0]]).unwrap();
        let error = harness.run(&inputs).unwrap_err().to_string();
        assert!(error.contains("index 2 at position 1") && error.contains("0 to 1"), "{error}");
    }

    #[test]
    fn mistakes_are_named() {
        config_error(&registry(), LAYER, &[[4, 2].into(), [2, 1].into()], &["one axis", "(2, 1)"]);
        config_error(&registry(), LAYER, &[[].into(), [2].into()], &["the first bottom is a scalar"]);
    }
}
