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
//! What the folder holds decides, not `backend`. Caffe starts over after a resume; here the position is saved.

use std::path::PathBuf;
use std::sync::Arc;

use lgm_core::{BuildCx, Error, Host, Node, Phase, Result, Shape, Source, State, Step, ViewMut, ensure};
use lgm_proto::{DataParameter, LayerParameter, TransformationParameter};

use crate::batch::{Batch, copy_out, read_counter};
use crate::datum::decode;
use crate::db::{Database, Locations, Records};
use crate::image::Color;
use crate::order::Draws;
use crate::parallel::{in_parallel, threads_for};
use crate::prefetch::Prefetch;
use crate::transform::{Transformer, color};

/// Where a run stands: the next record, and how many images went before it since training began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Cursor {
    record: u64,
    image: u64,
}

/// The Data source. See the module's documentation.
pub struct Data {
    path: PathBuf,
    param: DataParameter,
    transform: TransformationParameter,
    color: Color,
    phase: Phase,
    draws: Draws,
    opened: Option<Opened>,
    cursor: Option<Cursor>,
}

struct Opened {
    database: Arc<Database>,
    transformer: Arc<Transformer>,
    shapes: Vec<Shape>,
    encoded: bool,
    start: Cursor,
    ahead: Option<Prefetch<Batch<Cursor>>>,
}

impl Data {
    /// Builds the source of a layer.
    ///
    /// # Errors
    /// When the layer's parameters are missing or contradictory.
    pub fn new(layer: &LayerParameter, cx: &BuildCx) -> Result<Self> {
        let param = layer.data_param.clone().unwrap_or_default();
        ensure!(!param.source().is_empty(), "data_param needs a source: the folder of an LMDB or LevelDB database");
        ensure!(param.batch_size() > 0, "data_param needs a positive batch_size");
        let transform = layer.transform_param.clone().unwrap_or_default();
        let color = match color(&transform)? {
            Color::Native if param.force_encoded_color() => Color::Force,
            color => color,
        };
        Ok(Data {
            path: param.source().into(),
            phase: cx.phase,
            draws: Draws::new(cx.seed, layer.name(), cx.phase),
            opened: None,
            cursor: None,
            param,
            transform,
            color,
        })
    }
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
        let start = Cursor { record: Records::from(database.clone(), skip)?.index(), image: 0 };
        self.opened = Some(Opened {
            database,
            transformer: Arc::new(transformer),
            shapes: shapes.clone(),
            encoded: decoded.encoded,
            start,
            ahead: None,
        });
        Ok(shapes)
    }

    fn load(&mut self, _step: &Step, tops: &mut [ViewMut<'_, Host>]) -> Result<()> {
        let opened = self.opened.as_mut().ok_or_else(|| Error::internal("Data was used before it was opened"))?;
        if opened.ahead.is_none() {
            let rows = self.param.batch_size() as usize;
            let from = self.cursor.unwrap_or(opened.start);
            let mut assembler = Assembler {
                records: opened.records(from, self.param.shuffle().then_some(&self.draws))?,
                image: from.image,
                path: self.path.clone(),
                transformer: opened.transformer.clone(),
                draws: self.draws.clone(),
                color: self.color,
                rows,
                threads: if opened.is_work() { threads_for(rows) } else { 1 },
            };
            let buffers = Batch::several(self.param.prefetch().max(1) as usize, &opened.shapes)?;
            opened.ahead = Some(Prefetch::spawn("Data batches", buffers, move |batch| assembler.fill(batch))?);
        }
        let Some(ahead) = &mut opened.ahead else { return Err(Error::internal("Data reads no batches ahead")) };
        let batch = ahead.receive()?;
        copy_out(&batch.tops, tops)?;
        self.cursor = Some(batch.next);
        ahead.recycle(batch);
        Ok(())
    }

    fn state(&self) -> State {
        let start = self.opened.as_ref().map(|o| o.start).unwrap_or_default();
        let Cursor { record, image } = self.cursor.unwrap_or(start);
        [("record", record), ("image", image)].into_iter().map(|(k, v)| (k.to_string(), v as f64)).collect()
    }

    fn restore(&mut self, state: &State) -> Result<()> {
        let cursor = Cursor { record: read_counter(state, "record")?, image: read_counter(state, "image")? };
        if let Some(opened) = &mut self.opened {
            if let Some(count) = opened.database.count().filter(|&count| cursor.record >= count) {
                let what = format!("the saved position is record {} of {count}", cursor.record);
                return Err(Error::data(&self.path, what));
            }
            opened.ahead = None;
        }
        self.cursor = Some(cursor);
        Ok(())
    }
}

/// Values of an image from which copying it is worth a thread's while.
const LARGE: usize = 1 << 15;

impl Opened {
    /// Whether several threads should share the images of a batch.
    fn is_work(&self) -> bool {
        self.encoded || self.transformer.output().count() >= LARGE
    }

    /// The records from a place on, in the order of their keys or in one drawn for each time round.
    fn records(&self, from: Cursor, shuffle: Option<&Draws>) -> Result<Records> {
        if let Some(draws) = shuffle {
            let (locations, draws) = (Arc::new(Locations::of(&self.database)?), draws.clone());
            // From the times round that lie behind, the place follows.
            let position = self.start.record + from.image;
            let draw = move |round, count| draws.permutation("records", &[round], count);
            return Ok(Records::shuffled(self.database.clone(), locations, position, draw));
        }
        let records = Records::from(self.database.clone(), from.record)?;
        if records.index() != from.record {
            let what = format!("the saved position is record {}, but the database ends before it", from.record);
            return Err(Error::data(self.database.path(), what));
        }
        Ok(records)
    }
}

/// Makes batches of records; runs on the reading thread.
struct Assembler {
    records: Records,
    image: u64,
    /// Of the database, for errors.
    path: PathBuf,
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
            let one = |i: usize, out: &mut [f32]| -> Result<f32> {
                let record = records[i];
                let decoded = decode(record.value, color).map_err(|e| record.error(path, e))?;
                transformer.check(decoded.image.extent).map_err(|e| record.error(path, e))?;
                transformer.apply(&decoded.image, draws.image(image + i as u64), out);
                Ok(decoded.label.unwrap_or(0) as f32)
            };
            let (from, to) = (done, done + records.len());
            let labels = in_parallel(&mut first[from * each..to * each], each, threads, one)?;
            if let Some(top) = rest.first_mut() {
                top[from..to].copy_from_slice(&labels);
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
