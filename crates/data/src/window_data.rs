//! WindowData: windows of images, some with objects and some without, brought to one size; R-CNN's way of training.
//!
//! `source` lists images and their windows (see `window_file`); `root_folder` is put before every file's name as it is.
//! A window whose overlap is at least `fg_threshold` is foreground and has its class for a label; one below `bg_threshold`
//! is background, of label 0; the others are not used. A batch has `batch_size` · `fg_fraction` foreground windows,
//! rounded down, after as many of background as fill it, each drawn at random from the run's seed.
//!
//! A window is brought to `crop_size` × `crop_size` bilinearly. With `context_pad` p, so much of its surroundings is shown
//! with it that they are p pixels wide in the result; `crop_mode: "square"` first widens the window to a square around its
//! middle. What lies outside the image stays 0. Then `mirror` of `transform_param` flips one window in two, the mean (of
//! its `mean_file`, an image of at least `crop_size`, its middle; or `mean_value`) is taken off, and `scale` multiplies:
//! that of `window_data_param`, as in Caffe, where the one of `transform_param`, `force_color` and `force_gray` have no
//! effect (a warning says so).
//!
//! | top | shape |
//! | --- | --- |
//! | first | `batch_size` × 3 × `crop_size` × `crop_size`: blue, green, red |
//! | second, optional | `batch_size`: the labels |
//!
//! Images are read as in ImageData; `cache_images` keeps all files in memory. The `prefetch` batches of `data_param` (4)
//! are kept ready; threads share the decoding of each. Batches depend on the seed alone, not on the threads.
//!
//! Differences: Caffe passes over an image that cannot be read and leaves the window as it was; here it is an error with
//! list, line and file, and so is a window that lies outside its image. The first JPEG that was cut short is warned of.
//! Caffe starts over after a resume; here the position is saved.

use std::path::PathBuf;
use std::sync::Arc;

use lgm_core::{BuildCx, Error, Host, Node, Result, Shape, Source, State, Step, ViewMut, ensure, memory};
use lgm_proto::{LayerParameter, TransformationParameter, WindowDataParameter, strings};

use crate::ahead::Ahead;
use crate::batch::{Batch, read_counter};
use crate::image::{self, Color, Raster};
use crate::order::Draws;
use crate::parallel::{in_parallel, threads_for};
use crate::pixels::{Extent, Mean};
use crate::prefetch::Prefetch;
use crate::transform::{self, ignore_forced_color};
use crate::warnings::{Flaw, Warnings};
use crate::window_file::{Region, WindowFile};

mod warp;

use warp::{Side, Warp};

/// The WindowData source. See the module's documentation.
pub struct WindowData {
    param: WindowDataParameter,
    transform: TransformationParameter,
    side: Side,
    prefetch: usize,
    draws: Draws,
    opened: Option<Opened>,
    /// The windows taken before, given before the list was opened.
    restored: u64,
    warnings: Arc<Warnings>,
}

struct Opened {
    windows: Arc<Windows>,
    shapes: Vec<Shape>,
    /// The number of windows taken since training began.
    ahead: Ahead<u64>,
}

/// What batches are made of.
struct Windows {
    source: PathBuf,
    list: WindowFile,
    /// The files' bytes, if they are kept.
    cached: Vec<Vec<u8>>,
    side: Side,
    mirror: bool,
    mean: Mean,
    scale: f32,
    extent: Extent,
    background: usize,
    rows: usize,
    draws: Draws,
    warnings: Arc<Warnings>,
}

impl WindowData {
    /// Builds the source of a layer.
    ///
    /// # Errors
    /// When the layer's parameters are missing or contradictory.
    pub fn new(layer: &LayerParameter, cx: &BuildCx) -> Result<Self> {
        let param = layer.window_data_param.clone().unwrap_or_default();
        let transform = layer.transform_param.clone().unwrap_or_default();
        ensure!(
            !param.source().is_empty(),
            "window_data_param needs a source: a text file that lists images and windows"
        );
        ensure!(param.batch_size() > 0, "window_data_param needs a positive batch_size");
        ensure!(
            (0.0..=1.0).contains(&param.fg_fraction()),
            "fg_fraction must be between 0 and 1, found {}",
            param.fg_fraction()
        );
        let (crop, pad) = (transform.crop_size() as usize, param.context_pad() as usize);
        ensure!(crop > 0, "WindowData needs transform_param {{ crop_size: … }}, the size that windows are brought to");
        ensure!(
            pad.saturating_mul(2) < crop,
            "context_pad {pad} on both sides leaves nothing of crop_size {crop} for the window"
        );
        let square = match param.crop_mode() {
            "warp" => false,
            "square" => true,
            other => return Err(Error::config(format!("crop_mode must be 'warp' or 'square', found '{other}'"))),
        };
        if transform.scale() != 1.0 {
            tracing::warn!(
                "WindowData '{}': transform_param's scale has no effect, as in Caffe; window_data_param's has",
                layer.name()
            );
        }
        ignore_forced_color(&transform, layer, "windows have three channels");
        Ok(WindowData {
            warnings: Arc::new(Warnings::of(layer)),
            side: Side { crop, pad, square },
            prefetch: layer.data_param.clone().unwrap_or_default().prefetch().max(1) as usize,
            draws: Draws::new(cx.seed, layer.name(), cx.phase),
            opened: None,
            restored: 0,
            param,
            transform,
        })
    }

    /// How many windows of a batch are foreground, as single precision has it.
    fn foreground(&self) -> usize {
        (self.param.batch_size() as f32 * self.param.fg_fraction()) as usize
    }
}

impl Source for WindowData {
    fn open(&mut self, tops: usize) -> Result<Vec<Shape>> {
        ensure!(
            (1..=2).contains(&tops),
            "WindowData takes one top, the windows, or two, windows and labels; found {tops}"
        );
        let (source, param) = (strings::to_path(self.param.source()), &self.param);
        let list = WindowFile::read(&source, param.root_folder(), param.fg_threshold(), param.bg_threshold())?;
        tracing::info!("Number of images: {}", list.files.len());
        tracing::info!("Foreground windows: {}, background: {}", list.foreground.len(), list.background.len());
        let (rows, foreground) = (param.batch_size() as usize, self.foreground());
        let background = rows.saturating_sub(foreground);
        let lacks = |kind: &str, wanted: usize, threshold: String| {
            Error::data(&source, format!("holds no {kind} window ({threshold}), and each batch is to have {wanted}"))
        };
        if foreground > 0 && list.foreground.is_empty() {
            return Err(lacks("foreground", foreground, format!("overlap of at least {}", param.fg_threshold())));
        }
        if background > 0 && list.background.is_empty() {
            return Err(lacks("background", background, format!("overlap below {}", param.bg_threshold())));
        }
        let mut cached = Vec::new();
        for file in list.files.iter().take(if param.cache_images() { usize::MAX } else { 0 }) {
            let bytes = image::read_bytes(file)?;
            memory::check(bytes.len(), format!("{}: cached images", source.display()))?;
            cached.push(bytes);
        }
        let crop = self.side.crop;
        let extent = Extent { channels: 3, height: crop, width: crop };
        let mut shapes = vec![Shape::from([rows, extent.channels, crop, crop])];
        shapes.extend((tops == 2).then(|| Shape::from([rows])));
        let windows = Windows {
            source,
            list,
            cached,
            warnings: self.warnings.clone(),
            side: self.side,
            mirror: self.transform.mirror(),
            mean: transform::middle_of_mean(&self.transform, extent)?,
            scale: self.param.scale(),
            extent,
            background,
            rows,
            draws: self.draws.clone(),
        };
        let ahead = Ahead::from(self.restored);
        self.opened = Some(Opened { windows: Arc::new(windows), shapes: shapes.clone(), ahead });
        Ok(shapes)
    }

    fn load(&mut self, _step: &Step, tops: &mut [ViewMut<'_, Host>]) -> Result<()> {
        let opened = self.opened.as_mut().ok_or_else(|| Error::internal("WindowData was used before it was opened"))?;
        let (windows, shapes, prefetch) = (&opened.windows, &opened.shapes, self.prefetch);
        opened.ahead.next(tops, |from| {
            let (windows, mut taken) = (windows.clone(), from);
            let fill = move |batch: &mut Batch<u64>| windows.fill(&mut taken, batch);
            Prefetch::spawn("WindowData batches", Batch::several(prefetch, shapes)?, fill)
        })
    }

    fn state(&self) -> State {
        let taken = self.opened.as_ref().map_or(self.restored, |opened| opened.ahead.place());
        State::from([("taken".to_string(), taken as f64)])
    }

    fn restore(&mut self, state: &State) -> Result<()> {
        self.restored = self.warnings.placed(read_counter(state, "taken"), 0);
        if let Some(opened) = &mut self.opened {
            opened.ahead = Ahead::from(self.restored);
        }
        Ok(())
    }
}

impl Windows {
    /// Makes the batch that follows `taken` windows.
    fn fill(&self, taken: &mut u64, batch: &mut Batch<u64>) -> Result<()> {
        let (first, rest) =
            batch.tops.split_first_mut().ok_or_else(|| Error::internal("a WindowData layer without tops"))?;
        let written = in_parallel(first, self.extent.count(), threads_for(self.rows), |i, out| {
            let draw = self.draws.image(taken.saturating_add(i as u64));
            let from = if i < self.background { &self.list.background } else { &self.list.foreground };
            let region = from[draw.among(from.len())];
            let flaw = self.write(region, self.mirror && draw.mirror(), out)?;
            Ok((region, flaw))
        })?;
        for (i, (region, flaw)) in written.into_iter().enumerate() {
            let file = || self.list.files[region.image as usize].display();
            self.warnings.flaw(flaw, |flaw| self.error(region, format!("{} {flaw}", file())));
            if let Some(top) = rest.first_mut() {
                top[i] = region.label as f32;
            }
        }
        *taken = taken.saturating_add(self.rows as u64);
        batch.next = *taken;
        Ok(())
    }

    fn error(&self, region: Region, what: String) -> Error {
        Error::data(&self.source, format!("line {}: {what}", region.line))
    }

    /// Writes a window to `out`, what lies outside its image as 0; returns what is amiss with the image.
    fn write(&self, region: Region, mirror: bool, out: &mut [f32]) -> Result<Option<Flaw>> {
        let error = |what: String| self.error(region, what);
        let (image, flaw) = self.image(region.image as usize).map_err(|e| error(e.to_string()))?;
        let Extent { height, width, .. } = image.extent;
        let warp = Warp::new(region, self.side, (height, width), mirror).ok_or_else(|| {
            let Region { x1, y1, x2, y2, .. } = region;
            error(format!(
                "the window from ({x1}, {y1}) to ({x2}, {y2}) lies outside its image, {width} x {height} pixels"
            ))
        })?;
        out.fill(0.0);
        if warp.height == 0 || warp.width == 0 {
            return Ok(flaw);
        }
        let warped = image
            .part_resized(warp.corner, warp.part, warp.height, warp.width)
            .map_err(|e| error(format!("the window {e}")))?;
        let Extent { channels, height: high, width: wide } = self.extent;
        for (y, row) in warped.data.chunks_exact(warp.width * channels).enumerate() {
            for (x, pixel) in row.chunks_exact(channels).enumerate() {
                let column = warp.left + if mirror { warp.width - 1 - x } else { x };
                for (c, &value) in pixel.iter().enumerate() {
                    let at = (c * high + warp.top + y) * wide + column;
                    let mean = match &self.mean {
                        Mean::None => 0.0,
                        Mean::Channels(values) => values[c],
                        Mean::Image(values) => values[at],
                    };
                    out[at] = (f32::from(value) - mean) * self.scale;
                }
            }
        }
        Ok(flaw)
    }

    fn image(&self, index: usize) -> Result<(Raster, Option<Flaw>)> {
        let file = &self.list.files[index];
        match self.cached.get(index) {
            Some(bytes) => image::decode_file(bytes, file, Color::Force),
            None => image::read_file(file, Color::Force),
        }
    }
}

/// Builds a WindowData layer.
pub(crate) fn build(layer: &LayerParameter, cx: &BuildCx) -> Result<Node> {
    Ok(Node::Source(Box::new(WindowData::new(layer, cx)?)))
}
