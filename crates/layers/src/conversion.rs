//! Conversion: on a device, a blob and its gradient from one format to another. Never named in a prototxt: nets put it
//! between layers that do not agree on a format. On the host, which knows one format, the top is the bottom.
//!
//! Shapes: bottom and top alike. Gradient: the top's, in the bottom's format.

use lgm_core::{
    Arity, Axes3, BlobSpec, Bwd, Device, DeviceLayer, Float, Format, Formats, Fwd, Host, HostLayer, Layer, Node, Offer,
    Plan, Result,
};

use crate::common::convert::convert;

/// The layer; see the module.
pub struct Conversion {
    from: Format,
    to: Format,
    axes: Axes3,
}

impl Conversion {
    /// From one format to another.
    pub(crate) fn build(from: Format, to: Format) -> Result<Node> {
        Node::compute(Conversion { from, to, axes: Axes3::default() })
    }

    fn formats(&self) -> Formats {
        Formats { bottoms: [self.from].into_iter().collect(), tops: [self.to].into_iter().collect() }
    }
}

impl Layer for Conversion {
    fn arity(&self) -> Arity {
        Arity::exactly(1, 1)
    }

    fn plan(&mut self, bottoms: &[BlobSpec], _tops: usize) -> Result<Plan> {
        let shape = &bottoms[0].shape;
        self.axes = match shape.len() {
            0 | 1 => Axes3::new(1, 1, shape.count()),
            _ => Axes3::around(shape, 1..2),
        };
        Ok(Plan { formats: self.formats(), ..Plan::new(vec![bottoms[0].clone()]) })
    }
}

impl HostLayer for Conversion {
    fn forward<T: Float>(&self, mut io: Fwd<'_, Host>) -> Result<()> {
        io.top::<T>(0)?.copy_from_slice(io.bottom::<T>(0)?);
        Ok(())
    }

    fn backward<T: Float>(&self, mut io: Bwd<'_, Host>) -> Result<()> {
        let dy = io.top_diff::<T>(0)?;
        if let Some(dx) = io.bottom_diff::<T>(0)? {
            dx.copy_from_slice(dy);
        }
        Ok(())
    }
}

impl DeviceLayer for Conversion {
    fn formats(&self, _offer: &Offer<'_>) -> Formats {
        Conversion::formats(self)
    }

    fn forward(&self, mut io: Fwd<'_, Device>) -> Result<()> {
        let (x, y) = (io.bottom(0)?, io.top(0)?);
        convert(io.queue(), (y, self.to), (x, self.from), self.axes, false)
    }

    fn backward(&self, mut io: Bwd<'_, Device>) -> Result<()> {
        let dy = io.top_diff(0)?;
        let Some(dx) = io.bottom_diff(0) else { return Ok(()) };
        convert(io.queue(), (dx, self.from), (dy, self.to), self.axes, false)
    }
}

#[cfg(test)]
mod tests {
    use super::Conversion;
    use lgm_core::{Element, Format, Layout, Registry};
    use lgm_testkit::{Case, check};

    const LAST: Format = Format { element: Element::F32, layout: Layout::ChannelsLast };
    const NARROW: Format = Format { element: Element::Bf16, layout: Layout::ChannelsFirst };
    const BOTH: Format = Format { element: Element::Bf16, layout: Layout::ChannelsLast };

    #[test]
    fn there_and_back_between_all_formats() {
        let mut registry = Registry::default();
        registry.add("ToLast", |_, _| Conversion::build(Format::PLAIN, LAST));
        registry.add("FromLast", |_, _| Conversion::build(LAST, Format::PLAIN));
        registry.add("Narrow", |_, _| Conversion::build(Format::PLAIN, NARROW));
        registry.add("Widen", |_, _| Conversion::build(NARROW, Format::PLAIN));
        registry.add("NarrowToLast", |_, _| Conversion::build(Format::PLAIN, BOTH));
        registry.add("WidenFromLast", |_, _| Conversion::build(BOTH, Format::PLAIN));
        registry.add("BothToLast", |_, _| Conversion::build(NARROW, BOTH));
        let mut cases = Vec::new();
        for kind in registry.kinds() {
            let layer = || Case::new(format!("layer {{ name: 'l' type: '{kind}' bottom: 'x' top: 'y' }}"));
            cases.push(layer().bottom([2, 3, 4, 5]));
            cases.push(layer().bottom([3, 33, 7, 9]).without_gradients());
            cases.push(layer().bottom([2, 64, 65]).without_gradients());
            cases.push(layer().bottom([5, 7]));
            cases.push(layer().bottom([9]));
        }
        check(&registry, &cases);
    }
}
