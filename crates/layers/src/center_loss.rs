//! CenterLoss: 1/(2N) · Σ ∣xᵢ − c_y∣², the distance of each item's features to the center of its class y, which is learned.
//!
//! Gradient: dx = dL/N · (x − c_y). The centers move by the published rule, not by the loss's gradient: what is added to the
//! diff of cₖ is Σ (cₖ − xᵢ) over the items of class k in the batch, over 1 + their number, whatever weight the loss has. A
//! center so moves by the mean of its items' distances, tempered where they are few, and `lr_mult` is the paper's α. Give
//! centers a `decay_mult` of 0.
//!
//! Shapes: bottoms features [N, …], K elements from `axis` (1) on, and N labels; top the loss; parameter centers
//! [`num_output`, K], filled by `center_filler`.
//!
//! Source: Wen, Zhang, Li and Qiao, "A Discriminative Feature Learning Approach for Deep Face Recognition" (ECCV 2016); the
//! L-GM fork's layer of this name. Where we differ: batches of an iteration (`iter_size`) add up, where only the fork's last
//! one counts; a label outside the classes is an error that names it.

use lgm_core::{
    Arity, BlobSpec, BuildCx, Bwd, Device, DeviceLayer, DeviceQueue, Error, Fault, Float, Fwd, Grid, Host, HostLayer,
    Layer, Node, ParamSpec, Plan, Result, args, ensure,
};
use lgm_cpu::for_each_part;
use lgm_proto::{CenterLossParameter, LayerParameter};

use crate::common::labels::{self, Labels, check_count};
use crate::common::launch::extent;
use crate::common::loops::{for_rows, sum};
use crate::common::loss::Tally;

/// Classes whose centers are moved by one task, which looks at every label.
const CLASSES: usize = 256;

/// The layer; see the module.
pub struct CenterLoss {
    param: CenterLossParameter,
    labels: Labels,
    items: usize,
    width: usize,
}

impl CenterLoss {
    pub(crate) fn build(param: &LayerParameter, _cx: &BuildCx) -> Result<Node> {
        let param = param.center_loss_param.clone().unwrap_or_default();
        ensure!(param.num_output() > 0, "num_output, the number of classes, must be given and positive");
        let labels = Labels::of(param.num_output() as usize);
        Node::compute(CenterLoss { param, labels, items: 0, width: 0 })
    }

    fn tally(&self) -> Tally {
        Tally { terms: self.items * self.width }
    }
}

impl Layer for CenterLoss {
    fn arity(&self) -> Arity {
        Arity::range(2..=2, 1..=1).with_auto_tops()
    }

    fn plan(&mut self, bottoms: &[BlobSpec], _tops: usize) -> Result<Plan> {
        let x = &bottoms[0];
        let axis = x.shape.axis(self.param.axis())?;
        (self.items, self.width) = (x.shape.span(0..axis), x.shape.count_from(axis));
        check_count(&bottoms[1], self.items, x)?;
        Ok(Plan {
            params: vec![ParamSpec::new([self.labels.classes, self.width], self.param.center_filler.as_ref())],
            scratch: vec![x.with_shape([self.items])],
            backward_bottoms: vec![0, 1],
            flops: 3 * x.shape.count() as u64,
            ..Plan::loss(x.dtype)
        })
    }
}

impl HostLayer for CenterLoss {
    fn forward<T: Float>(&self, mut io: Fwd<'_, Host>) -> Result<()> {
        let (x, labels, centers) = (io.bottom::<T>(0)?, io.bottom::<T>(1)?, io.param::<T>(0)?);
        let (n, squares) = (self.width, io.scratch::<T>(0)?);
        self.labels.count(labels)?;
        for_rows(squares, 1, 3 * n, |i, square| {
            let center = self.labels.known(labels, i).map_or(&[][..], |own| &centers[own * n..][..n]);
            square[0] = sum(&x[i * n..][..center.len()], center, |x, c| (x - c) * (x - c));
        });
        let squares: f64 = squares.iter().map(|s| s.f64()).sum();
        io.top::<T>(0)?[0] = T::of(squares / (2 * self.items.max(1)) as f64);
        Ok(())
    }

    fn backward<T: Float>(&self, mut io: Bwd<'_, Host>) -> Result<()> {
        let (x, labels, centers) = (io.bottom::<T>(0)?, io.bottom::<T>(1)?, io.param::<T>(0)?);
        let (n, scale) = (self.width, io.top_diff::<T>(0)?[0] / T::of(self.items.max(1) as f64));
        self.labels.count(labels)?;
        let own = |i: usize| self.labels.known(labels, i);
        if let Some(dx) = io.bottom_diff::<T>(0)? {
            for_rows(dx, n, 2 * n, |i, dx| {
                let Some(own) = own(i) else { return };
                let pairs = x[i * n..].iter().zip(&centers[own * n..]);
                dx.iter_mut().zip(pairs).for_each(|(dx, (&x, &c))| *dx = scale * (x - c));
            });
        }
        if let Some(dc) = io.param_diff::<T>(0)? {
            for_each_part(dc, CLASSES * n, |part, dc| {
                let first = part * CLASSES;
                let mut counts = [0u32; CLASSES];
                let here = |i: usize| own(i).and_then(|k| k.checked_sub(first)).filter(|&k| k < CLASSES);
                (0..self.items).filter_map(here).for_each(|k| counts[k] += 1);
                for i in 0..self.items {
                    let Some(k) = here(i) else { continue };
                    let share = T::one() / T::of(1.0 + f64::from(counts[k]));
                    let pairs = x[i * n..].iter().zip(&centers[(first + k) * n..]);
                    let center = &mut dc[k * n..][..n];
                    center.iter_mut().zip(pairs).for_each(|(d, (&x, &c))| *d += share * (c - x));
                }
            });
        }
        Ok(())
    }
}

impl DeviceLayer for CenterLoss {
    fn prepare(&mut self, _queue: &dyn DeviceQueue, plan: &mut Plan) -> Result<()> {
        plan.scratch = vec![self.tally().scratch(&plan.tops[0])];
        Ok(())
    }

    fn explain(&self, fault: Fault) -> Error {
        labels::explain(fault, self.labels.classes)
    }

    fn forward(&self, mut io: Fwd<'_, Device>) -> Result<()> {
        let (x, labels, centers) = (io.bottom(0)?, io.bottom(1)?, io.param(0)?);
        let (loss, partial) = (io.top(0)?, io.scratch(0)?);
        let args = args![partial, x, centers, labels, extent(self.items * self.width)?, extent(self.width)?];
        io.launch("center_partials", self.tally().grid(), &self.labels.after(args)?)?;
        let z = (2 * self.items.max(1)) as f32;
        self.tally().finish(io.call, (loss, None), partial, Some(labels), Some(z))
    }

    fn backward(&self, mut io: Bwd<'_, Device>) -> Result<()> {
        let (x, labels, centers) = (io.bottom(0)?, io.bottom(1)?, io.param(0)?);
        let (count, width) = (self.items * self.width, extent(self.width)?);
        let d_loss = io.top_diff(0)?;
        if let Some(dx) = io.bottom_diff(0) {
            let items = self.items.max(1) as f32;
            let args = args![dx, x, centers, labels, d_loss, items, extent(count)?, width];
            io.launch("center_items", Grid::elements(count), &self.labels.after(args)?)?;
        }
        if let Some(dc) = io.param_diff(0) {
            let args = args![dc, x, centers, labels, extent(self.items)?, width];
            let grid = Grid::rows(self.labels.classes.min(MOST_BLOCKS), crate::common::row_sums::threads(self.width));
            io.launch("center_classes", grid, &self.labels.after(args)?)?;
        }
        Ok(())
    }
}

/// Blocks of the kernel that goes over the classes, at the most.
const MOST_BLOCKS: usize = 1 << 16;

#[cfg(test)]
mod tests {
    use lgm_core::{DType, Phase};
    use lgm_testkit::{Case, Fill, Harness, assert_close, check, config_error};

    fn text(fields: &str) -> String {
        let blobs = "bottom: 'x' bottom: 'y' top: 'l'";
        format!("layer {{ name: 'c' type: 'CenterLoss' {blobs} center_loss_param {{ {fields} }} }}")
    }

    fn case(fields: &str) -> Case {
        Case::new(text(&format!("center_filler {{ type: 'gaussian' }} {fields}")))
    }

    #[test]
    fn cases() {
        // The centers' diffs are no gradient, on purpose; the features' is checked below.
        let cases = [
            Case::golden("layers/fork_center_0"),
            case("num_output: 7").bottom([9, 5]).bottom_of([9], Fill::Labels(7)),
            case("num_output: 3 axis: 2").bottom([2, 3, 4]).bottom_of([6], Fill::Labels(3)),
            case("num_output: 3 axis: -1").bottom([5, 4]).bottom_of([5, 1], Fill::Labels(3)),
            case("num_output: 600").bottom([70, 33]).bottom_of([70], Fill::Labels(600)),
            case("num_output: 2").bottom([130, 300]).bottom_of([130], Fill::Labels(2)),
        ];
        check(&crate::tests::registry(), &cases.map(Case::without_gradients));
    }

    #[test]
    fn centers_move_by_the_published_rule_and_features_by_the_gradient() {
        let shapes = [[3, 2].into(), [3].into()];
        let harness =
            Harness::new(&crate::tests::registry(), &text("num_output: 3"), Phase::Train, DType::F64, &shapes).unwrap();
        let mut inputs = harness.forward_inputs(&[&[1.0, 2.0, 3.0, 6.0, 5.0, -1.0], &[0.0, 0.0, 2.0]]).unwrap();
        inputs.params = vec![vec![0.5, 0.0, 9.0, 9.0, 1.0, 1.0]];
        // A weight of 0.6, and what an earlier batch left.
        inputs.top_diffs = vec![vec![0.6]];
        inputs.param_diffs = vec![vec![1.0; 6]];
        let out = harness.run(&inputs).unwrap();
        let squares = 0.25 + 4.0 + 6.25 + 36.0 + 16.0 + 4.0;
        assert_close("loss", &out.tops[0], &[squares / 6.0], 1e-12);
        let dx = [0.5, 2.0, 2.5, 6.0, 4.0, -2.0].map(|d| 0.2 * d);
        assert_close("features", out.bottom_diffs[0].as_ref().unwrap(), &dx, 1e-12);
        let dc = [1.0 - 3.0 / 3.0, 1.0 - 8.0 / 3.0, 1.0, 1.0, 1.0 - 4.0 / 2.0, 1.0 + 2.0 / 2.0];
        assert_close("centers", out.param_diffs[0].as_ref().unwrap(), &dc, 1e-12);
    }

    #[test]
    fn mistakes_are_named() {
        let registry = crate::tests::registry();
        config_error(&registry, &text(""), &[[2, 3].into(), [2].into()], &["num_output"]);
        config_error(&registry, &text("num_output: 4 axis: 3"), &[[2, 3].into(), [2].into()], &["axis 3"]);
        config_error(&registry, &text("num_output: 4"), &[[2, 3].into(), [3].into()], &["expected 2", "found 3"]);
    }
}
