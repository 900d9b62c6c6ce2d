//! Crop: from `axis` (2) on, so much of the first bottom as the second has, beginning at `offset`.
//!
//! `offset` is given once for all these axes, once for each, or not at all: 0. Shapes: x [d₀, d₁, …] and a second bottom
//! with as many axes or more, of which only the extents of x's axes from `axis` on matter; top x's extents before `axis`, the
//! second bottom's from there. Gradient: dy where it was cut out, 0 elsewhere; 0 by the second bottom, of which only the shape is read.
//!
//! Source: Caffe's layer of this name.

use lgm_core::{
    Arity, BlobSpec, BuildCx, Bwd, Device, DeviceLayer, Float, Formats, Fwd, Host, HostLayer, Layer, Node, Offer, Plan,
    Result, Shape, ensure,
};
use lgm_cpu::elementwise::set;
use lgm_proto::{CropParameter, LayerParameter};

use crate::common::launch::fill;
use crate::common::loops::for_rows;
use crate::common::strided::Strided;
use crate::common::view;

/// The layer; see the module.
pub struct Crop {
    param: CropParameter,
    /// Axes of the bottom, outermost first; those that are whole are one with the axis before them.
    cuts: Vec<Cut>,
    /// The top within the bottom.
    top: Strided,
    /// Elements of the bottom.
    count: usize,
    /// The shape of the second bottom.
    like: Shape,
}

/// `len` elements of an axis of `extent`, from `offset` on.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Cut {
    extent: usize,
    offset: usize,
    len: usize,
}

impl Crop {
    pub(crate) fn build(param: &LayerParameter, _cx: &BuildCx) -> Result<Node> {
        let param = param.crop_param.clone().unwrap_or_default();
        Node::compute(Crop { param, cuts: Vec::new(), top: Strided::default(), count: 0, like: Shape::scalar() })
    }

    fn cuts(&self, bottom: &Shape, like: &Shape) -> Result<Vec<Cut>> {
        let (axis, offsets) = (bottom.axis(self.param.axis())?, &self.param.offset);
        ensure!(
            like.len() >= bottom.len(),
            "the second bottom gives the extents: its shape {like} must have at least as many axes as the first, {bottom}"
        );
        let cropped = bottom.len() - axis;
        ensure!(
            offsets.len() <= 1 || offsets.len() == cropped,
            "offset must be given once, or once for each of the {cropped} axes from {axis} on; found {} times",
            offsets.len()
        );
        let mut cuts = Vec::new();
        for (a, &extent) in bottom.iter().enumerate() {
            if a < axis {
                cuts.push(Cut { extent, offset: 0, len: extent });
                continue;
            }
            let given = if offsets.len() == 1 { offsets.first() } else { offsets.get(a - axis) };
            let (offset, len) = (given.map_or(0, |&o| o as usize), like[a]);
            ensure!(
                offset.checked_add(len).is_some_and(|end| end <= extent),
                "axis {a}: {len} elements from offset {offset} go beyond the {extent} of the first bottom {bottom}"
            );
            cuts.push(Cut { extent, offset, len });
        }
        Ok(cuts)
    }

    fn is_whole(&self) -> bool {
        self.cuts.is_empty()
    }

    /// Where row `row` of the bottom's innermost axis begins in the top, if it reaches into it.
    fn row_of_top(&self, mut row: usize) -> Option<usize> {
        let mut rows = self.cuts.iter().rev();
        let mut stride = rows.next()?.len;
        let mut at = 0;
        for cut in rows {
            let i = (row % cut.extent).checked_sub(cut.offset).filter(|i| *i < cut.len)?;
            at += i * stride;
            stride *= cut.len;
            row /= cut.extent;
        }
        Some(at)
    }
}

/// Axes that are whole joined to the one before them.
fn merged(cuts: &[Cut]) -> Vec<Cut> {
    let mut merged: Vec<Cut> = Vec::new();
    for &cut in cuts {
        match merged.last_mut() {
            Some(outer) if cut.len == cut.extent => {
                let n = cut.extent;
                *outer = Cut { extent: outer.extent * n, offset: outer.offset * n, len: outer.len * n };
            }
            _ => merged.push(cut),
        }
    }
    merged
}

impl Layer for Crop {
    fn arity(&self) -> Arity {
        Arity::exactly(2, 1)
    }

    fn plan(&mut self, bottoms: &[BlobSpec], _tops: usize) -> Result<Plan> {
        let bottom = &bottoms[0].shape;
        let cuts = self.cuts(bottom, &bottoms[1].shape)?;
        self.like = bottoms[1].shape.clone();
        let shape = Shape::new(cuts.iter().map(|cut| cut.len));
        if shape == *bottom {
            return Ok(view::plan(&bottoms[0], shape));
        }
        let strides = || (0..).map(|a| bottom.count_from(a + 1));
        let from = cuts.iter().zip(strides()).map(|(cut, stride)| cut.offset * stride).sum();
        self.top = Strided::new(cuts.iter().zip(strides()).map(|(cut, stride)| (cut.len, stride)), from);
        self.cuts = merged(&cuts);
        self.count = bottom.count();
        Ok(Plan::new(vec![bottoms[0].with_shape(shape)]))
    }
}

impl HostLayer for Crop {
    fn forward<T: Float>(&self, mut io: Fwd<'_, Host>) -> Result<()> {
        if self.is_whole() {
            return view::forward::<T>(io);
        }
        self.top.gather(io.top::<T>(0)?, io.bottom::<T>(0)?);
        Ok(())
    }

    fn backward<T: Float>(&self, mut io: Bwd<'_, Host>) -> Result<()> {
        if let Some(unread) = io.bottom_diff::<T>(1)? {
            set(T::zero(), unread);
        }
        if self.is_whole() {
            return view::backward::<T>(io);
        }
        let Some(&Cut { extent, offset, len }) = self.cuts.last() else { return Ok(()) };
        let dy = io.top_diff::<T>(0)?;
        if let Some(dx) = io.bottom_diff::<T>(0)? {
            for_rows(dx, extent, extent, |row, dx| match self.row_of_top(row) {
                Some(at) => {
                    dx[..offset].fill(T::zero());
                    dx[offset..offset + len].copy_from_slice(&dy[at..at + len]);
                    dx[offset + len..].fill(T::zero());
                }
                None => dx.fill(T::zero()),
            });
        }
        Ok(())
    }
}

impl DeviceLayer for Crop {
    fn is_supported(&self) -> bool {
        self.top.is_supported()
    }

    fn formats(&self, offer: &Offer<'_>) -> Formats {
        let format = offer.follow_channels_first().top(0);
        let shape_only = offer.arriving.get(1).copied().unwrap_or_default();
        Formats { bottoms: [format, shape_only].into_iter().collect(), tops: [format].into_iter().collect() }
    }

    fn forward(&self, mut io: Fwd<'_, Device>) -> Result<()> {
        if self.is_whole() {
            return view::forward_on(io);
        }
        let y = io.top(0)?;
        self.top.gather_on(io.call, y, io.bottom(0)?)
    }

    fn backward(&self, mut io: Bwd<'_, Device>) -> Result<()> {
        if let Some(unread) = io.bottom_diff(1) {
            // Zero is no bits, however many an element has.
            io.queue().zero(unread, io.call.formats.bottom(1).bytes(&self.like))?;
        }
        if self.is_whole() {
            return view::backward_on(io);
        }
        let Some(dx) = io.bottom_diff(0) else { return Ok(()) };
        fill(io.call, dx, 0.0, self.count)?;
        self.top.scatter_on(io.call, io.top_diff(0)?, dx)
    }
}

#[cfg(test)]
mod tests {
    use crate::tests::registry;
    use lgm_core::Shape;
    use lgm_testkit::{Case, check, config_error};

    fn layer(param: &str) -> String {
        format!("layer {{ name: 'c' type: 'Crop' bottom: 'x' bottom: 'like' top: 'y' crop_param {{ {param} }} }}")
    }

    fn crop(param: &str, x: impl Into<Shape>, like: impl Into<Shape>) -> Case {
        Case::new(layer(param)).bottom(x).bottom(like)
    }

    #[test]
    fn cases() {
        let mut cases: Vec<Case> = (0..4).map(|i| Case::golden(&format!("layers/crop_more_{i}"))).collect();
        cases.extend([
            Case::golden("layers/crop"),
            crop("", [2, 3, 4, 5], [1, 1, 4, 5]),
            crop("axis: 1 offset: 1 offset: 0", [2, 3, 4], [1, 2, 4]),
            crop("axis: 0 offset: 2", [5], [3]),
            crop("axis: -1 offset: 1", [3, 4], [9, 2]),
            crop("axis: 1", [2, 3, 2, 3, 2], [1, 2, 1, 2, 1]),
            crop("axis: -2 offset: 1", [2, 3, 4], [5, 2, 3, 7]),
            crop("", [2, 3, 4], [2, 3, 4, 2]),
            // Nothing is cut out.
            crop("axis: 1 offset: 1", [2, 3, 4], [1, 0, 2]),
        ]);
        check(&registry(), &cases);
    }

    #[test]
    fn mistakes_are_named() {
        let refused = |param: &str, x: Shape, like: Shape, needles: &[&str]| {
            config_error(&registry(), &layer(param), &[x, like], needles);
        };
        refused("axis: 4", [2, 3, 4, 5].into(), [2, 3, 4, 5].into(), &["axis 4", "(2, 3, 4, 5)"]);
        refused(
            "axis: 1",
            [2, 3, 4].into(),
            [2, 3].into(),
            &["(2, 3)", "at least as many axes as the first, (2, 3, 4)"],
        );
        let three = "axis: 1 offset: 1 offset: 1 offset: 1";
        refused(three, [2, 3, 4].into(), [2, 2, 2].into(), &["once for each of the 2 axes from 1 on", "3 times"]);
        let far = ["axis 2", "3 elements from offset 2", "the 4 of the first bottom (2, 3, 4)"];
        refused("offset: 2", [2, 3, 4].into(), [2, 3, 3].into(), &far);
    }
}
