//! DetectionEvaluate on a device: each detection by itself, against all ground truths and all detections before it.

use lgm_core::{Arg, Device, DeviceLayer, DeviceQueue, Error, Fault, Fwd, Grid, Plan, Result, args};
use lgm_proto::resize_parameter::ResizeMode;

use super::{DetectionEvaluate, ROW};
use crate::common::launch::{extent, fill};
use crate::detection::lists::{NONE, blocks};
use crate::detection::truth::{not_a_class, not_an_image};

/// Kinds of faults; a third is a detection of no image or class.
const TRUTH_OF_NO_IMAGE: u32 = 2;
const TRUTH_OF_NO_CLASS: u32 = 3;

impl DetectionEvaluate {
    /// How boxes were resized, as kernels take it: how, height and width.
    fn resized(&self) -> (u32, [f32; 2]) {
        let Some(resize) = &self.resize else { return (0, [1.0; 2]) };
        let to_net = [resize.height_scale(), resize.width_scale()];
        match resize.resize_mode() {
            ResizeMode::FitSmallSize if !to_net.contains(&0) => (1, to_net.map(|side| side as f32)),
            ResizeMode::FitLargeSizeAndPad => (2, [resize.height() as f32, resize.width() as f32]),
            _ => (0, [1.0; 2]),
        }
    }
}

impl DeviceLayer for DetectionEvaluate {
    /// Height and width of each image.
    fn constants(&self) -> Vec<f32> {
        self.sizes.iter().flatten().map(|&side| side as f32).collect()
    }

    fn prepare(&mut self, _queue: &dyn DeviceQueue, plan: &mut Plan) -> Result<()> {
        plan.scratch = vec![plan.tops[0].with_shape([self.rows[0] + 1])];
        Ok(())
    }

    fn explain(&self, fault: Fault) -> Error {
        let [kind, row, detail, image] = fault;
        let (row, [detail, image]) = (row as usize, [detail, image].map(|bits| f64::from(f32::from_bits(bits))));
        match kind {
            TRUTH_OF_NO_IMAGE => not_an_image(row, detail),
            TRUTH_OF_NO_CLASS => not_a_class(row, detail, self.classes, Some(self.background)),
            _ => self.not_found(row, image, detail),
        }
    }

    fn forward(&self, mut io: Fwd<'_, Device>) -> Result<()> {
        let (detections, truths) = (io.bottom(0)?, io.bottom(1)?);
        let [rows, truth_rows] = self.rows.map(extent);
        let background = self.background.try_into().unwrap_or(NONE);
        let of = args![detections, truths, rows?, truth_rows?, extent(self.classes)?, background];
        let after = |args: &[Arg]| [args, of].concat();
        let best = io.scratch(0)?;
        let (first, sizes) = (best.floats(self.rows[0]), extent(self.sizes.len())?);
        let carried = if self.sizes.is_empty() { None } else { Some(io.param(0)?) };
        let most = self.rows[0].max(self.rows[1]);
        io.launch("evaluate_check", blocks(1, most), &after(args![carried, first, sizes, io.call.fault]))?;
        let (mode, [height, width]) = self.resized();
        let args = args![best, io.call.constants, first, sizes, mode, height, width, self.threshold];
        io.launch("evaluate_best", Grid::elements(self.rows[0]), &after(args))?;
        let (y, classes, difficult) = (io.top(0)?, self.looked_for().count(), u32::from(self.difficult));
        fill(io.call, y, -1.0, (classes + self.rows[0]) * ROW)?;
        let args = args![y, extent(classes)?, difficult];
        io.launch("evaluate_classes", Grid::elements(classes), &after(args))?;
        let args = args![y, best, extent(classes)?, difficult];
        io.launch("evaluate_rows", Grid::elements(self.rows[0]), &after(args))
    }
}
