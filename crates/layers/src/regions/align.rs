//! ROIAlign: the image's values on a grid of points of each region of interest, interpolated, so that nothing is rounded to pixels.
//!
//! With s = `spatial_scale`, a region lies on the image from s · x₁ − ½ to s · x₂ − ½ and is cut into `pooled_h` × `pooled_w` bins;
//! the points are their corners, `pooled_h` + 1 by `pooled_w` + 1. The value of a point is bilinear in those of the four pixels around
//! it, 0 for a point more than half a pixel outside the image or of a region without height or width. `pad_ratio` first widens a region on
//! each side by so much of its width (height). A 2 × 2 MAX or AVE Pooling with stride 1 after it makes a value of each bin.
//!
//! Bottoms and top: see [`super`]; C' = C, height and width one more than `pooled_h` and `pooled_w`. Gradient: dy to the four pixels, by
//! their weights.
//!
//! Source: He et al., "Mask R-CNN" (2017); the layer of this name of MS-CNN and Cascade R-CNN, with `roi_pooling_param`. Another fork's
//! has `roi_align_param` and takes the largest of four samples of each bin; that is refused.

use lgm_core::{BuildCx, Float, Kernel, Node, Result, ensure, kernel};
use lgm_proto::LayerParameter;

use super::{Extents, Pool, Regions, Settings};

/// The layer; see the module.
pub struct RoiAlign(Settings);

/// A pixel along an axis and its weight.
type Weighted = (usize, f32);

impl RoiAlign {
    pub(crate) fn build(param: &LayerParameter, _cx: &BuildCx) -> Result<Node> {
        ensure!(
            param.roi_align_param.is_none(),
            "roi_align_param is that of another fork's ROIAlign, which takes the largest of four samples of each bin and is not \
             carried out; MS-CNN's and Cascade R-CNN's has roi_pooling_param"
        );
        Node::compute(Regions::new(RoiAlign(Settings::new(param)?)))
    }

    /// The pixels around point `i` of a region from `first` to `last` in `bins` bins; `None` where the point counts as 0.
    fn around(&self, [first, last]: [f32; 2], i: usize, bins: usize, extent: usize) -> Option<[Weighted; 2]> {
        let Settings { scale, pad_ratio, .. } = self.0;
        let pad = (last - first + 1.0) * pad_ratio;
        let (start, end) = ((first - pad) * scale - 0.5, (last + pad) * scale - 0.5);
        let at = start + i as f32 * ((end - start) / bins as f32);
        if !(end > start && (-0.5..=extent as f32 - 0.5).contains(&at)) {
            return None;
        }
        let clip = |v: f32| v.clamp(0.0, extent as f32 - 1.0);
        let (low, high) = (clip(at.floor()), clip(at.floor() + 1.0));
        let share = clip(at) - low;
        Some([(low as usize, 1.0 - share), (high as usize, share)])
    }

    /// Calls `each` with point `at`, its pixels and their weights.
    fn points(&self, e: &Extents, [x1, y1, x2, y2]: [f32; 4], mut each: impl FnMut(usize, usize, f32)) {
        let ([height, width], [rows, columns]) = (e.image, e.pooled);
        for row in 0..rows {
            let Some(down) = self.around([y1, y2], row, rows - 1, height) else { continue };
            for column in 0..columns {
                let Some(across) = self.around([x1, x2], column, columns - 1, width) else { continue };
                for (h, share) in down {
                    across.iter().for_each(|&(w, of)| each(row * columns + column, h * width + w, share * of));
                }
            }
        }
    }
}

impl Pool for RoiAlign {
    const KERNELS: [Kernel; 2] = [kernel!("roi_align_forward"), kernel!("roi_align_backward")];
    const KEEPS: bool = false;

    fn channels(&self, of_image: usize) -> Result<usize> {
        Ok(of_image)
    }

    fn pooled(&self) -> [usize; 2] {
        self.0.pooled.map(|bins| bins + 1)
    }

    fn numbers(&self) -> [f32; 2] {
        [self.0.scale, self.0.pad_ratio]
    }

    fn forward<T: Float>(&self, e: &Extents, image: &[T], region: [f32; 4], c: usize, out: &mut [T], _kept: &mut [T]) {
        let area = e.image[0] * e.image[1];
        let plane = &image[c * area..][..area];
        out.fill(T::zero());
        self.points(e, region, |point, pixel, weight| out[point] += T::of(weight.into()) * plane[pixel]);
    }

    fn backward<T: Float>(&self, e: &Extents, region: [f32; 4], c: usize, dy: &[T], _kept: &[T], dx: &mut [T]) {
        let plane = e.pooled[0] * e.pooled[1];
        let dy = &dy[c * plane..][..plane];
        self.points(e, region, |point, pixel, weight| dx[pixel] += T::of(weight.into()) * dy[point]);
    }
}

#[cfg(test)]
mod tests {
    use crate::regions::tests::regions;
    use crate::tests::registry;
    use lgm_core::{DType, Phase};
    use lgm_testkit::{Case, Harness, assert_close, check, config_error};

    fn layer(param: &str) -> String {
        format!(
            "layer {{ name: 'r' type: 'ROIAlign' bottom: 'x' bottom: 'rois' top: 'y' roi_pooling_param {{ {param} }} }}"
        )
    }

    #[test]
    fn cases() {
        let regions = regions(16.0, 8.0);
        check(
            &registry(),
            &[
                Case::new(layer("pooled_h: 2 pooled_w: 3 spatial_scale: 0.125"))
                    .bottom([2, 3, 5, 6])
                    .bottom_of([6, 5], regions.clone()),
                Case::new(layer("pooled_h: 7 pooled_w: 7 spatial_scale: 0.125 pad_ratio: 0.25"))
                    .bottom([2, 2, 5, 6])
                    .bottom_of([6, 5, 1, 1], regions.clone()),
                Case::new(layer("pooled_h: 6 pooled_w: 5 spatial_scale: 0.5"))
                    .bottom([2, 33, 20, 24])
                    .bottom_of([6, 5], regions)
                    .without_gradients(),
            ],
        );
    }

    #[test]
    fn points_are_the_corners_of_bins_between_pixels() {
        let text = layer("pooled_h: 1 pooled_w: 2");
        let shapes = [[1, 1, 2, 3].into(), [2, 5].into()];
        let harness = Harness::new(&registry(), &text, Phase::Test, DType::F64, &shapes).unwrap();
        // From ½ to 2½ across, and from ½ down: at (½, ½), (½, 1½) and (½, 2½), the last at the edge; the second row is
        // outside. The other region has no height.
        let regions = [0., 1., 1., 3., 3., 0., 0., 1., 2., 1.];
        let out = harness.run(&harness.forward_inputs(&[&[0., 1., 2., 10., 11., 12.], &regions]).unwrap()).unwrap();
        let mut want = vec![5.5, 6.5, 7.0];
        want.resize(12, 0.0);
        assert_close("points", &out.tops[0], &want, 1e-6);
    }

    #[test]
    fn mistakes_are_named() {
        let shapes = [[1, 1, 2, 3].into(), [1, 5].into()];
        config_error(&registry(), &layer("pooled_h: 2"), &shapes, &["pooled_h and a pooled_w", "2 and 0"]);
        let other = layer("").replace("roi_pooling_param", "roi_align_param");
        config_error(&registry(), &other, &shapes, &["roi_align_param is that of another fork's", "roi_pooling_param"]);
    }
}
