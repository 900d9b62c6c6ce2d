//! ROIPooling: the largest value of each bin of a region of interest.
//!
//! With s = `spatial_scale`, a region lies on the images from ⌊s · x₁⌉ to ⌊s · x₂⌉, both included and one pixel at the least, and is
//! cut into `pooled_h` × `pooled_w` bins of equal size b: bin i takes what lies between ⌊i · b⌋ and ⌈(i + 1) · b⌉ from the region's
//! beginning on, as far as the image goes. A bin without a pixel gives 0. `pad_ratio` first widens a region on each side by so much of
//! its width (height).
//!
//! Bottoms and top: see [`super`]; C' = C. Gradient: dy to the largest of its bin (the first, if several).
//!
//! Source: Girshick, "Fast R-CNN" (2015); the layer of this name of its Caffe, `pad_ratio` of MS-CNN's.

use lgm_core::{BuildCx, Float, Kernel, Node, Result, kernel};
use lgm_proto::LayerParameter;

use super::{Extents, Pool, Regions, Settings};

/// The layer; see the module.
pub struct RoiPooling(Settings);

impl RoiPooling {
    pub(crate) fn build(param: &LayerParameter, _cx: &BuildCx) -> Result<Node> {
        Node::compute(Regions::new(RoiPooling(Settings::new(param)?)))
    }

    /// The pixels of bin `i` of `bins` along an axis, of a region from `first` to `last`.
    fn bin(&self, [first, last]: [f32; 2], i: usize, bins: usize, extent: usize) -> std::ops::Range<usize> {
        let Settings { scale, pad_ratio, .. } = self.0;
        let pad = (last - first + 1.0) * pad_ratio;
        let start = ((first - pad) * scale).round();
        let end = ((last + pad) * scale).round();
        let size = (end - start + 1.0).max(1.0) / bins as f32;
        super::between((i as f32 * size).floor() + start, ((i + 1) as f32 * size).ceil() + start, extent)
    }
}

impl Pool for RoiPooling {
    const KERNELS: [Kernel; 2] = [kernel!("roi_pooling_forward"), kernel!("roi_pooling_backward")];
    const KEEPS: bool = true;

    fn channels(&self, of_image: usize) -> Result<usize> {
        Ok(of_image)
    }

    fn pooled(&self) -> [usize; 2] {
        self.0.pooled
    }

    fn numbers(&self) -> [f32; 2] {
        [self.0.scale, self.0.pad_ratio]
    }

    fn forward<T: Float>(
        &self,
        e: &Extents,
        image: &[T],
        [x1, y1, x2, y2]: [f32; 4],
        c: usize,
        out: &mut [T],
        kept: &mut [T],
    ) {
        let ([height, width], [bins_y, bins_x]) = (e.image, e.pooled);
        let plane = &image[c * height * width..][..height * width];
        for (at, out) in out.iter_mut().enumerate() {
            let rows = self.bin([y1, y2], at / bins_x, bins_y, height);
            let columns = self.bin([x1, x2], at % bins_x, bins_x, width);
            let mut best: Option<(T, usize)> = None;
            for row in rows {
                for (i, &x) in plane[row * width..][columns.clone()].iter().enumerate() {
                    if best.is_none_or(|(most, _)| x > most) {
                        best = Some((x, row * width + columns.start + i));
                    }
                }
            }
            *out = best.map_or(T::zero(), |(most, _)| most);
            if let Some(kept) = kept.get_mut(at) {
                *kept = best.map_or(-T::one(), |(_, index)| T::of(index as f64));
            }
        }
    }

    fn backward<T: Float>(&self, e: &Extents, _region: [f32; 4], c: usize, dy: &[T], kept: &[T], dx: &mut [T]) {
        let plane = e.pooled[0] * e.pooled[1];
        for (&dy, &index) in dy[c * plane..][..plane].iter().zip(&kept[c * plane..][..plane]) {
            if index >= T::zero() {
                dx[index.f64() as usize] += dy;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::regions::tests::regions;
    use crate::tests::registry;
    use lgm_core::{DType, Phase};
    use lgm_testkit::{Case, Fill, Harness, check, config_error};

    fn layer(param: &str) -> String {
        format!(
            "layer {{ name: 'r' type: 'ROIPooling' bottom: 'x' bottom: 'rois' top: 'y' roi_pooling_param {{ {param} }} }}"
        )
    }

    /// Values that are all well apart, so that no step of a finite difference changes which is the largest.
    fn apart(n: usize) -> Fill {
        Fill::Given((0..n).map(|i| ((i * 37) % n) as f64 / 4.0).collect())
    }

    #[test]
    fn cases() {
        let regions = regions(16.0, 8.0);
        check(
            &registry(),
            &[
                Case::new(layer("pooled_h: 2 pooled_w: 3 spatial_scale: 0.125"))
                    .bottom_of([2, 3, 5, 6], apart(180))
                    .bottom_of([6, 5], regions.clone()),
                Case::new(layer("pooled_h: 7 pooled_w: 7 spatial_scale: 0.125 pad_ratio: 0.25"))
                    .bottom_of([2, 2, 5, 6], apart(120))
                    .bottom_of([6, 5, 1, 1], regions.clone()),
                Case::new(layer("pooled_h: 6 pooled_w: 5 spatial_scale: 0.5"))
                    .bottom([2, 33, 20, 24])
                    .bottom_of([6, 5], regions)
                    .without_gradients(),
            ],
        );
    }

    #[test]
    fn bins_overlap_and_take_their_largest() {
        let text = layer("pooled_h: 1 pooled_w: 2");
        let shapes = [[1, 1, 2, 3].into(), [1, 5].into()];
        let harness = Harness::new(&registry(), &text, Phase::Test, DType::F32, &shapes).unwrap();
        let run =
            |regions: &[f64]| harness.run(&harness.forward_inputs(&[&[1., 5., 2., 3., 4., 0.], regions]).unwrap());
        // Three columns in two bins of one and a half: the middle one is in both.
        assert_eq!(run(&[0., 0., 0., 2., 1.]).unwrap().tops[0], [5., 5.]);
        assert_eq!(run(&[0., 2., 0., 2., 1.]).unwrap().tops[0], [2., 2.]);
        let error = run(&[1., 0., 0., 2., 1.]).unwrap_err().to_string();
        assert!(error.contains("region 0 is of image 1, but there are 1"), "{error}");
    }

    #[test]
    fn mistakes_are_named() {
        let shapes = [[1, 1, 2, 3].into(), [1, 5].into()];
        let size = "pooled_h: 2 pooled_w: 2";
        config_error(&registry(), &layer("pooled_h: 2"), &shapes, &["pooled_h and a pooled_w", "2 and 0"]);
        config_error(&registry(), &layer(&format!("{size} spatial_scale: 0")), &shapes, &["spatial_scale", "positive"]);
        config_error(&registry(), &layer(&format!("{size} pad_ratio: -1")), &shapes, &["pad_ratio", "-1"]);
        config_error(&registry(), &layer(size), &[[1, 2, 3].into(), [1, 5].into()], &["bottom 0", "4 axes"]);
        config_error(
            &registry(),
            &layer(size),
            &[[1, 1, 2, 3].into(), [2, 4].into()],
            &["bottom 1", "5 numbers", "(2, 4)"],
        );
    }
}
