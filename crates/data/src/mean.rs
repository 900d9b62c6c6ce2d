//! The mean of a database's images, as Caffe's `compute_image_mean` takes it: raw values as they are, files as decoded.
//!
//! mean[c, y, x] = Σ over images of image[c, y, x] / images. Sums are in double precision and in the order of the keys, so
//! that the mean does not depend on the number of threads; Caffe's are in single precision.

#![cfg_attr(not(test), warn(clippy::arithmetic_side_effects))]

use std::path::Path;
use std::sync::Arc;
use std::thread;

use lgm_core::{Result, memory};
use lgm_proto::BlobProto;

use crate::datum::{BadRecord, Decoded, decode};
use crate::db::{Database, Record, Records};
use crate::image::{Color, Pixels};
use crate::parallel::{in_parallel, threads_for};
use crate::pixels::Extent;
use crate::warnings::{Alike, Flaw};

/// Bytes of decoded images in memory at a time, one image at least, and how many images at the most.
const PART: usize = 64 << 20;
const MOST: usize = 256;

/// The mean of images of one size.
pub struct ImageMean {
    extent: Extent,
    values: Vec<f64>,
    images: u64,
}

impl ImageMean {
    /// Takes the mean of all images of a database. `progress` is called with the number of images done, for each.
    ///
    /// # Errors
    /// When the database is damaged, a record is none or holds an image of another size than the first; with its key.
    pub fn of(database: &Arc<Database>, mut progress: impl FnMut(u64)) -> Result<Self> {
        let path = database.path();
        let mut records = Records::from(database.clone(), 0)?;
        let mut sums = Sums { path, extent: None, sums: Vec::new(), rows: Vec::new(), cut: Alike::default() };
        let mut images: u64 = 0;
        loop {
            let part = records.next_to_end(sums.at_once())?;
            sums.add(&part)?;
            for _ in part {
                images = images.saturating_add(1);
                progress(images);
            }
            if records.index() == 0 {
                break;
            }
        }
        let Sums { extent, sums: mut values, .. } = sums;
        values.iter_mut().for_each(|sum| *sum /= images as f64);
        let extent = extent.unwrap_or(Extent { channels: 0, height: 0, width: 0 });
        Ok(ImageMean { extent, values, images })
    }

    /// The number of images.
    pub fn images(&self) -> u64 {
        self.images
    }

    /// The mean of each channel.
    pub fn channels(&self) -> Vec<f64> {
        let plane = self.extent.height.saturating_mul(self.extent.width).max(1);
        self.values.chunks_exact(plane).map(|values| values.iter().sum::<f64>() / plane as f64).collect()
    }

    /// The mean as `mean_file` of `transform_param` has it: 1 × channels × height × width.
    pub fn to_blob(&self) -> BlobProto {
        let number = |value: usize| i32::try_from(value).ok();
        BlobProto {
            num: Some(1),
            channels: number(self.extent.channels),
            height: number(self.extent.height),
            width: number(self.extent.width),
            data: self.values.iter().map(|&value| value as f32).collect(),
            ..BlobProto::default()
        }
    }
}

/// The sums of images so far.
struct Sums<'a> {
    path: &'a Path,
    /// Of the first image.
    extent: Option<Extent>,
    sums: Vec<f64>,
    /// Decoded images, one after another.
    rows: Vec<f32>,
    /// Records that were cut short.
    cut: Alike,
}

impl Sums<'_> {
    /// How many images to add at once.
    fn at_once(&self) -> usize {
        // The first one tells how large they are.
        let Some(extent) = self.extent else { return 1 };
        PART.checked_div(extent.count().saturating_mul(size_of::<f32>())).unwrap_or(1).clamp(1, MOST)
    }

    fn add(&mut self, records: &[Record<'_>]) -> Result<()> {
        let path = self.path;
        let Some(first) = records.first() else { return Ok(()) };
        let extent = match self.extent {
            Some(extent) => extent,
            None => {
                let extent = decode(first.value, Color::Native).map_err(|e| first.error(path, e))?.image.extent;
                self.sums = memory::zeros(extent.count(), format!("the sum of images of {extent}"))?;
                *self.extent.insert(extent)
            }
        };
        let len = records.len().saturating_mul(extent.count());
        if len > self.rows.len() {
            self.rows = memory::zeros(len, format!("{} images of {extent}", records.len()))?;
        }
        let rows = self.rows.get_mut(..len).unwrap_or_default();
        let one = |i: usize, row: &mut [f32]| -> Result<_> {
            let record = records[i];
            let Decoded { image, flaw, .. } = decode(record.value, Color::Native).map_err(|e| record.error(path, e))?;
            if let Some(Flaw::Surplus { extent, found }) = flaw {
                return Err(record.error(path, BadRecord::Values { extent, found }));
            }
            if image.extent != extent {
                let what =
                    format!("is {}, but the first image is {extent}; a mean is of images of one size", image.extent);
                return Err(record.error(path, what));
            }
            match image.pixels {
                Pixels::U8(pixels) => row.iter_mut().zip(pixels).for_each(|(value, p)| *value = f32::from(p)),
                Pixels::F32(pixels) => row.copy_from_slice(&pixels),
            }
            Ok(flaw)
        };
        let threads = threads_for(records.len());
        for (record, flaw) in records.iter().zip(in_parallel(rows, extent.count(), threads, one)?) {
            flaw.iter().for_each(|flaw| self.cut.add(|| record.error(path, flaw).to_string()));
        }
        // Each thread adds a part of all images.
        let rows = &*rows;
        let part = extent.count().div_ceil(threads).max(1);
        thread::scope(|scope| {
            for (i, sums) in self.sums.chunks_mut(part).enumerate() {
                let start = i.saturating_mul(part);
                let mut add = move || {
                    for row in rows.chunks_exact(extent.count()) {
                        let values = row.get(start..).unwrap_or_default();
                        sums.iter_mut().zip(values).for_each(|(sum, &value)| *sum += f64::from(value));
                    }
                };
                match threads {
                    1 => add(),
                    _ => drop(scope.spawn(add)),
                }
            }
        });
        Ok(())
    }
}
