//! Slice: the bottom cut along one axis into one part for each top.
//!
//! Shapes: one bottom; tops like it but for their extent at `axis` (or `slice_dim`, its older name, which counts from the
//! outermost axis only): the distances between `slice_point`s, or equal parts when there are none. A single top shares
//! the bottom's memory. Gradient: the tops' laid end to end.
//!
//! Source: Caffe's layer of this name. Caffe checks the last part only by the total; we refuse a point past the end.

use lgm_core::{
    Arity, BlobSpec, BuildCx, Bwd, Device, DeviceLayer, DeviceQueue, Float, Formats, Fwd, Host, HostLayer, Layer, Node,
    Offer, Plan, Result, ensure,
};
use lgm_proto::{LayerParameter, SliceParameter};

use crate::common::rows::{Parts, axis_of, check_names};
use crate::common::view;

/// The layer; see the module.
pub struct Slice {
    param: SliceParameter,
    /// The tops within the bottom.
    parts: Parts,
}

impl Slice {
    pub(crate) fn build(param: &LayerParameter, _cx: &BuildCx) -> Result<Node> {
        let param = param.slice_param.clone().unwrap_or_default();
        check_names(param.axis, param.slice_dim, "slice_dim")?;
        Node::compute(Slice { param, parts: Parts::default() })
    }

    /// The tops' extents at the sliced axis, which has `extent`.
    fn extents(&self, extent: usize, tops: usize) -> Result<Vec<usize>> {
        let points = &self.param.slice_point;
        if points.is_empty() {
            ensure!(
                extent.is_multiple_of(tops),
                "an axis of extent {extent} does not divide into {tops} equal tops; give slice_point"
            );
            return Ok(vec![extent / tops; tops]);
        }
        ensure!(
            points.len() == tops - 1,
            "{tops} tops need {} slice_point values, found {}: {points:?}",
            tops - 1,
            points.len()
        );
        let mut bounds = vec![0];
        bounds.extend(points.iter().map(|&p| p as usize));
        bounds.push(extent);
        ensure!(
            bounds.is_sorted_by(|a, b| a < b),
            "slice_point {points:?} must rise, from above 0 to below the axis's extent {extent}"
        );
        Ok(bounds.windows(2).map(|w| w[1] - w[0]).collect())
    }
}

impl Layer for Slice {
    fn arity(&self) -> Arity {
        Arity::range(1..=1, 1..=usize::MAX)
    }

    fn plan(&mut self, bottoms: &[BlobSpec], tops: usize) -> Result<Plan> {
        let shape = &bottoms[0].shape;
        let axis = axis_of(shape, self.param.axis(), self.param.slice_dim, "slice_dim")?;
        let extents = self.extents(shape[axis], tops)?;
        if tops == 1 {
            return Ok(view::plan(&bottoms[0], shape.clone()));
        }
        let inner = shape.count_from(axis + 1);
        self.parts = Parts::new(shape, axis, extents.iter().map(|e| e * inner).collect());
        Ok(Plan::new(extents.iter().map(|&e| bottoms[0].with_shape(shape.splice(axis..axis + 1, [e]))).collect()))
    }
}

impl HostLayer for Slice {
    fn forward<T: Float>(&self, mut io: Fwd<'_, Host>) -> Result<()> {
        if self.parts.is_view() {
            return view::forward::<T>(io);
        }
        let x = io.bottom::<T>(0)?;
        for t in 0..self.parts.len() {
            self.parts.scatter(t, io.top::<T>(t)?, x);
        }
        Ok(())
    }

    fn backward<T: Float>(&self, mut io: Bwd<'_, Host>) -> Result<()> {
        if self.parts.is_view() {
            return view::backward::<T>(io);
        }
        let dys = (0..self.parts.len()).map(|t| io.top_diff::<T>(t)).collect::<Result<Vec<_>>>()?;
        if let Some(dx) = io.bottom_diff::<T>(0)? {
            self.parts.gather(dx, &dys);
        }
        Ok(())
    }
}

impl DeviceLayer for Slice {
    fn formats(&self, offer: &Offer<'_>) -> Formats {
        self.parts.formats(offer)
    }

    fn prepare(&mut self, _queue: &dyn DeviceQueue, plan: &mut Plan) -> Result<()> {
        self.parts.store_as(plan.formats.top(0), &plan.tops[0].shape);
        Ok(())
    }

    fn forward(&self, mut io: Fwd<'_, Device>) -> Result<()> {
        if self.parts.is_view() {
            return view::forward_on(io);
        }
        let x = io.bottom(0)?;
        (0..self.parts.len()).try_for_each(|t| self.parts.copy_out(io.call, t, io.top(t)?, x))
    }

    fn backward(&self, mut io: Bwd<'_, Device>) -> Result<()> {
        if self.parts.is_view() {
            return view::backward_on(io);
        }
        let Some(dx) = io.bottom_diff(0) else { return Ok(()) };
        (0..self.parts.len()).try_for_each(|t| self.parts.copy_in(io.call, t, dx, io.top_diff(t)?))
    }
}

#[cfg(test)]
mod tests {
    use crate::tests::registry;
    use lgm_testkit::{Case, check, config_error};

    fn layer(param: &str, tops: &str) -> String {
        format!("layer {{ name: 's' type: 'Slice' bottom: 'x' {tops} slice_param {{ {param} }} }}")
    }

    #[test]
    fn cases() {
        check(
            &registry(),
            &[
                Case::golden("layers/slice"),
                Case::new(layer("axis: -1", "top: 'a' top: 'b'")).bottom([3, 4]),
                Case::new(layer("slice_dim: 0 slice_point: 2", "top: 'a' top: 'b'")).bottom([3, 2]),
                Case::new(layer("", "top: 'a'")).bottom([2, 3]),
            ],
        );
    }

    #[test]
    fn mistakes_are_named() {
        let two = |param| layer(param, "top: 'a' top: 'b'");
        let bottom = [[2, 5].into()];
        config_error(&registry(), &two(""), &bottom, &["extent 5", "2 equal tops"]);
        config_error(&registry(), &two("slice_point: 1 slice_point: 2"), &bottom, &["2 tops need 1 slice_point"]);
        config_error(&registry(), &two("slice_point: 5"), &bottom, &["[5]", "extent 5"]);
        config_error(&registry(), &two("slice_point: 0"), &bottom, &["[0]", "must rise"]);
        config_error(&registry(), &two("axis: 2"), &bottom, &["axis 2", "out of range"]);
        config_error(&registry(), &two("axis: 1 slice_dim: 1"), &bottom, &["axis and slice_dim"]);
        config_error(&registry(), &two("slice_dim: 2"), &bottom, &["slice_dim 2"]);
    }
}
