//! Filter: the items of each bottom that the last bottom, the selector, picks: those where it is not 0, in their order.
//!
//! Shapes: bottoms [N, …]; selector `[N]`, or N and axes of extent 1; a top for each bottom but the selector, [M, …], with
//! M the number of items picked in this pass. The layers after it compute with M items; where M is 0 they compute
//! nothing, and losses and scores are 0. Gradient: dy to the items picked, 0 to the others; none to the selector.
//!
//! Source: Caffe's layer of this name. Where we differ: with no item picked, Caffe's averages are 0 / 0 in some losses. On a
//! device every pass waits for the selector, and is not recorded.

use lgm_core::{
    Arity, BlobSpec, BuildCx, Bwd, Device, DeviceCall, DeviceLayer, DevicePtr, DeviceQueue, Float, Format, Formats,
    Fwd, Grid, Host, HostLayer, Layer, Node, Offer, Plan, Result, Shape, Space, View, args, ensure, kernel, memory,
    with_float,
};
use lgm_proto::LayerParameter;

use crate::common::launch::{extent, row_grid};
use crate::common::loops::for_rows;

/// The layer; see the module.
#[derive(Default)]
pub struct Filter {
    /// Elements of an item of each top.
    lens: Vec<usize>,
    /// The most items.
    items: usize,
}

impl Filter {
    pub(crate) fn build(_param: &LayerParameter, _cx: &BuildCx) -> Result<Node> {
        Node::compute(Filter::default())
    }
}

/// The items that are picked.
fn picked<T: Float>(selector: &[T]) -> Vec<usize> {
    let each = selector.iter().enumerate().filter(|(_, pick)| **pick != T::zero());
    each.map(|(item, _)| item).collect()
}

impl Filter {
    /// The selector, for as many items as the other bottoms have in this pass.
    ///
    /// # Errors
    /// When one has another number of them.
    fn selector<'a, S: Space>(&self, bottoms: &[View<'a, S>]) -> Result<View<'a, S>> {
        let selector = bottoms[self.lens.len()];
        for (i, bottom) in bottoms.iter().enumerate() {
            let (found, items) = (first(bottom.shape()), selector.shape().count());
            ensure!(found == items, "bottom {i} has {found} items in this pass, the selector {items}");
        }
        Ok(selector)
    }
}

/// The first extent.
fn first(shape: &Shape) -> usize {
    shape.first().copied().unwrap_or_default()
}

impl Layer for Filter {
    fn arity(&self) -> Arity {
        Arity::range(2..=usize::MAX, 1..=usize::MAX)
    }

    fn plan(&mut self, bottoms: &[BlobSpec], tops: usize) -> Result<Plan> {
        let blobs = bottoms.len() - 1;
        ensure!(
            tops == blobs,
            "makes one top of each bottom but the last, the selector: expected {blobs} tops, found {tops}"
        );
        let selector = &bottoms[blobs].shape;
        let items = selector.count();
        ensure!(
            !selector.is_empty() && selector[0] == items,
            "the selector, the last bottom, must have one number for each item: all axes but the first of extent 1, found \
             shape {selector}"
        );
        for (i, bottom) in bottoms[..blobs].iter().enumerate() {
            let shape = &bottom.shape;
            ensure!(
                shape.first() == Some(&items),
                "bottom {i} must have the {items} items that the selector {selector} has, found shape {shape}"
            );
        }
        self.items = items;
        self.lens = bottoms[..blobs].iter().map(|bottom| bottom.shape.count_from(1)).collect();
        Ok(Plan {
            rows_vary: true,
            backward_bottoms: vec![blobs],
            no_gradient: vec![blobs],
            ..Plan::new(bottoms[..blobs].to_vec())
        })
    }
}

impl HostLayer for Filter {
    fn rows(&self, bottoms: &[View<'_, Host>]) -> Result<usize> {
        let selector = self.selector(bottoms)?;
        with_float!(selector.dtype(), T => Ok(picked(selector.slice::<T>()?).len()))
    }

    fn forward<T: Float>(&self, mut io: Fwd<'_, Host>) -> Result<()> {
        let picked = picked(io.bottom::<T>(self.lens.len())?);
        for (i, &len) in self.lens.iter().enumerate() {
            let x = io.bottom::<T>(i)?;
            for_rows(io.top::<T>(i)?, len, len, |row, y| match picked.get(row) {
                Some(&item) => y.copy_from_slice(&x[item * len..][..len]),
                // Tops of as many rows as planned: the others are empty.
                None => y.fill(T::zero()),
            });
        }
        Ok(())
    }

    fn backward<T: Float>(&self, mut io: Bwd<'_, Host>) -> Result<()> {
        let picked = picked(io.bottom::<T>(self.lens.len())?);
        for (i, &len) in self.lens.iter().enumerate() {
            let Some(dx) = io.bottom_diff::<T>(i)? else { continue };
            let dy = io.top_diff::<T>(i)?;
            for_rows(dx, len, len, |item, dx| match picked.binary_search(&item) {
                Ok(row) => dx.copy_from_slice(&dy[row * len..][..len]),
                Err(_) => dx.fill(T::zero()),
            });
        }
        Ok(())
    }
}

impl Filter {
    /// Finds which item each row of the tops is, and which row each item. Gives both lists.
    fn place(
        &self,
        call: DeviceCall<'_>,
        selector: DevicePtr,
        items: usize,
        room: DevicePtr,
    ) -> Result<[DevicePtr; 2]> {
        let [picked, rows] = [room, room.floats(self.items)];
        call.queue.launch("filter_places", Grid::rows(1, 1024), args![picked, rows, selector, extent(items)?])?;
        Ok([picked, rows])
    }
}

impl DeviceLayer for Filter {
    fn formats(&self, offer: &Offer<'_>) -> Formats {
        // Whole items move, in whatever order their elements lie.
        let blobs = &offer.arriving[..self.lens.len()];
        Formats {
            bottoms: blobs.iter().copied().chain([Format::PLAIN]).collect(),
            tops: blobs.iter().copied().collect(),
        }
    }

    fn prepare(&mut self, _queue: &dyn DeviceQueue, plan: &mut Plan) -> Result<()> {
        plan.scratch = vec![plan.tops[0].with_shape([2, self.items])];
        Ok(())
    }

    fn rows(&self, queue: &dyn DeviceQueue, bottoms: &[View<'_, Device>]) -> Result<usize> {
        let selector = self.selector(bottoms)?;
        let mut bytes = memory::zeros(4 * selector.shape().count(), "a copy of the selector")?;
        queue.download(selector.addr(), &mut bytes)?;
        Ok(bytes.chunks_exact(4).filter(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]) != 0.0).count())
    }

    fn forward(&self, mut io: Fwd<'_, Device>) -> Result<()> {
        let blobs = self.lens.len();
        let selector = io.bottom(blobs)?;
        let items = io.bottoms[blobs].map_or(0, |view| view.shape().count());
        let rows = io.tops[0].as_ref().map_or(0, |top| first(top.shape()));
        let room = io.scratch(0)?;
        let [picked, _] = self.place(io.call, selector, items, room)?;
        for (i, &len) in self.lens.iter().enumerate() {
            let (x, y, element) = (io.bottom(i)?, io.top(i)?, io.call.formats.top(i).element);
            let args = args![y, x, picked, extent(items)?, extent(rows)?, extent(len)?];
            io.queue().launch(kernel!(element, "filter_items"), row_grid(rows, len), args)?;
        }
        Ok(())
    }

    fn backward(&self, mut io: Bwd<'_, Device>) -> Result<()> {
        let blobs = self.lens.len();
        let selector = io.bottom(blobs)?;
        let items = io.bottoms[blobs].map_or(0, |view| view.shape().count());
        let room = io.scratch(0)?;
        let [_, places] = self.place(io.call, selector, items, room)?;
        for (i, &len) in self.lens.iter().enumerate() {
            let Some(dx) = io.bottom_diff(i) else { continue };
            let (dy, element) = (io.top_diff(i)?, io.call.formats.top(i).element);
            let args = args![dx, dy, places, extent(items)?, extent(items)?, extent(len)?];
            io.queue().launch(kernel!(element, "filter_items"), row_grid(items, len), args)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use crate::tests::registry;
    use lgm_core::{DType, Phase};
    use lgm_testkit::{Case, Fill, Harness, check, config_error};

    const ONE: &str = "layer { name: 'f' type: 'Filter' bottom: 'x' bottom: 's' top: 'y' }";
    const TWO: &str = "layer { name: 'f' type: 'Filter' bottom: 'x' bottom: 'z' bottom: 's' top: 'y' top: 'w' }";

    #[test]
    fn cases() {
        let some = Fill::Given(vec![0.0, 1.0, -0.5, 0.0, 2.0]);
        check(
            &registry(),
            &[
                Case::new(ONE).bottom([5, 3]).bottom_of([5], some.clone()),
                Case::new(TWO).bottom([5]).bottom([5, 2, 3]).bottom_of([5, 1, 1], some),
                Case::new(ONE).bottom([3, 2]).bottom_of([3], Fill::Given(vec![0.0; 3])),
                Case::new(ONE).bottom([3, 2]).bottom_of([3], Fill::Given(vec![1.0; 3])),
            ],
        );
    }

    #[test]
    fn items_picked_come_first() {
        let harness = Harness::new(&registry(), ONE, Phase::Test, DType::F32, &[[3, 2].into(), [3].into()]).unwrap();
        let inputs = harness.forward_inputs(&[&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0], &[1.0, 0.0, 1.0]]).unwrap();
        assert_eq!(harness.run(&inputs).unwrap().tops[0], [1.0, 2.0, 5.0, 6.0, 0.0, 0.0]);
    }

    #[test]
    fn mistakes_are_named() {
        config_error(&registry(), ONE, &[[4, 2].into(), [2, 2].into()], &["the selector, the last bottom", "(2, 2)"]);
        config_error(&registry(), ONE, &[[4, 2].into(), [3].into()], &["bottom 0", "3 items", "(4, 2)"]);
        let three = "layer { name: 'f' type: 'Filter' bottom: 'x' bottom: 's' top: 'y' top: 'w' }";
        config_error(&registry(), three, &[[4].into(), [4].into()], &["expected 1 tops, found 2"]);
    }
}
