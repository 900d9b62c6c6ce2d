//! ContrastiveLoss: brings similar pairs together and others at least a margin m apart.
//!
//! With d = ∣a − b∣ of each of N pairs and y, whether its label is not 0 (its fraction cut off):
//!
//! loss = 1/(2N) · Σ y · d² + (1 − y) · max(m − d, 0)²,
//!
//! or, with `legacy_version`, 1/(2N) · Σ y · d² + (1 − y) · max(m − d², 0). m is `margin` (1).
//!
//! Gradient: da = dL/N · (a − b) · g, db = −da, where g is 1 for a similar pair, else 0 beyond the margin and within it
//! −(m − d)/(d + 10⁻⁴), or −1 with `legacy_version`. The 10⁻⁴ is Caffe's: it keeps the gradient finite where a = b.
//!
//! Shapes: bottoms a and b [N, …] alike but for extents of 1 at the end, and N labels; top the loss. `loss_param` has no effect (in
//! Intel's fork `normalization: NONE` has). Source: Hadsell, Chopra and LeCun, "Dimensionality
//! Reduction by Learning an Invariant Mapping" (2006), and Caffe's layer of this name, which takes no spatial extents.

use lgm_core::{
    Arity, BlobSpec, BuildCx, Bwd, Device, DeviceLayer, DeviceQueue, Error, Float, Fwd, Grid, Host, HostLayer, Layer,
    Node, Plan, Result, Shape, args, ensure,
};
use lgm_proto::{ContrastiveLossParameter, LayerParameter};

use crate::common::labels::check_count;
use crate::common::launch::{extent, row_grid};
use crate::common::loops::{for_rows, sum};
use crate::common::loss::{Tally, warn_of_normalization};

/// What keeps the gradient finite where both features are the same.
const LEAST_DISTANCE: f64 = 1e-4;

/// The layer; see the module.
pub struct ContrastiveLoss {
    param: ContrastiveLossParameter,
    pairs: usize,
    width: usize,
}

impl ContrastiveLoss {
    pub(crate) fn build(param: &LayerParameter, _cx: &BuildCx) -> Result<Node> {
        warn_of_normalization(param);
        let param = param.contrastive_loss_param.unwrap_or_default();
        ensure!(param.margin().is_finite(), "margin must be a finite number, found {}", param.margin());
        Node::compute(ContrastiveLoss { param, pairs: 0, width: 0 })
    }

    /// Twice the loss of a pair at a squared distance.
    fn of_pair(&self, square: f64, similar: bool) -> f64 {
        let margin = f64::from(self.param.margin());
        match (similar, self.param.legacy_version()) {
            (true, _) => square,
            (false, true) => (margin - square).max(0.0),
            (false, false) => (margin - square.sqrt()).max(0.0).powi(2),
        }
    }

    /// What a − b is multiplied by in the gradient of N times the loss.
    fn pull(&self, square: f64, similar: bool) -> f64 {
        let margin = f64::from(self.param.margin());
        let distance = square.sqrt();
        match (similar, self.param.legacy_version()) {
            (true, _) => 1.0,
            (false, true) if margin > square => -1.0,
            (false, false) if margin > distance => -(margin - distance) / (distance + LEAST_DISTANCE),
            _ => 0.0,
        }
    }

    fn tally(&self) -> Tally {
        Tally { terms: self.pairs }
    }
}

fn is_similar<T: Float>(label: T) -> bool {
    label.trunc() != T::zero()
}

impl Layer for ContrastiveLoss {
    fn arity(&self) -> Arity {
        Arity::range(3..=3, 1..=1).with_auto_tops()
    }

    fn plan(&mut self, bottoms: &[BlobSpec], _tops: usize) -> Result<Plan> {
        let (a, b) = (&bottoms[0].shape, &bottoms[1].shape);
        ensure!(!a.is_empty(), "the features must have a batch axis, found a scalar");
        let long = |shape: &Shape| shape.iter().rposition(|&extent| extent != 1).map_or(0, |last| last + 1);
        if a[..long(a)] != b[..long(b)] {
            let what = "bottom 1 must have the shape of bottom 0, extents of 1 at the end aside".into();
            return Err(Error::Shape { what, expected: a.clone(), found: b.clone() });
        }
        (self.pairs, self.width) = (a[0], a.count_from(1));
        check_count(&bottoms[2], self.pairs, &bottoms[0])?;
        Ok(Plan {
            saved: vec![bottoms[0].with_shape([self.pairs])],
            scratch: vec![bottoms[0].with_shape([self.pairs])],
            backward_bottoms: vec![0, 1, 2],
            no_gradient: vec![2],
            flops: 3 * a.count() as u64,
            ..Plan::loss(bottoms[0].dtype)
        })
    }
}

impl HostLayer for ContrastiveLoss {
    fn forward<T: Float>(&self, mut io: Fwd<'_, Host>) -> Result<()> {
        let (a, b, labels) = (io.bottom::<T>(0)?, io.bottom::<T>(1)?, io.bottom::<T>(2)?);
        let squares = io.saved::<T>(0)?.map_or_else(|| io.scratch::<T>(0), Ok)?;
        let n = self.width;
        for_rows(squares, 1, 3 * n, |i, square| {
            square[0] = sum(&a[i * n..][..n], &b[i * n..][..n], |a, b| (a - b) * (a - b));
        });
        let loss: f64 = squares.iter().zip(labels).map(|(s, &y)| self.of_pair(s.f64(), is_similar(y))).sum();
        io.top::<T>(0)?[0] = T::of(loss / (2 * self.pairs.max(1)) as f64);
        Ok(())
    }

    fn backward<T: Float>(&self, mut io: Bwd<'_, Host>) -> Result<()> {
        let (a, b, labels, squares) = (io.bottom::<T>(0)?, io.bottom::<T>(1)?, io.bottom::<T>(2)?, io.saved::<T>(0)?);
        let scale = io.top_diff::<T>(0)?[0].f64() / self.pairs.max(1) as f64;
        let n = self.width;
        for (bottom, scale) in [scale, -scale].into_iter().enumerate() {
            let Some(d) = io.bottom_diff::<T>(bottom)? else { continue };
            for_rows(d, n, 2 * n, |i, d| {
                let factor = T::of(scale * self.pull(squares[i].f64(), is_similar(labels[i])));
                let pairs = a[i * n..].iter().zip(&b[i * n..]);
                d.iter_mut().zip(pairs).for_each(|(d, (&a, &b))| *d = factor * (a - b));
            });
        }
        Ok(())
    }
}

impl DeviceLayer for ContrastiveLoss {
    fn prepare(&mut self, _queue: &dyn DeviceQueue, plan: &mut Plan) -> Result<()> {
        plan.scratch.push(self.tally().scratch(&plan.tops[0]));
        Ok(())
    }

    fn forward(&self, mut io: Fwd<'_, Device>) -> Result<()> {
        let (a, b, labels, loss) = (io.bottom(0)?, io.bottom(1)?, io.bottom(2)?, io.top(0)?);
        let squares = io.saved(0).map_or_else(|| io.scratch(0), Ok)?;
        let partial = io.scratch(1)?;
        let (pairs, legacy) = (extent(self.pairs)?, u32::from(self.param.legacy_version()));
        let args = args![squares, a, b, pairs, extent(self.width)?];
        io.launch("contrastive_distances", Grid::elements(self.pairs * 32), args)?;
        let args = args![partial, squares, labels, self.param.margin(), legacy, pairs];
        io.launch("contrastive_partials", self.tally().grid(), args)?;
        let z = Some((2 * self.pairs.max(1)) as f32);
        self.tally().finish(io.call, (loss, None), partial, None, z)
    }

    fn backward(&self, mut io: Bwd<'_, Device>) -> Result<()> {
        let (a, b, labels) = (io.bottom(0)?, io.bottom(1)?, io.bottom(2)?);
        let (squares, d_loss) = (io.saved(0)?, io.top_diff(0)?);
        let (pairs, width, legacy) = (extent(self.pairs)?, extent(self.width)?, u32::from(self.param.legacy_version()));
        let scale = 1.0 / self.pairs.max(1) as f32;
        for (bottom, scale) in [scale, -scale].into_iter().enumerate() {
            let Some(d) = io.bottom_diff(bottom) else { continue };
            let margin = self.param.margin();
            let args = args![d, a, b, squares, labels, d_loss, scale, margin, legacy, pairs, width];
            io.launch("contrastive_backward", row_grid(self.pairs, self.width), args)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use lgm_testkit::{Case, Fill, check, config_error};

    fn text(fields: &str) -> String {
        let blobs = "bottom: 'a' bottom: 'b' bottom: 'y' top: 'l'";
        format!("layer {{ name: 'c' type: 'ContrastiveLoss' {blobs} contrastive_loss_param {{ {fields} }} }}")
    }

    fn case(fields: &str) -> Case {
        // Caffe's constant in the denominator shows in the gradient.
        Case::new(text(fields)).precision(1e-4, 2e-3)
    }

    #[test]
    fn cases() {
        let golden = |name: &str| Case::golden(&format!("layers/{name}")).precision(1e-4, 2e-3);
        let labels = || Fill::Given(vec![0.0, 1.0, 0.5, -1.0, 0.0, 0.0]);
        check(
            &crate::tests::registry(),
            &[
                golden("contrastive"),
                golden("contrastive_more_0"),
                golden("contrastive_more_1"),
                case("margin: 2.5").bottom([6, 5]).bottom([6, 5]).bottom_of([6, 1], labels()),
                case("margin: 6 legacy_version: true").bottom([6, 2, 3]).bottom([6, 2, 3]).bottom_of([6], labels()),
                case("margin: 3").bottom([5, 4]).bottom([5, 4, 1, 1]).bottom_of([5, 1, 1, 1], Fill::Labels(2)),
                case("").bottom([3, 1]).bottom([3]).bottom_of([3], Fill::Labels(2)),
                // Pairs of no distance.
                case("")
                    .bottom_of([2, 2], Fill::Given(vec![1.0; 4]))
                    .bottom_of([2, 2], Fill::Given(vec![1.0; 4]))
                    .bottom_of([2], Fill::Given(vec![0.0, 1.0]))
                    .without_gradients(),
                case("").bottom([70, 300]).bottom([70, 300]).bottom_of([70], Fill::Labels(2)).without_gradients(),
            ],
        );
    }

    #[test]
    fn mistakes_are_named() {
        let registry = crate::tests::registry();
        config_error(&registry, &text("margin: nan"), &[[2].into(), [2].into(), [2].into()], &["margin", "NaN"]);
        let fails =
            |shapes: [lgm_core::Shape; 3], needles: &[&str]| config_error(&registry, &text(""), &shapes, needles);
        fails([[2, 3].into(), [3, 2].into(), [2].into()], &["bottom 1", "(2, 3)", "(3, 2)"]);
        fails([[2, 3, 1].into(), [2, 1, 3].into(), [2].into()], &["bottom 1", "(2, 3, 1)", "(2, 1, 3)"]);
        fails([[2, 3].into(), [2, 3].into(), [3].into()], &["expected 2", "found 3"]);
        fails([lgm_core::Shape::scalar(), lgm_core::Shape::scalar(), [1].into()], &["batch axis"]);
    }
}
