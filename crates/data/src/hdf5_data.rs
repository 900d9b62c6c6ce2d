//! HDF5Data: batches of rows from the HDF5 files that a text file lists.
//!
//! Each top is the dataset of its name; the first axis of every dataset counts rows, and all datasets of a file have as
//! many. A batch is the next `batch_size` rows; batches run on from file to file and from the last file to the first.
//! With `shuffle`, each epoch visits the files in a new random order and the rows of each file in a new random order,
//! every row once. Any integer or floating-point dataset will do.
//!
//! The first top can be transformed, as in the L-GM fork: `crop_size` cuts a square window from images (rows of
//! channels × height × width), then `mean_value` (one, or one a channel) is taken off, then `mirror` flips left and
//! right, then `scale` multiplies. In TRAIN the window is at random, in TEST centred; mirroring is at random, one time
//! in two. In TEST with `crop_num` n > 1 (at most 5) each image gives n windows: centre, top left, bottom right, top
//! right, bottom left; and with `mirror` 2n, the mirrored ones first. The first top then has `batch_size`·n images, the
//! n of one row side by side.
//!
//! | top | shape |
//! | --- | --- |
//! | first | `batch_size` (· windows an image) × the dataset's other axes, height and width replaced by `crop_size` |
//! | others | `batch_size` × the dataset's other axes |
//!
//! A thread reads ahead, in bounded memory (see `hdf5_reader`): files larger than memory train, shuffled too.
//!
//! Differences: Caffe reads whole files, one at a time, when the last is used up. The fork draws one crop for a whole
//! file; here crops and mirrors are drawn for each image, from the run's seed. The fork reads outside the image when
//! `crop_num` > 1 in TRAIN or > 5; here that is an error. Caffe starts over after a resume; here the position is saved, and
//! a run starts over, with a warning, where the files have no such position.

use std::path::PathBuf;
use std::sync::Arc;

use lgm_core::{BuildCx, Error, Host, Node, Phase, Result, Shape, Source, State, Step, ViewMut, count, ensure};
use lgm_hdf5::Values;
use lgm_proto::{Hdf5DataParameter, LayerParameter, strings};

use crate::batch::{Batch, copy_out, read_counter};
use crate::hdf5_reader::{Files, Position, WINDOW_BYTES, Window, WindowReader};
use crate::order::Draws;
use crate::pixels::{self, Extent, Mean, cut};
use crate::prefetch::Prefetch;
use crate::warnings::Warnings;

/// Batches read ahead.
const BATCHES: usize = 3;

/// Where a run stands: the next row, and how many images went before it since training began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Cursor {
    at: Position,
    image: u64,
}

impl Cursor {
    fn restored(state: &State) -> Result<Self> {
        let number = |field| read_counter(state, field);
        let at = Position { epoch: number("epoch")?, file: number("file")? as usize, row: number("row")? as usize };
        Ok(Cursor { at, image: number("image")? })
    }
}

/// The HDF5Data source. See the module's documentation.
pub struct Hdf5Data {
    source: PathBuf,
    names: Vec<String>,
    param: Hdf5DataParameter,
    phase: Phase,
    draws: Draws,
    window_bytes: usize,
    opened: Option<Opened>,
    cursor: Cursor,
    warnings: Warnings,
}

struct Opened {
    files: Arc<Files>,
    first: Arc<FirstTop>,
    shapes: Vec<Shape>,
    /// Started by the first load, so that a net can be built, and restored, without reading data.
    ahead: Option<Prefetch<Batch<Cursor>>>,
}

impl Hdf5Data {
    /// Builds the source of a layer.
    ///
    /// # Errors
    /// When the layer's parameters are missing or contradictory.
    pub fn new(layer: &LayerParameter, cx: &BuildCx) -> Result<Self> {
        ensure!(
            layer.transform_param.is_none(),
            "HDF5Data does not transform data as transform_param asks; use the fields scale, mirror, mean_value, \
             crop_size and crop_num of hdf5_data_param"
        );
        let param = layer.hdf5_data_param.clone().unwrap_or_default();
        ensure!(!param.source().is_empty(), "hdf5_data_param needs a source: a text file that lists HDF5 files");
        ensure!(param.batch_size() > 0, "hdf5_data_param needs a positive batch_size");
        Ok(Hdf5Data {
            source: strings::to_path(param.source()),
            names: layer.top.clone(),
            phase: cx.phase,
            draws: Draws::new(cx.seed, layer.name(), cx.phase),
            window_bytes: WINDOW_BYTES,
            opened: None,
            cursor: Cursor::default(),
            warnings: Warnings::of(layer),
            param,
        })
    }

    /// Bounds the rows in memory to two windows of `bytes` each (1 GiB by default), a window being one row at least.
    /// Reading a compressed chunk that is larger takes the chunk's size besides. A shuffled order depends on the bound
    /// when a file is larger than it.
    pub fn with_window_bytes(self, bytes: usize) -> Self {
        Hdf5Data { window_bytes: bytes, ..self }
    }

    fn opened(&mut self) -> Result<&mut Opened> {
        self.opened.as_mut().ok_or_else(|| Error::internal("HDF5Data was used before it was opened"))
    }
}

impl Source for Hdf5Data {
    fn open(&mut self, tops: usize) -> Result<Vec<Shape>> {
        ensure!(tops >= 1 && tops == self.names.len(), "HDF5Data needs a named top for each dataset it reads");
        let draws = self.param.shuffle().then(|| self.draws.clone());
        let files = Arc::new(Files::open(&self.source, &self.names, draws, self.window_bytes)?);
        let first = FirstTop::new(&self.param, self.phase, &files.shapes()[0])
            .map_err(|e| Error::config(format!("top '{}': {e}", self.names[0])))?;
        let batch = self.param.batch_size() as usize;
        let mut shapes: Vec<Shape> = files.shapes().iter().map(|row| row.splice(0..0, [batch])).collect();
        shapes[0] = first.shape.splice(0..0, [count(&[batch, first.images()])]);
        let placed = files.check(self.cursor.at).map(|()| self.cursor);
        self.cursor = self.warnings.placed(placed, Cursor::default());
        self.opened = Some(Opened { files, first: Arc::new(first), shapes: shapes.clone(), ahead: None });
        Ok(shapes)
    }

    fn load(&mut self, _step: &Step, tops: &mut [ViewMut<'_, Host>]) -> Result<()> {
        let (cursor, draws, rows) = (self.cursor, self.draws.clone(), self.param.batch_size() as usize);
        let opened = self.opened()?;
        let ahead = match &mut opened.ahead {
            Some(ahead) => ahead,
            none => {
                let mut assembler = Assembler::new(opened.files.clone(), opened.first.clone(), draws, cursor, rows)?;
                let buffers = Batch::several(BATCHES, &opened.shapes)?;
                none.insert(Prefetch::spawn("HDF5Data batches", buffers, move |batch| assembler.fill(batch))?)
            }
        };
        let batch = ahead.receive()?;
        copy_out(&batch.tops, tops)?;
        let next = batch.next;
        ahead.recycle(batch);
        self.cursor = next;
        Ok(())
    }

    fn state(&self) -> State {
        let Cursor { at, image } = self.cursor;
        let numbers = [("epoch", at.epoch), ("file", at.file as u64), ("row", at.row as u64), ("image", image)];
        numbers.into_iter().map(|(k, v)| (k.to_string(), v as f64)).collect()
    }

    fn restore(&mut self, state: &State) -> Result<()> {
        let mut saved = Cursor::restored(state);
        if let Some(opened) = &mut self.opened {
            saved = saved.and_then(|cursor| opened.files.check(cursor.at).map(|()| cursor));
            opened.ahead = None;
        }
        self.cursor = self.warnings.placed(saved, Cursor::default());
        Ok(())
    }
}

/// What is done to the rows of the first top.
struct FirstTop {
    extent: Extent,
    mean: Mean,
    scale: f32,
    crop: Option<usize>,
    mirror: bool,
    random_crop: bool,
    /// The fixed windows of one image, when there are several.
    windows: Vec<pixels::Window>,
    /// Extents of one output image.
    shape: Shape,
}

impl FirstTop {
    fn new(param: &Hdf5DataParameter, phase: Phase, row: &Shape) -> Result<Self> {
        let crop = param.crop_size.filter(|&c| c > 0).map(|c| c as usize);
        ensure!(
            row.len() == 3 || (crop.is_none() && !param.mirror()),
            "crop_size and mirror need images, rows of channels x height x width, found rows of shape {row}"
        );
        let extent = match row[..] {
            [channels, height, width] => Extent { channels, height, width },
            _ => Extent { channels: row.first().copied().unwrap_or(1), height: 1, width: row.count_from(1) },
        };
        let mean = match param.mean_value[..] {
            [] => Mean::None,
            [m] => Mean::Channels(vec![m; extent.channels]),
            ref m => {
                ensure!(
                    m.len() == extent.channels,
                    "mean_value must be given once or once for each of the {} channels, found {} times",
                    extent.channels,
                    m.len()
                );
                Mean::Channels(m.to_vec())
            }
        };
        let mut shape = row.clone();
        let mut windows = Vec::new();
        if let Some(side) = crop {
            ensure!(
                side <= extent.height && side <= extent.width,
                "crop_size {side} is larger than the images, {} x {}",
                extent.height,
                extent.width
            );
            shape = row.splice(1..3, [side, side]);
            let crops = param.crop_num() as usize;
            ensure!((1..=5).contains(&crops), "crop_num must be between 1 and 5, found {crops}");
            ensure!(
                phase == Phase::Test || crops == 1,
                "crop_num {crops} is for the TEST phase; TRAIN takes one random window from an image (give the two \
                 phases their own layers, with include {{ phase: TRAIN }} and include {{ phase: TEST }})"
            );
            if phase == Phase::Test && (crops > 1 || param.mirror()) {
                let corners = corners(extent, side);
                let mirrors: &[bool] = if param.mirror() { &[true, false] } else { &[false] };
                for &mirror in mirrors {
                    windows.extend(corners[..crops].iter().map(|&c| pixels::Window::square(c, side, mirror)));
                }
            }
        }
        let random_crop = phase == Phase::Train;
        Ok(FirstTop { extent, mean, scale: param.scale(), crop, mirror: param.mirror(), random_crop, windows, shape })
    }

    /// Images that come of one row.
    fn images(&self) -> usize {
        self.windows.len().max(1)
    }

    /// Writes the images of a row, number `image` since training began.
    fn write(&self, values: &Values, row: usize, draws: &Draws, image: u64, out: &mut [f32]) {
        let each = self.shape.count();
        if self.windows.len() > 1 {
            for (window, out) in self.windows.iter().zip(out.chunks_exact_mut(each.max(1))) {
                self.cut(values, row, *window, out);
            }
            return;
        }
        let draw = draws.image(image);
        let mirror = self.mirror && draw.mirror();
        let window = match self.crop {
            Some(side) if self.random_crop => {
                pixels::Window::square(draw.corner([side; 2], self.extent.height, self.extent.width), side, mirror)
            }
            Some(side) => pixels::Window::square(corners(self.extent, side)[0], side, mirror),
            None => pixels::Window::whole(self.extent, mirror),
        };
        self.cut(values, row, window, out);
    }

    fn cut(&self, values: &Values, row: usize, window: pixels::Window, out: &mut [f32]) {
        let span = row * self.extent.count()..(row + 1) * self.extent.count();
        match values {
            Values::U8(v) => cut(&v[span], self.extent, window, &self.mean, self.scale, out),
            Values::F32(v) => cut(&v[span], self.extent, window, &self.mean, self.scale, out),
        }
    }
}

/// The corners of the five fixed windows: centre, top left, bottom right, top right, bottom left.
fn corners(of: Extent, side: usize) -> [(usize, usize); 5] {
    let (bottom, right) = (of.height - side, of.width - side);
    [(bottom / 2, right / 2), (0, 0), (bottom, right), (0, right), (bottom, 0)]
}

/// Makes batches of rows; runs on the reading thread.
struct Assembler {
    windows: Prefetch<Window>,
    window: Option<Window>,
    used: usize,
    image: u64,
    first: Arc<FirstTop>,
    draws: Draws,
    lens: Vec<usize>,
    rows: usize,
}

impl Assembler {
    fn new(files: Arc<Files>, first: Arc<FirstTop>, draws: Draws, from: Cursor, rows: usize) -> Result<Self> {
        let lens = files.shapes().iter().map(|s| s.count()).collect();
        let mut reader = WindowReader::new(files, from.at);
        let buffers = vec![Window::default(), Window::default()];
        let windows = Prefetch::spawn("HDF5Data rows", buffers, move |window| reader.fill(window))?;
        Ok(Assembler { windows, window: None, used: 0, image: from.image, first, draws, lens, rows })
    }

    fn fill(&mut self, batch: &mut Batch<Cursor>) -> Result<()> {
        for i in 0..self.rows {
            let window = match self.window.take() {
                Some(window) => self.window.insert(window),
                None => {
                    self.used = 0;
                    self.window.insert(self.windows.receive()?)
                }
            };
            let row = window.order[self.used] as usize;
            for (t, (top, &len)) in batch.tops.iter_mut().zip(&self.lens).enumerate() {
                if t == 0 {
                    let each = self.first.shape.count() * self.first.images();
                    let out = &mut top[i * each..(i + 1) * each];
                    self.first.write(&window.data[0], row, &self.draws, self.image, out);
                } else {
                    window.data[t].copy_to(row * len..(row + 1) * len, &mut top[i * len..(i + 1) * len]);
                }
            }
            self.used += 1;
            self.image += 1;
            let finished = self.used == window.order.len();
            let row = window.at.row + self.used;
            let at = if finished { window.next } else { Position { row, ..window.at } };
            batch.next = Cursor { at, image: self.image };
            if finished && let Some(window) = self.window.take() {
                self.windows.recycle(window);
            }
        }
        Ok(())
    }
}

/// Builds an HDF5Data layer.
pub(crate) fn build(layer: &LayerParameter, cx: &BuildCx) -> Result<Node> {
    Ok(Node::Source(Box::new(Hdf5Data::new(layer, cx)?)))
}
