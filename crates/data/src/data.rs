//! Data: batches of images and labels from an LMDB or LevelDB database of `Datum` records.
//!
//! Records are taken in the order of their keys, from the last one on to the first again. An image is 8-bit or floating
//! values, or an encoded JPEG or PNG file, which is decoded to blue, green, red planes; then `transform_param` applies
//! (see `transform`). `prefetch` batches are kept ready by a thread. With `rand_skip` n, the first record is one
//! of the first n, at random. With `shuffle` (of NVIDIA's, Intel's and other forks), records come in a random order, another
//! one each time round; a LevelDB database is then read once before the first batch, to find where its records lie.
//!
//! | top | shape |
//! | --- | --- |
//! | first | `batch_size` × channels × height × width, of the first record's image or `crop_size` |
//! | second, optional | `batch_size`: the labels |
//!
//! Differences: Caffe takes the shape from the first record of each batch; here all records must fit the first of all.
//! What the folder holds decides, not `backend`. Caffe starts over after a resume; here the position is saved, and a run
//! starts over, with a warning, where the database has no such position.

use std::path::PathBuf;
use std::sync::Arc;

use lgm_core::{BuildCx, Error, Host, Node, Phase, Result, Shape, Source, State, Step, ViewMut, ensure};
use lgm_proto::{DataParameter, LayerParameter, TransformationParameter, strings};

use crate::batch::Batch;
use crate::datum::decode;
use crate::db::{Cursor, Database, Locations, Opened, Reading, Records};
use crate::image::Color;
use crate::order::Draws;
use crate::parallel::{in_parallel, threads_for};
use crate::prefetch::Prefetch;
use crate::transform::{Transformer, color};
use crate::warnings::Warnings;

/// The Data source. See the module's documentation.
pub struct Data {
    path: PathBuf,
    param: DataParameter,
    transform: TransformationParameter,
    color: Color,
    phase: Phase,
    draws: Draws,
    reading: Reading,
    images: Option<Images>,
    warnings: Arc<Warnings>,
}

/// What the first image tells.
struct Images {
    transformer: Arc<Transformer>,
    shapes: Vec<Shape>,
    encoded: bool,
    /// Where the first time round begins.
    first: u64,
}

impl Data {
    /// Builds the source of a layer.
    ///
    /// # Errors
    /// When the layer's parameters are missing or contradictory.
    pub fn new(layer: &LayerParameter, cx: &BuildCx) -> Result<Self> {
        let (param, transform, color) = settings(layer)?;
        let warnings = Arc::new(Warnings::of(layer));
        Ok(Data {
            path: strings::to_path(param.source()),
            phase: cx.phase,
            draws: Draws::new(cx.seed, layer.name(), cx.phase),
            reading: Reading::new(warnings.clone()),
            images: None,
            warnings,
            param,
            transform,
            color,
        })
    }
}

/// What a layer that reads a database is given, and the colour in which its images are decoded.
///
/// # Errors
/// When the layer's parameters are missing or contradictory.
pub(crate) fn settings(layer: &LayerParameter) -> Result<(DataParameter, TransformationParameter, Color)> {
    let param = layer.data_param.clone().unwrap_or_default();
    ensure!(!param.source().is_empty(), "data_param needs a source: the folder of an LMDB or LevelDB database");
    ensure!(param.batch_size() > 0, "data_param needs a positive batch_size");
    let transform = layer.transform_param.clone().unwrap_or_default();
    let color = match color(&transform)? {
        Color::Native if param.force_encoded_color() => Color::Force,
        color => color,
    };
    Ok((param, transform, color))
}

impl Source for Data {
    fn open(&mut self, tops: usize) -> Result<Vec<Shape>> {
        ensure!((1..=2).contains(&tops), "Data takes one top, the images, or two, images and labels; found {tops}");
        let database = Database::open(&self.path)?;
        let mut records = Records::from(database.clone(), 0)?;
        let first = records.next(1)?;
        let first = first.first().ok_or_else(|| Error::internal("a database without records was opened"))?;
        let decoded = decode(first.value, self.color).map_err(|e| first.error(&self.path, e))?;
        let transformer = Transformer::new(&self.transform, self.phase, decoded.image.extent)?;
        transformer.check(decoded.image.extent).map_err(|e| first.error(&self.path, e))?;
        let batch = self.param.batch_size() as usize;
        let out = transformer.output();
        let mut shapes = vec![Shape::from([batch, out.channels, out.height, out.width])];
        if tops == 2 {
            shapes.push(Shape::from([batch]));
        }
        let skip = self.draws.once("rand_skip", self.param.rand_skip() as usize) as u64;
        let start = Cursor::at(&database, skip)?;
        self.reading.open(database, start);
        self.images = Some(Images {
            transformer: Arc::new(transformer),
            shapes: shapes.clone(),
            encoded: decoded.encoded,
            first: start.record,
        });
        Ok(shapes)
    }

    fn load(&mut self, _step: &Step, tops: &mut [ViewMut<'_, Host>]) -> Result<()> {
        let images = self.images.as_mut().ok_or_else(|| Error::internal("Data was used before it was opened"))?;
        let Images { transformer, shapes, encoded, first } = images;
        let Opened { database, start, ahead } = self.reading.opened()?;
        let rows = self.param.batch_size() as usize;
        ahead.next(tops, |from| {
            let (from, records) = match self.param.shuffle() {
                true => (from, shuffled(database, *first + from.image, &self.draws)?),
                false => from.records(database, *start, &self.warnings)?,
            };
            let is_work = *encoded || transformer.output().count() >= LARGE;
            let mut assembler = Assembler {
                records,
                image: from.image,
                path: self.path.clone(),
                warnings: self.warnings.clone(),
                transformer: transformer.clone(),
                draws: self.draws.clone(),
                color: self.color,
                rows,
                threads: if is_work { threads_for(rows) } else { 1 },
            };
            let buffers = Batch::several(self.param.prefetch().max(1) as usize, shapes)?;
            Prefetch::spawn("Data batches", buffers, move |batch| assembler.fill(batch))
        })
    }

    fn state(&self) -> State {
        self.reading.state()
    }

    fn restore(&mut self, state: &State) -> Result<()> {
        self.reading.restore(state);
        Ok(())
    }
}

/// Values of an image from which several threads should share the images of a batch; encoded ones are always worth that.
const LARGE: usize = 1 << 15;

/// The records from a position on that counts from the first record of the first time round, in an order drawn for each time
/// round.
fn shuffled(database: &Arc<Database>, position: u64, draws: &Draws) -> Result<Records> {
    let (locations, draws) = (Arc::new(Locations::of(database)?), draws.clone());
    let draw = move |round, count| draws.permutation("records", &[round], count);
    Ok(Records::shuffled(database.clone(), locations, position, draw))
}

/// Makes batches of records; runs on the reading thread.
struct Assembler {
    records: Records,
    image: u64,
    /// Of the database, for errors.
    path: PathBuf,
    warnings: Arc<Warnings>,
    transformer: Arc<Transformer>,
    draws: Draws,
    color: Color,
    rows: usize,
    /// Threads that share the decoding of one batch.
    threads: usize,
}

impl Assembler {
    fn fill(&mut self, batch: &mut Batch<Cursor>) -> Result<()> {
        let each = self.transformer.output().count();
        let (first, rest) = match batch.tops.split_first_mut() {
            Some((first, rest)) => (first, rest),
            None => return Err(Error::internal("a Data layer without tops")),
        };
        let (transformer, draws, color, path) = (&self.transformer, &self.draws, self.color, &self.path);
        let threads = self.threads;
        let mut done = 0;
        while done < self.rows {
            let records = self.records.next(self.rows - done)?;
            let image = self.image + done as u64;
            let one = |i: usize, out: &mut [f32]| -> Result<_> {
                let record = records[i];
                let decoded = decode(record.value, color).map_err(|e| record.error(path, e))?;
                transformer.check(decoded.image.extent).map_err(|e| record.error(path, e))?;
                transformer.apply(&decoded.image, draws.image(image + i as u64), out);
                Ok((decoded.label.unwrap_or(0) as f32, decoded.flaw))
            };
            let (from, to) = (done, done + records.len());
            let found = in_parallel(&mut first[from * each..to * each], each, threads, one)?;
            for (i, (label, flaw)) in found.into_iter().enumerate() {
                self.warnings.flaw(flaw, |flaw| records[i].error(path, flaw));
                if let Some(top) = rest.first_mut() {
                    top[from + i] = label;
                }
            }
            done = to;
        }
        self.image += self.rows as u64;
        batch.next = Cursor { record: self.records.index(), image: self.image };
        Ok(())
    }
}

/// Builds a Data layer.
pub(crate) fn build(layer: &LayerParameter, cx: &BuildCx) -> Result<Node> {
    Ok(Node::Source(Box::new(Data::new(layer, cx)?)))
}
