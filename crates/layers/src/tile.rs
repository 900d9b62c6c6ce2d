//! Tile: the bottom `tiles` times end to end along `axis` (1).
//!
//! Shapes: bottom [d₀, …]; top the same with `tiles` times the extent of `axis`. Gradient: the sum over the copies. With
//! one tile the top is a view of the bottom. Source: Caffe's layer of this name.

use lgm_core::{
    Arity, Axes3, BlobSpec, BuildCx, Bwd, Device, DeviceLayer, Error, Float, Formats, Fwd, Host, HostLayer, Layer,
    Node, Offer, Plan, Result,
};
use lgm_proto::LayerParameter;

use crate::common::repeat::Repeat;
use crate::common::view;

/// The layer; see the module.
pub struct Tile {
    axis: i32,
    tiles: usize,
    repeat: Repeat,
}

impl Tile {
    pub(crate) fn build(param: &LayerParameter, _cx: &BuildCx) -> Result<Node> {
        let param = param.tile_param.unwrap_or_default();
        let given = param.tiles.ok_or_else(|| Error::config("tile_param must give tiles, the number of copies"))?;
        let tiles = usize::try_from(given).ok().filter(|tiles| *tiles > 0);
        let tiles = tiles.ok_or_else(|| Error::config(format!("tiles must be at least 1, found {given}")))?;
        Node::compute(Tile { axis: param.axis(), tiles, repeat: Repeat::default() })
    }
}

impl Layer for Tile {
    fn arity(&self) -> Arity {
        Arity::exactly(1, 1)
    }

    fn plan(&mut self, bottoms: &[BlobSpec], _tops: usize) -> Result<Plan> {
        let shape = &bottoms[0].shape;
        let axis = shape.axis(self.axis)?;
        let top = shape.splice(axis..axis + 1, [shape[axis].saturating_mul(self.tiles)]);
        if self.tiles == 1 {
            return Ok(view::plan(&bottoms[0], top));
        }
        self.repeat = Repeat::new(Axes3::new(shape.span(0..axis), self.tiles, shape.count_from(axis)));
        Ok(Plan::new(vec![bottoms[0].with_shape(top)]))
    }
}

impl HostLayer for Tile {
    fn forward<T: Float>(&self, mut io: Fwd<'_, Host>) -> Result<()> {
        if self.tiles == 1 {
            return view::forward::<T>(io);
        }
        self.repeat.expand(io.top::<T>(0)?, io.bottom::<T>(0)?, 1.0);
        Ok(())
    }

    fn backward<T: Float>(&self, mut io: Bwd<'_, Host>) -> Result<()> {
        if self.tiles == 1 {
            return view::backward::<T>(io);
        }
        if let Some(dx) = io.bottom_diff::<T>(0)? {
            self.repeat.fold(dx, io.top_diff::<T>(0)?, 1.0);
        }
        Ok(())
    }
}

impl DeviceLayer for Tile {
    fn formats(&self, offer: &Offer<'_>) -> Formats {
        offer.follow_channels_first()
    }

    fn forward(&self, mut io: Fwd<'_, Device>) -> Result<()> {
        if self.tiles == 1 {
            return view::forward_on(io);
        }
        let y = io.top(0)?;
        self.repeat.expand_on(io.call, y, io.bottom(0)?, 1.0)
    }

    fn backward(&self, mut io: Bwd<'_, Device>) -> Result<()> {
        if self.tiles == 1 {
            return view::backward_on(io);
        }
        let Some(dx) = io.bottom_diff(0) else { return Ok(()) };
        self.repeat.fold_on(io.call, dx, io.top_diff(0)?, 1.0)
    }
}

#[cfg(test)]
mod tests {
    use crate::tests::registry;
    use lgm_testkit::{Case, check, config_error};

    fn layer(param: &str) -> String {
        format!("layer {{ name: 't' type: 'Tile' bottom: 'x' top: 'y' tile_param {{ {param} }} }}")
    }

    #[test]
    fn cases() {
        let mut cases: Vec<Case> = (0..3).map(|i| Case::golden(&format!("layers/tile_more_{i}"))).collect();
        cases.extend([
            Case::golden("layers/tile_0"),
            Case::new(layer("tiles: 4 axis: 0")).bottom([3, 4]),
            Case::new(layer("tiles: 5")).bottom([3, 1]),
            Case::new(layer("tiles: 33 axis: 1")).bottom([2, 3, 37]).without_gradients(),
        ]);
        check(&registry(), &cases);
    }

    #[test]
    fn mistakes_are_named() {
        config_error(&registry(), &layer(""), &[[2, 3].into()], &["tile_param must give tiles"]);
        config_error(&registry(), &layer("tiles: 0"), &[[2, 3].into()], &["tiles must be at least 1, found 0"]);
        config_error(&registry(), &layer("tiles: -2"), &[[2, 3].into()], &["tiles must be at least 1, found -2"]);
        config_error(&registry(), &layer("tiles: 2 axis: 2"), &[[2, 3].into()], &["axis 2", "(2, 3)"]);
    }
}
