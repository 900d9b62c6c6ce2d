//! Layers that pool regions of images: each region gives a plane of as many values as asked for, whatever its size.
//!
//! Bottoms: images `[N, C, H, W]`; regions of interest `[R, 5, …]`, each (n, x₁, y₁, x₂, y₂): the index of its image, and its first
//! and last pixel in the net's input. Top: a plane of each region and channel, `[R, C', height, width]`. Regions get no gradient.
//! The boundaries of bins are computed in single precision, as in Caffe's forks.

use lgm_core::{
    Arity, BlobSpec, Bwd, Device, DeviceLayer, DevicePtr, Error, Fault, Float, Format, Formats, Fwd, Grid, Host,
    HostLayer, Kernel, Layer, Offer, Plan, Result, Shape, args, ensure,
};
use lgm_cpu::for_each_row;
use lgm_proto::LayerParameter;

use crate::common::launch::{extent, row_grid};

mod align;
mod position_sensitive;
mod roi_pooling;

pub use align::RoiAlign;
pub use position_sensitive::PsRoiPooling;
pub use roi_pooling::RoiPooling;

/// Elements of a region.
const NUMBERS: usize = 5;

/// What is to be pooled: the images' extents and those of a region's planes.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Extents {
    /// Channels of an image.
    pub channels: usize,
    /// Height and width of an image.
    pub image: [usize; 2],
    /// Height and width of a region's planes.
    pub pooled: [usize; 2],
}

/// `roi_pooling_param`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Settings {
    /// Height and width in bins.
    pub pooled: [usize; 2],
    /// `spatial_scale`.
    pub scale: f32,
    /// `pad_ratio`.
    pub pad_ratio: f32,
}

impl Settings {
    pub fn new(param: &LayerParameter) -> Result<Settings> {
        let p = param.roi_pooling_param.clone().unwrap_or_default();
        let pooled = [p.pooled_h() as usize, p.pooled_w() as usize];
        ensure!(
            pooled.iter().all(|&n| n > 0),
            "roi_pooling_param needs a pooled_h and a pooled_w of at least 1, found {} and {}",
            pooled[0],
            pooled[1]
        );
        let (scale, pad_ratio) = (p.spatial_scale(), p.pad_ratio());
        ensure!(scale.is_finite() && scale > 0.0, "spatial_scale must be a positive number, found {scale}");
        ensure!(
            pad_ratio.is_finite() && pad_ratio >= 0.0,
            "pad_ratio must be a number of at least 0, found {pad_ratio}"
        );
        Ok(Settings { pooled, scale, pad_ratio })
    }
}

/// How regions are pooled.
pub(super) trait Pool: Send + Sync + 'static {
    /// Forward and backward on a device.
    const KERNELS: [Kernel; 2];
    /// Whether backward needs what forward kept of each value of the top.
    const KEEPS: bool;

    /// Channels of the top, for images of so many.
    fn channels(&self, of_image: usize) -> Result<usize>;

    /// Height and width of a region's planes.
    fn pooled(&self) -> [usize; 2];

    /// The kernels' last arguments: `spatial_scale`, and `pad_ratio` or 0.
    fn numbers(&self) -> [f32; 2];

    /// Channel `c` of a region `[x₁, y₁, x₂, y₂]` of an image; `kept` is empty where nothing is to be kept.
    fn forward<T: Float>(&self, e: &Extents, image: &[T], region: [f32; 4], c: usize, out: &mut [T], kept: &mut [T]);

    /// Adds the part of a region to the gradient dx of channel `c` of its image; dy and `kept` are the region's planes.
    fn backward<T: Float>(&self, e: &Extents, region: [f32; 4], c: usize, dy: &[T], kept: &[T], dx: &mut [T]);
}

/// The layer that pools so.
pub(super) struct Regions<P> {
    pool: P,
    extents: Extents,
    images: usize,
    regions: usize,
    /// Channels of the top.
    outputs: usize,
}

impl<P: Pool> Regions<P> {
    pub fn new(pool: P) -> Self {
        Regions { pool, extents: Extents::default(), images: 0, regions: 0, outputs: 0 }
    }

    fn image_len(&self) -> usize {
        self.extents.channels * self.area()
    }

    fn area(&self) -> usize {
        self.extents.image[0] * self.extents.image[1]
    }

    fn plane(&self) -> usize {
        self.extents.pooled[0] * self.extents.pooled[1]
    }

    /// Where the regions are, and in which image.
    fn region<T: Float>(&self, regions: &[T], r: usize) -> (usize, [f32; 4]) {
        let numbers = &regions[r * NUMBERS..][..NUMBERS];
        (numbers[0].f64() as usize, std::array::from_fn(|i| numbers[1 + i].f64() as f32))
    }

    fn check<T: Float>(&self, regions: &[T]) -> Result<()> {
        for (r, region) in regions.chunks_exact(NUMBERS).enumerate() {
            let image = region[0].f64();
            if !(image >= 0.0 && image.trunc() < self.images as f64) {
                return Err(self.no_image(r, image));
            }
        }
        Ok(())
    }

    #[cold]
    fn no_image(&self, region: usize, image: f64) -> Error {
        Error::config(format!(
            "region {region} is of image {image}, but there are {}, from 0 on: bottom 1 has an image's number, then x and y of \
             the region's first and last pixel",
            self.images
        ))
    }
}

impl<P: Pool> Layer for Regions<P> {
    fn arity(&self) -> Arity {
        Arity::exactly(2, 1)
    }

    fn plan(&mut self, bottoms: &[BlobSpec], _tops: usize) -> Result<Plan> {
        let (images, regions) = (&bottoms[0], &bottoms[1].shape);
        ensure!(
            images.shape.len() == 4,
            "bottom 0 must have 4 axes (images, channels, height, width), found shape {}",
            images.shape
        );
        ensure!(
            !regions.is_empty() && regions.count_from(1) == NUMBERS,
            "bottom 1 must have {NUMBERS} numbers for each region (image, x₁, y₁, x₂, y₂), found shape {regions}"
        );
        let [n, channels, height, width] = [0, 1, 2, 3].map(|i| images.shape[i]);
        ensure!(
            height * width <= 1 << 24,
            "a plane of {height} × {width} has more elements than an index can count exactly ({})",
            1 << 24
        );
        self.extents = Extents { channels, image: [height, width], pooled: self.pool.pooled() };
        (self.images, self.regions, self.outputs) = (n, regions[0], self.pool.channels(channels)?);
        let [rows, columns] = self.extents.pooled;
        let top = images.with_shape(Shape::from([self.regions, self.outputs, rows, columns]));
        Ok(Plan {
            saved: if P::KEEPS { vec![top.clone()] } else { vec![] },
            backward_bottoms: vec![1],
            no_gradient: vec![1],
            ..Plan::new(vec![top])
        })
    }
}

impl<P: Pool> HostLayer for Regions<P> {
    fn forward<T: Float>(&self, mut io: Fwd<'_, Host>) -> Result<()> {
        let (x, regions, y) = (io.bottom::<T>(0)?, io.bottom::<T>(1)?, io.top::<T>(0)?);
        self.check(regions)?;
        let pool = |p: usize, out: &mut [T], kept: &mut [T]| {
            let (image, region) = self.region(regions, p / self.outputs);
            let image = &x[image * self.image_len()..][..self.image_len()];
            self.pool.forward(&self.extents, image, region, p % self.outputs, out, kept);
        };
        let kept = if P::KEEPS { io.saved::<T>(0)? } else { None };
        match kept {
            Some(kept) => {
                let at_once = self.plane() * self.outputs;
                lgm_cpu::for_each_part_of([y, kept], at_once, |r, [y, kept]| {
                    let planes = y.chunks_mut(self.plane().max(1)).zip(kept.chunks_mut(self.plane().max(1)));
                    planes.enumerate().for_each(|(c, (y, kept))| pool(r * self.outputs + c, y, kept));
                });
            }
            None => for_each_row(y, self.plane(), |p, y| pool(p, y, &mut [])),
        }
        Ok(())
    }

    fn backward<T: Float>(&self, mut io: Bwd<'_, Host>) -> Result<()> {
        let (regions, dy) = (io.bottom::<T>(1)?, io.top_diff::<T>(0)?);
        let kept = if P::KEEPS { io.saved::<T>(0)? } else { &[] };
        let Some(dx) = io.bottom_diff::<T>(0)? else { return Ok(()) };
        let block = self.outputs * self.plane();
        for_each_row(dx, self.area(), |plane, dx| {
            dx.fill(T::zero());
            let (image, c) = (plane / self.extents.channels, plane % self.extents.channels);
            for r in 0..self.regions {
                let (of, region) = self.region(regions, r);
                if of == image {
                    let kept = if P::KEEPS { &kept[r * block..][..block] } else { &[] };
                    self.pool.backward(&self.extents, region, c, &dy[r * block..][..block], kept, dx);
                }
            }
        });
        Ok(())
    }
}

impl<P: Pool> Regions<P> {
    fn args(&self, blobs: [DevicePtr; 3], regions: DevicePtr) -> Result<Vec<lgm_core::Arg>> {
        let Extents { channels, image: [height, width], pooled: [rows, columns] } = self.extents;
        let mut args = args![blobs[0], blobs[1], blobs[2], regions].to_vec();
        for n in [self.regions, self.images, self.outputs, channels, height, width, rows, columns] {
            args.push(extent(n)?.into());
        }
        args.extend(self.pool.numbers().map(lgm_core::Arg::from));
        Ok(args)
    }
}

impl<P: Pool> DeviceLayer for Regions<P> {
    /// The images and the top as the device would have them, channels first; the regions in single precision.
    fn formats(&self, offer: &Offer<'_>) -> Formats {
        let format = Format { element: offer.storage.element, ..Format::PLAIN };
        Formats { bottoms: [format, Format::PLAIN].into_iter().collect(), tops: [format].into_iter().collect() }
    }

    fn explain(&self, fault: Fault) -> Error {
        self.no_image(fault[1] as usize, f32::from_bits(fault[2]).into())
    }

    fn forward(&self, mut io: Fwd<'_, Device>) -> Result<()> {
        let (x, regions, y) = (io.bottom(0)?, io.bottom(1)?, io.top(0)?);
        let kept = if P::KEEPS { io.saved(0).unwrap_or(DevicePtr::NULL) } else { DevicePtr::NULL };
        let check = args![regions, extent(self.regions)?, extent(self.images)?, io.call.fault];
        io.launch("region_check", Grid::rows(1, Grid::THREADS), check)?;
        let [forward, _] = P::KERNELS;
        let args = self.args([y, kept, x], regions)?;
        io.launch(forward, row_grid(self.regions * self.outputs, self.plane()), &args)
    }

    fn backward(&self, mut io: Bwd<'_, Device>) -> Result<()> {
        let Some(dx) = io.bottom_diff(0) else { return Ok(()) };
        let (regions, dy) = (io.bottom(1)?, io.top_diff(0)?);
        let kept = if P::KEEPS { io.saved(0)? } else { DevicePtr::NULL };
        let [_, backward] = P::KERNELS;
        let args = self.args([dx, kept, dy], regions)?;
        io.launch(backward, row_grid(self.images * self.extents.channels, self.area()), &args)
    }
}

/// Rows or columns of an image between two that are not whole, [from, end).
fn between(from: f32, end: f32, extent: usize) -> std::ops::Range<usize> {
    let clip = |v: f32| v.clamp(0.0, extent as f32) as usize;
    let (from, end) = (clip(from.floor()), clip(end.ceil()));
    from..end.max(from)
}

#[cfg(test)]
mod tests {
    use lgm_testkit::Fill;

    /// Six regions of two images: whole ones, parts that begin at (x, y), the same twice, beyond the edges, back to front, and
    /// outside.
    pub(super) fn regions(x: f64, y: f64) -> Fill {
        let regions = [
            [0.0, 0.0, 0.0, 47.0, 39.0],
            [1.0, x, y, 40.0, 30.0],
            [1.0, x, y, 40.0, 30.0],
            [0.0, -30.0, 20.0, 90.0, 70.0],
            [1.0, 30.0, 30.0, 10.0, 10.0],
            [0.0, 200.0, 200.0, 240.0, 230.0],
        ];
        Fill::Given(regions.concat())
    }
}
