//! BoxAnnotatorOHEM, online hard example mining: of each image, only the regions with the largest losses are learned from.
//!
//! Of the regions of an image, the `roi_per_img` of the largest losses (of equal ones the first) keep their labels and
//! weights; the others get `ignore_label` (−1) and 0.
//!
//! Bottoms: regions [N, 5, …], whose first channel numbers the image; losses and labels, one for each region and position;
//! weights [N, C, …]. Tops: labels like the labels, weights like the weights. No backward.
//!
//! Source: Shrivastava, Gupta and Girshick, "Training Region-based Object Detectors with Online Hard Example Mining" (CVPR
//! 2016); Dai, Li, He and Sun's layer of this name ("R-FCN", NIPS 2016), which runs on a GPU alone.

use lgm_core::{
    Arity, BlobSpec, BuildCx, Device, DeviceLayer, Float, Fwd, Grid, Host, HostLayer, Layer, Node, Plan, Result, args,
    ensure,
};
use lgm_proto::{BoxAnnotatorOhemParameter, LayerParameter};

use crate::common::launch::extent;
use crate::common::loops::for_rows;

/// Channels of a region: its image and its corners.
const ROI: usize = 5;

/// The layer; see the module.
pub struct BoxAnnotatorOhem {
    param: BoxAnnotatorOhemParameter,
    items: usize,
    channels: usize,
    inner: usize,
}

impl BoxAnnotatorOhem {
    pub(crate) fn build(param: &LayerParameter, _cx: &BuildCx) -> Result<Node> {
        let param = param.box_annotator_ohem_param.as_deref().copied().unwrap_or_default();
        ensure!(param.roi_per_img() > 0, "roi_per_img must be given and positive");
        Node::compute(BoxAnnotatorOhem { param, items: 0, channels: 0, inner: 0 })
    }

    fn positions(&self) -> usize {
        self.items * self.inner
    }
}

impl Layer for BoxAnnotatorOhem {
    fn arity(&self) -> Arity {
        Arity::exactly(4, 2)
    }

    fn plan(&mut self, bottoms: &[BlobSpec], _tops: usize) -> Result<Plan> {
        let (rois, weights) = (&bottoms[0].shape, &bottoms[3].shape);
        ensure!(
            rois.get(1) == Some(&ROI),
            "axis 1 of the regions must have {ROI} extents, image and corners; found shape {rois}"
        );
        (self.items, self.inner) = (rois[0], rois.count_from(2));
        for (i, what) in [(1, "losses"), (2, "labels")] {
            let shape = &bottoms[i].shape;
            ensure!(
                shape.count() == self.positions(),
                "the {what}, bottom {i}, must be one for each of the {} regions, found shape {shape}",
                self.positions()
            );
        }
        ensure!(
            weights.len() >= 2 && weights[0] == self.items && weights.count_from(2) == self.inner,
            "the weights, bottom 3, must have the extents of the regions of shape {rois} but for the channels, found shape \
             {weights}"
        );
        self.channels = weights[1];
        Ok(Plan {
            no_backward: true,
            index_tops: vec![0, 1],
            no_gradient: vec![0, 1, 2, 3],
            scratch: vec![bottoms[1].with_shape([self.positions()])],
            flops: 2 * (self.positions() as u64).saturating_mul(self.positions() as u64),
            ..Plan::new(vec![bottoms[2].clone(), bottoms[3].clone()])
        })
    }
}

impl HostLayer for BoxAnnotatorOhem {
    fn forward<T: Float>(&self, mut io: Fwd<'_, Host>) -> Result<()> {
        let (rois, losses, labels) = (io.bottom::<T>(0)?, io.bottom::<T>(1)?, io.bottom::<T>(2)?);
        let (weights, kept) = (io.bottom::<T>(3)?, io.scratch::<T>(0)?);
        let (inner, channels) = (self.inner, self.channels);
        let image = |i: usize| rois[i / inner * ROI * inner + i % inner];
        for_rows(kept, 1, 2 * losses.len(), |i, kept| {
            let harder = |j: &usize| losses[*j] > losses[i] || (losses[*j] == losses[i] && *j < i);
            let count = (0..losses.len()).filter(|&j| image(j) == image(i)).filter(harder).count();
            kept[0] = if count < self.param.roi_per_img() as usize { T::one() } else { T::zero() };
        });
        let kept = &*kept;
        let ignored = T::of(self.param.ignore_label().into());
        for (i, label) in io.top::<T>(0)?.iter_mut().enumerate() {
            *label = if kept[i] > T::zero() { labels[i] } else { ignored };
        }
        for_rows(io.top::<T>(1)?, inner, inner, |row, to| {
            let from = weights[row * inner..].iter().zip(&kept[row / channels * inner..]);
            to.iter_mut().zip(from).for_each(|(to, (&w, &kept))| *to = if kept > T::zero() { w } else { T::zero() });
        });
        Ok(())
    }
}

impl DeviceLayer for BoxAnnotatorOhem {
    fn forward(&self, mut io: Fwd<'_, Device>) -> Result<()> {
        let (rois, losses, labels, weights) = (io.bottom(0)?, io.bottom(1)?, io.bottom(2)?, io.bottom(3)?);
        let (most, ignored) = (self.param.roi_per_img(), self.param.ignore_label() as f32);
        let (positions, channels) = (extent(self.positions())?, extent(self.channels)?);
        let (labels_to, weights_to, inner) = (io.top(0)?, io.top(1)?, extent(self.inner.max(1))?);
        let args =
            args![labels_to, weights_to, rois, losses, labels, weights, most, ignored, positions, channels, inner];
        io.launch("hard_examples", Grid::elements(self.positions() * 32), args)
    }
}

#[cfg(test)]
mod tests {
    use lgm_core::{DType, Phase, Shape};
    use lgm_testkit::{Case, Fill, Harness, check, config_error};

    fn text(fields: &str) -> String {
        let blobs = "bottom: 'r' bottom: 'e' bottom: 'y' bottom: 'w' top: 'k' top: 'v'";
        format!("layer {{ name: 'b' type: 'BoxAnnotatorOHEM' {blobs} box_annotator_ohem_param {{ {fields} }} }}")
    }

    #[test]
    fn cases() {
        let case = |most: u32, shape: &[usize], channels: usize| {
            let count: usize = shape[0] * shape[1..].iter().product::<usize>();
            let with = |axis: usize| [&shape[..1], &[axis], &shape[1..]].concat();
            Case::new(text(&format!("roi_per_img: {most} ignore_label: -1")))
                .bottom_of(with(5).as_slice(), Fill::Labels(2))
                .bottom(with(1).as_slice())
                .bottom_of([count], Fill::Labels(7))
                .bottom(with(channels).as_slice())
        };
        check(&crate::tests::registry(), &[case(3, &[9], 4), case(5, &[4, 2, 3], 8), case(20, &[130], 33)]);
    }

    #[test]
    fn the_worst_of_each_image_are_kept() {
        let shapes = [[4, 5].into(), [4].into(), [4].into(), [4, 1].into()];
        let harness =
            Harness::new(&crate::tests::registry(), &text("roi_per_img: 1"), Phase::Train, DType::F32, &shapes)
                .unwrap();
        let mut rois = [9.0; 20];
        [0.0, 0.0, 1.0, 0.0].iter().zip(rois.chunks_mut(5)).for_each(|(&image, roi)| roi[0] = image);
        let inputs = [&rois[..], &[1.0, 3.0, 0.5, 3.0], &[4.0, 5.0, 6.0, 7.0], &[0.1, 0.2, 0.3, 0.4]];
        let out = harness.run(&harness.forward_inputs(&inputs).unwrap()).unwrap();
        assert_eq!(out.tops[0], [-1.0, 5.0, 6.0, -1.0]);
        assert_eq!(out.tops[1], [0.0, f64::from(0.2f32), f64::from(0.3f32), 0.0]);
    }

    #[test]
    fn mistakes_are_named() {
        let registry = crate::tests::registry();
        let fails = |fields: &str, shapes: [Shape; 4], needles: &[&str]| {
            config_error(&registry, &text(fields), &shapes, needles);
        };
        let shapes = || [[4, 5].into(), [4].into(), [4].into(), [4, 8].into()];
        fails("", shapes(), &["roi_per_img"]);
        let change = |i: usize, shape: Shape| {
            let mut shapes = shapes();
            shapes[i] = shape;
            shapes
        };
        fails("roi_per_img: 2", change(0, [4, 4].into()), &["5 extents", "(4, 4)"]);
        fails("roi_per_img: 2", change(1, [3].into()), &["losses", "4 regions", "(3)"]);
        fails("roi_per_img: 2", change(2, [5].into()), &["labels", "4 regions", "(5)"]);
        fails("roi_per_img: 2", change(3, [3, 8].into()), &["weights", "(3, 8)"]);
    }
}
