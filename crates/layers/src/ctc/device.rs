//! CTC on a device: a block for each sequence. What a sequence cannot take is reported by one block after all.

use lgm_core::{Arg, Bwd, Device, DeviceLayer, DevicePtr, DeviceQueue, Error, Fault, Fwd, Grid, Plan, Result, args};

use super::Extents;
use super::decoder::CtcGreedyDecoder;
use super::loss::{CtcLoss, not_a_label, too_long};
use crate::common::launch::{extent, row_grid};

/// Words of an item's labels before them, and what it reports.
const HEAD: usize = 2;
const REPORT: usize = 4;

/// The first kind of fault; any other is a label that is no class.
const TOO_LONG: u32 = 2;

impl Extents {
    /// The first arguments after the blobs of every kernel.
    fn args(&self) -> Result<[Arg; 6]> {
        let extents = [self.steps, self.items, self.classes, self.blank, self.labels];
        let [steps, items, classes, blank, labels] = extents.map(extent);
        Ok([steps?, items?, classes?, blank?, labels?, u32::from(self.by_step)].map(Arg::from))
    }

    fn after(&self, args: &[Arg]) -> Result<Vec<Arg>> {
        Ok([args, &self.args()?].concat())
    }

    /// y = 1/N · Σ of what items report.
    fn finish(&self, io: &Fwd<'_, Device>, y: DevicePtr, reports: DevicePtr) -> Result<()> {
        let args = args![y, reports, extent(self.items)?, io.call.fault];
        io.launch("ctc_finish", Grid::rows(1, Grid::THREADS), args)
    }
}

impl DeviceLayer for CtcLoss {
    fn prepare(&mut self, _queue: &dyn DeviceQueue, plan: &mut Plan) -> Result<()> {
        let (like, Extents { steps, items, labels, .. }) = (&plan.tops[0], self.of);
        plan.scratch = vec![
            like.with_shape([items, HEAD + 2 * labels]),
            like.with_shape([items, steps + 2, self.places()]),
            like.with_shape([steps, items]),
            like.with_shape([items, REPORT]),
        ];
        Ok(())
    }

    fn explain(&self, fault: Fault) -> Error {
        let (at, detail) = (fault[1] as usize, fault[2]);
        if fault[0] == TOO_LONG {
            return too_long(at, detail as usize);
        }
        let Extents { items, labels, classes, by_step, .. } = self.of;
        let (n, k) = if by_step { (at % items, at / items) } else { (at / labels.max(1), at % labels.max(1)) };
        not_a_label(f32::from_bits(detail), n, k, classes)
    }

    fn forward(&self, mut io: Fwd<'_, Device>) -> Result<()> {
        let (x, labels, loss) = (io.bottom(0)?, io.bottom(self.labels_bottom())?, io.top(0)?);
        let indicators = if self.of.by_step { Some(io.bottom(1)?) } else { None };
        let (targets, lattice, sums, reports) = (io.scratch(0)?, io.scratch(1)?, io.scratch(2)?, io.scratch(3)?);
        let gradient = io.saved(0);
        let Extents { steps, items, classes, .. } = self.of;
        let rows = extent(steps * items)?;
        io.launch("ctc_sums", Grid::elements(steps * items * 32), args![sums, x, rows, extent(classes)?])?;
        let (time, delay) = (extent(self.steps())?, extent(self.delay())?);
        let collapsed = u32::from(self.param.preprocess_collapse_repeated());
        let merged = u32::from(self.param.ctc_merge_repeated());
        let read = args![targets, reports, labels, indicators, time, delay, collapsed, merged];
        io.launch("ctc_read", Grid::elements(items), &self.of.after(read)?)?;
        let args = args![reports, gradient, lattice, targets, x, sums, delay, merged];
        // Two warps at least, between which reductions are barriers.
        let threads = (self.places().next_multiple_of(32) as u32).clamp(64, Grid::THREADS);
        io.launch("ctc_loss", Grid::rows(items, threads), &self.of.after(args)?)?;
        self.of.finish(&io, loss, reports)
    }

    fn backward(&self, mut io: Bwd<'_, Device>) -> Result<()> {
        let Some(dx) = io.bottom_diff(0) else { return Ok(()) };
        let Extents { steps, items, classes, .. } = self.of;
        let args = args![dx, io.saved(0)?, io.top_diff(0)?, extent(steps)?, extent(items)?, extent(classes)?];
        io.launch("ctc_backward", row_grid(steps * items, classes), args)
    }
}

impl DeviceLayer for CtcGreedyDecoder {
    fn prepare(&mut self, _queue: &dyn DeviceQueue, plan: &mut Plan) -> Result<()> {
        let (like, Extents { steps, items, .. }) = (&plan.tops[0], self.of);
        plan.scratch = vec![like.with_shape([items, 2, steps]), like.with_shape([items, REPORT])];
        Ok(())
    }

    fn forward(&self, mut io: Fwd<'_, Device>) -> Result<()> {
        let x = io.bottom(0)?;
        let indicators = if self.of.by_step { Some(io.bottom(1)?) } else { None };
        let labels = self.labels_bottom().map(|i| io.bottom(i)).transpose()?;
        let [sequences, scores] = [self.tops.sequences, self.tops.scores].map(|top| top.map(|top| io.top(top)));
        let (best, reports) = (io.scratch(0)?, io.scratch(1)?);
        let [step, item] = self.strides().map(extent);
        let args = args![
            sequences.transpose()?,
            scores.transpose()?,
            reports,
            best,
            x,
            indicators,
            labels,
            step?,
            item?,
            u32::from(self.merged)
        ];
        io.launch("ctc_decode", Grid::rows(self.of.items, Grid::THREADS), &self.of.after(args)?)?;
        match self.tops.accuracy {
            Some(top) => {
                let accuracy = io.top(top)?;
                self.of.finish(&io, accuracy, reports)
            }
            None => Ok(()),
        }
    }
}
