//! PSROIPooling: the mean of each bin of a region of interest, each bin from channels of its own.
//!
//! With s = `spatial_scale` and g = `group_size`, a region lies on the images from s · ⌊x₁⌉ to s · (⌊x₂⌉ + 1), a tenth of a pixel at the
//! least, and is cut into g × g bins of equal size b: bin i takes what lies between ⌊i · b + first⌋ and ⌈(i + 1) · b + first⌉, as far as
//! the image goes. A bin without a pixel gives 0.
//!
//! Bottoms and top: see [`super`]; C' = `output_dim`, and C = C' · g²: value (i, j) of channel c is the mean of channel
//! (c · g + i) · g + j. Gradient: dy / pixels of the bin to each.
//!
//! Source: Dai et al., "R-FCN: Object Detection via Region-based Fully Convolutional Networks" (2016); the layer of this name of its
//! Caffe.

use lgm_core::{BuildCx, Float, Kernel, Node, Result, ensure, kernel};
use lgm_proto::LayerParameter;

use super::{Extents, Pool, Regions};

/// The layer; see the module.
pub struct PsRoiPooling {
    outputs: usize,
    group: usize,
    scale: f32,
}

impl PsRoiPooling {
    pub(crate) fn build(param: &LayerParameter, _cx: &BuildCx) -> Result<Node> {
        let p = param.psroi_pooling_param.clone().unwrap_or_default();
        let positive = |name: &str, value: i32| {
            ensure!(value > 0, "psroi_pooling_param needs a {name} of at least 1, found {value}");
            Ok(value as usize)
        };
        let (outputs, group) = (positive("output_dim", p.output_dim())?, positive("group_size", p.group_size())?);
        let scale = p.spatial_scale();
        ensure!(scale.is_finite() && scale > 0.0, "spatial_scale must be a positive number, found {scale}");
        Node::compute(Regions::new(PsRoiPooling { outputs, group, scale }))
    }

    /// The pixels of bin `i` along an axis, of a region from `first` to `last`.
    fn bin(&self, [first, last]: [f32; 2], i: usize, extent: usize) -> std::ops::Range<usize> {
        let (start, end) = (first.round() * self.scale, (last.round() + 1.0) * self.scale);
        let size = (end - start).max(0.1) / self.group as f32;
        super::between(i as f32 * size + start, (i + 1) as f32 * size + start, extent)
    }
}

impl Pool for PsRoiPooling {
    const KERNELS: [Kernel; 2] = [kernel!("psroi_pooling_forward"), kernel!("psroi_pooling_backward")];
    const KEEPS: bool = false;

    fn channels(&self, of_image: usize) -> Result<usize> {
        let wanted = lgm_core::count(&[self.outputs, self.group, self.group]);
        ensure!(
            of_image == wanted,
            "bottom 0 must have output_dim · group_size² = {wanted} channels, found {of_image}"
        );
        Ok(self.outputs)
    }

    fn pooled(&self) -> [usize; 2] {
        [self.group; 2]
    }

    fn numbers(&self) -> [f32; 2] {
        [self.scale, 0.0]
    }

    fn forward<T: Float>(
        &self,
        e: &Extents,
        image: &[T],
        [x1, y1, x2, y2]: [f32; 4],
        c: usize,
        out: &mut [T],
        _kept: &mut [T],
    ) {
        let [height, width] = e.image;
        for (at, out) in out.iter_mut().enumerate() {
            let rows = self.bin([y1, y2], at / self.group, height);
            let columns = self.bin([x1, x2], at % self.group, width);
            let plane = &image[(c * self.group * self.group + at) * height * width..][..height * width];
            let count = rows.len() * columns.len();
            let sum: T = rows.map(|row| plane[row * width..][columns.clone()].iter().copied().sum::<T>()).sum();
            *out = if count == 0 { T::zero() } else { sum / T::of(count as f64) };
        }
    }

    fn backward<T: Float>(
        &self,
        e: &Extents,
        [x1, y1, x2, y2]: [f32; 4],
        c: usize,
        dy: &[T],
        _kept: &[T],
        dx: &mut [T],
    ) {
        let [height, width] = e.image;
        let at = c % (self.group * self.group);
        let rows = self.bin([y1, y2], at / self.group, height);
        let columns = self.bin([x1, x2], at % self.group, width);
        // Channel c is that of one bin, and bins follow one another as the channels do.
        let each = dy[c] / T::of((rows.len() * columns.len()).max(1) as f64);
        for row in rows {
            dx[row * width..][columns.clone()].iter_mut().for_each(|dx| *dx += each);
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::regions::tests::regions;
    use crate::tests::registry;
    use lgm_core::{DType, Phase};
    use lgm_testkit::{Case, Harness, check, config_error};

    fn layer(param: &str) -> String {
        format!(
            "layer {{ name: 'r' type: 'PSROIPooling' bottom: 'x' bottom: 'rois' top: 'y' psroi_pooling_param {{ {param} }} }}"
        )
    }

    #[test]
    fn cases() {
        let regions = regions(16.4, 8.6);
        check(
            &registry(),
            &[
                Case::new(layer("output_dim: 2 group_size: 3 spatial_scale: 0.125"))
                    .bottom([2, 18, 5, 6])
                    .bottom_of([6, 5], regions.clone()),
                Case::new(layer("output_dim: 5 group_size: 7 spatial_scale: 0.5"))
                    .bottom([2, 245, 20, 24])
                    .bottom_of([6, 5, 1, 1], regions)
                    .without_gradients(),
            ],
        );
    }

    #[test]
    fn each_bin_has_channels_of_its_own() {
        let text = layer("output_dim: 1 group_size: 2 spatial_scale: 1");
        let shapes = [[1, 4, 2, 2].into(), [1, 5].into()];
        let harness = Harness::new(&registry(), &text, Phase::Test, DType::F32, &shapes).unwrap();
        let x: Vec<f64> = (0..16).map(f64::from).collect();
        let out = harness.run(&harness.forward_inputs(&[&x, &[0., 0., 0., 1., 1.]]).unwrap()).unwrap();
        assert_eq!(out.tops[0], [0., 5., 10., 15.]);
    }

    #[test]
    fn mistakes_are_named() {
        let shapes = [[1, 4, 2, 3].into(), [1, 5].into()];
        config_error(&registry(), &layer("output_dim: 2 spatial_scale: 1"), &shapes, &["group_size of at least 1"]);
        config_error(&registry(), &layer("group_size: 2 spatial_scale: 1"), &shapes, &["output_dim of at least 1"]);
        config_error(&registry(), &layer("output_dim: 1 group_size: 2"), &shapes, &["spatial_scale", "positive"]);
        let more = layer("output_dim: 2 group_size: 2 spatial_scale: 1");
        config_error(&registry(), &more, &shapes, &["group_size² = 8 channels", "found 4"]);
    }
}
