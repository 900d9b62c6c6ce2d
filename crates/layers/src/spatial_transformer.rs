//! SpatialTransformer: each position of the top looks at a place of the image, and sees what lies there between four
//! pixels, by how near each is.
//!
//! With a target at (u, v) of the top, both from −1 to 1 over its extents (0 where an extent is 1), the place (x, y), −1 to 1
//! over the image, is, by `transform_type` and the numbers θ of the item:
//!
//! | type | θ | x, y |
//! | --- | --- | --- |
//! | `affine` | 6 | θ₀u + θ₁v + θ₂, θ₃u + θ₄v + θ₅ |
//! | `translation` | 2 | `theta_1_1`·u + θ₀, `theta_2_2`·v + θ₁ |
//! | `translation_scaling` | 4 | θ₀u + θ₁, θ₂v + θ₃ |
//! | `projective` | 8 | affine, over θ₆u + θ₇v + 1 |
//! | `similarity` | 4 | θ₁(u cos θ₀ − v sin θ₀) + θ₂, θ₁(u sin θ₀ + v cos θ₀) + θ₃ |
//! | `similarity+` | 5 | θ₁u cos θ₀ − θ₂v sin θ₀ + θ₃, θ₁u sin θ₀ + θ₂v cos θ₀ + θ₄ |
//! | `grid` | 2 a position | column and row in pixels, one after the other |
//!
//! A place beyond the image is brought to its border; with `similarity`, `similarity+` and `grid` what lies beyond is 0.
//!
//! Gradient: the true one, to image and θ; at a pixel, where the slope breaks, that towards the next one (at the last pixel,
//! from the one before). θ gets none from places that were brought to the border.
//!
//! Shapes: bottoms image [N, C, H, W] and θ [N, …] of as many elements an item as above; top
//! [N, C, `output_H`, `output_W`], the image's extents where absent.
//!
//! Source: Jaderberg, Simonyan, Zisserman and Kavukcuoglu, "Spatial Transformer Networks" (2015); the L-GM fork's layer of
//! this name. Where we differ: the fork has three of these types on a CPU, a grid's image has no gradient there, nor have
//! images of `similarity`; θ has a gradient beyond the image, and that of the scales of `similarity+` turns the wrong way.

use lgm_core::{Arity, BlobSpec, BuildCx, Bwd, Float, Fwd, Host, HostLayer, Layer, Node, Plan, Result, ensure};
use lgm_proto::{LayerParameter, SpatialTransformerParameter};

use crate::common::loops::for_rows;
use transform::{MOST, Transform};

mod device;
#[cfg(test)]
mod tests;
mod transform;

/// The layer; see the module.
pub struct SpatialTransformer {
    param: SpatialTransformerParameter,
    transform: Transform,
    extents: Extents,
}

/// N, C, H and W, and the top's H and W.
#[derive(Clone, Copy, Debug, Default)]
struct Extents {
    items: usize,
    channels: usize,
    image: [usize; 2],
    top: [usize; 2],
}

impl Extents {
    /// Positions of the top.
    fn map(&self) -> usize {
        self.top[0] * self.top[1]
    }

    /// Pixels of the image.
    fn pixels(&self) -> usize {
        self.image[0] * self.image[1]
    }

    fn planes(&self) -> usize {
        self.items * self.channels
    }

    /// Where position `i` of the top is, from −1 to 1.
    fn target<T: Float>(&self, i: usize) -> (T, T) {
        let along = |i: usize, extent: usize| match extent {
            0 | 1 => T::zero(),
            _ => T::of(2.0 * i as f64 / (extent - 1) as f64 - 1.0),
        };
        (along(i % self.top[1], self.top[1]), along(i / self.top[1], self.top[0]))
    }

    /// Half of the image's width and height in pixels, from the first to the last.
    fn halves<T: Float>(&self) -> (T, T) {
        let half = |extent: usize| T::of((extent - 1) as f64 * 0.5);
        (half(self.image[1]), half(self.image[0]))
    }
}

/// The first of the two pixels that a place lies between along an axis, the share of the second, and whether the place
/// moves with its coordinate.
#[derive(Clone, Copy)]
struct Tap<T> {
    first: isize,
    share: T,
    free: bool,
}

impl<T: Float> Tap<T> {
    fn of(at: T, extent: usize, bounded: bool) -> Tap<T> {
        // What is not a number is seen as such.
        if at.is_nan() {
            return Tap { first: 0, share: at, free: true };
        }
        let last = T::of((extent - 1) as f64);
        let within = at >= T::zero() && at <= last;
        let at = if bounded { at.max(T::zero()).min(last) } else { at };
        // Far beyond, nothing is seen.
        if at < T::of(-2.0) || at > last + T::of(2.0) {
            return Tap { first: -2, share: T::zero(), free: false };
        }
        let whole = at.floor();
        let first = if bounded && whole >= last && extent > 1 { last - T::one() } else { whole };
        Tap { first: first.f64() as isize, share: at - first, free: within || !bounded }
    }

    /// The two pixels and their shares, as far as they are in the image.
    fn pixels(self, extent: usize) -> impl Iterator<Item = (usize, T, T)> {
        let both = [(self.first, T::one() - self.share, -T::one()), (self.first + 1, self.share, T::one())];
        both.into_iter().filter_map(move |(at, share, slope)| {
            usize::try_from(at).ok().filter(|&at| at < extent).map(|at| (at, share, slope))
        })
    }
}

/// Scratch memory, by number.
mod scratch {
    /// Places in pixels, column and row, [N, positions, 2].
    pub const PLACES: usize = 0;
    /// Their gradient.
    pub const SLOPES: usize = 1;
}

impl SpatialTransformer {
    pub(crate) fn build(param: &LayerParameter, _cx: &BuildCx) -> Result<Node> {
        let param = param.st_param.clone().unwrap_or_default();
        let transform = Transform::named(param.transform_type())?;
        for (name, scale) in [("theta_1_1", param.theta_1_1()), ("theta_2_2", param.theta_2_2())] {
            ensure!(scale.is_finite(), "{name} must be a finite number, found {scale}");
        }
        for (name, extent) in [("output_H", param.output_h), ("output_W", param.output_w)] {
            ensure!(extent.is_none_or(|e| e > 0), "{name} must be positive, found {}", extent.unwrap_or(0));
        }
        Node::compute(SpatialTransformer { param, transform, extents: Extents::default() })
    }

    fn scales(&self) -> [f32; 2] {
        [self.param.theta_1_1(), self.param.theta_2_2()]
    }

    fn size(&self) -> usize {
        self.transform.size(self.extents.map())
    }

    /// Writes the places.
    fn places<T: Float>(&self, theta: &[T], places: &mut [T]) {
        if self.transform == Transform::Grid {
            return places.copy_from_slice(theta);
        }
        let (extents, size) = (self.extents, self.size());
        let ((half_x, half_y), scales) = (extents.halves::<T>(), self.scales().map(|s| T::of(s.into())));
        for_rows(places, 2 * extents.map(), 20 * extents.map(), |n, places| {
            let theta = &theta[n * size..][..size];
            for (i, place) in places.chunks_mut(2).enumerate() {
                let (x, y) = self.transform.look(theta, extents.target(i), scales);
                place.copy_from_slice(&[(x + T::one()) * half_x, (y + T::one()) * half_y]);
            }
        });
    }

    /// What column and row of a place lie between.
    fn taps<T: Float>(&self, place: &[T]) -> (Tap<T>, Tap<T>) {
        let ([height, width], bounded) = (self.extents.image, self.transform.is_bounded());
        (Tap::of(place[0], width, bounded), Tap::of(place[1], height, bounded))
    }

    /// Calls `each` with the index, the weight and the weight's slopes by column and by row, of every pixel that is seen.
    #[inline(always)]
    fn seen<T: Float>(&self, place: &[T], mut each: impl FnMut(usize, T, (T, T))) {
        let ([height, width], (column, row)) = (self.extents.image, self.taps(place));
        let zero_unless = |free: bool, slope: T| if free { slope } else { T::zero() };
        for (y, of_y, slope_y) in row.pixels(height) {
            for (x, of_x, slope_x) in column.pixels(width) {
                let slopes = (zero_unless(column.free, slope_x * of_y), zero_unless(row.free, slope_y * of_x));
                each(y * width + x, of_x * of_y, slopes);
            }
        }
    }
}

impl Layer for SpatialTransformer {
    fn arity(&self) -> Arity {
        Arity::exactly(2, 1)
    }

    fn plan(&mut self, bottoms: &[BlobSpec], _tops: usize) -> Result<Plan> {
        let (image, theta) = (&bottoms[0].shape, &bottoms[1].shape);
        let &[items, channels, height, width] = &image[..] else {
            return Err(lgm_core::Error::config(format!(
                "the image must have 4 axes: items, channels, height, width; found shape {image}"
            )));
        };
        ensure!(height > 0 && width > 0, "the image must have pixels, found shape {image}");
        let given = |extent: Option<i32>, otherwise| extent.and_then(|e| usize::try_from(e).ok()).unwrap_or(otherwise);
        let top = [given(self.param.output_h, height), given(self.param.output_w, width)];
        let spec = bottoms[0].with_shape([items, channels, top[0], top[1]]);
        spec.check("the top")?;
        self.extents = Extents { items, channels, image: [height, width], top };
        let size = self.size();
        ensure!(
            theta.first() == Some(&items) && theta.count_from(1) == size,
            "transform_type {} takes {size} numbers for each of the {items} items, found shape {theta}",
            self.param.transform_type()
        );
        let map = self.extents.map();
        let places = bottoms[0].with_shape([items, map, 2]);
        Ok(Plan {
            scratch: vec![places.clone(), places],
            backward_bottoms: vec![0, 1],
            flops: 12 * spec.shape.count() as u64,
            ..Plan::new(vec![spec])
        })
    }
}

impl HostLayer for SpatialTransformer {
    fn forward<T: Float>(&self, mut io: Fwd<'_, Host>) -> Result<()> {
        let (x, theta, y) = (io.bottom::<T>(0)?, io.bottom::<T>(1)?, io.top::<T>(0)?);
        let places = io.scratch::<T>(scratch::PLACES)?;
        self.places(theta, places);
        let (extents, places) = (self.extents, &*places);
        let (map, pixels) = (extents.map(), extents.pixels());
        for_rows(y, map, 30 * map, |plane, y| {
            let image = &x[plane * pixels..][..pixels];
            let places = places[plane / extents.channels * map * 2..].chunks(2);
            for (y, place) in y.iter_mut().zip(places) {
                *y = T::zero();
                self.seen(place, |at, weight, _| *y += weight * image[at]);
            }
        });
        Ok(())
    }

    fn backward<T: Float>(&self, mut io: Bwd<'_, Host>) -> Result<()> {
        let (x, theta, dy) = (io.bottom::<T>(0)?, io.bottom::<T>(1)?, io.top_diff::<T>(0)?);
        let (places, slopes) = (io.scratch::<T>(scratch::PLACES)?, io.scratch::<T>(scratch::SLOPES)?);
        self.places(theta, places);
        let (extents, places) = (self.extents, &*places);
        let (map, pixels, channels) = (extents.map(), extents.pixels(), extents.channels);
        if let Some(dx) = io.bottom_diff::<T>(0)? {
            for_rows(dx, pixels, 30 * map, |plane, dx| {
                dx.fill(T::zero());
                let places = places[plane / channels * map * 2..].chunks(2);
                for (&dy, place) in dy[plane * map..][..map].iter().zip(places) {
                    self.seen(place, |at, weight, _| dx[at] += weight * dy);
                }
            });
        }
        let Some(d_theta) = io.bottom_diff::<T>(1)? else { return Ok(()) };
        for_rows(slopes, 2 * map, 40 * map * channels, |n, slopes| {
            for (i, (slope, place)) in slopes.chunks_mut(2).zip(places[n * map * 2..].chunks(2)).enumerate() {
                slope.fill(T::zero());
                for plane in n * channels..(n + 1) * channels {
                    let (image, dy) = (&x[plane * pixels..][..pixels], dy[plane * map + i]);
                    self.seen(place, |at, _, (by_column, by_row)| {
                        slope[0] += dy * image[at] * by_column;
                        slope[1] += dy * image[at] * by_row;
                    });
                }
            }
        });
        if self.transform == Transform::Grid {
            d_theta.copy_from_slice(slopes);
            return Ok(());
        }
        let ((half_x, half_y), scales) = (extents.halves::<T>(), self.scales().map(|s| T::of(s.into())));
        let (size, slopes) = (self.size(), &*slopes);
        for_rows(d_theta, size, 20 * map, |n, d_theta| {
            let mut sums = [0.0; MOST];
            for (i, slope) in slopes[n * map * 2..][..2 * map].chunks(2).enumerate() {
                let of_place = (slope[0] * half_x, slope[1] * half_y);
                let pull = self.transform.pull(&theta[n * size..][..size], extents.target(i), scales, of_place);
                sums.iter_mut().zip(pull).for_each(|(sum, p)| *sum += p.f64());
            }
            d_theta.iter_mut().zip(sums).for_each(|(d, sum)| *d = T::of(sum));
        });
        Ok(())
    }
}
