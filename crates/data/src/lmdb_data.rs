//! Data: batches of images and labels from an LMDB database of `Datum` records.
//!
//! Records are taken in the order of their keys, from the last one on to the first again. An image is 8-bit or floating
//! values, or an encoded JPEG or PNG file, which is decoded to blue, green, red planes; then `transform_param` applies
//! (see `transform`). `prefetch` batches are kept ready by a thread. With `rand_skip` n, the first record is one
//! of the first n, at random.
//!
//! | top | shape |
//! | --- | --- |
//! | first | `batch_size` × channels × height × width, of the first record's image or `crop_size` |
//! | second, optional | `batch_size`: the labels |
//!
//! Differences: Caffe takes the shape from the first record of each batch; here all records must fit the first of all.
//! LevelDB databases must be converted; what the folder holds decides, not `backend`. Caffe starts over after a resume; here the position is saved.

use std::path::PathBuf;
use std::sync::Arc;

use lgm_core::{BuildCx, Error, Host, Node, Phase, Result, Shape, Source, State, Step, ViewMut, ensure};
use lgm_proto::{DataParameter, LayerParameter, TransformationParameter};

use crate::batch::{Batch, copy_out, read_counter};
use crate::datum::decode;
use crate::image::Color;
use crate::lmdb::{Lmdb, Records};
use crate::order::Draws;
use crate::prefetch::Prefetch;
use crate::transform::{Transformer, color};

/// Where a run stands: the next record, and how many images went before it since training began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Cursor {
    record: u64,
    image: u64,
}

/// The Data source. See the module's documentation.
pub struct LmdbData {
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
    lmdb: Arc<Lmdb>,
    transformer: Arc<Transformer>,
    shapes: Vec<Shape>,
    encoded: bool,
    start: Cursor,
    ahead: Option<Prefetch<Batch<Cursor>>>,
}

impl LmdbData {
    /// Builds the source of a layer.
    ///
    /// # Errors
    /// When the layer's parameters are missing or contradictory.
    pub fn new(layer: &LayerParameter, cx: &BuildCx) -> Result<Self> {
        let param = layer.data_param.clone().unwrap_or_default();
        ensure!(!param.source().is_empty(), "data_param needs a source: the folder of an LMDB database");
        ensure!(param.batch_size() > 0, "data_param needs a positive batch_size");
        let transform = layer.transform_param.clone().unwrap_or_default();
        let color = match color(&transform)? {
            Color::Native if param.force_encoded_color() => Color::Force,
            color => color,
        };
        Ok(LmdbData {
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

impl Source for LmdbData {
    fn open(&mut self, tops: usize) -> Result<Vec<Shape>> {
        ensure!((1..=2).contains(&tops), "Data takes one top, the images, or two, images and labels; found {tops}");
        let lmdb = Lmdb::open(&self.path)?;
        let color = self.color;
        let mut records = Records::from(lmdb.clone(), 0)?;
        let first = records.next(1)?.first().map(|(_, record)| decode(record, color));
        let first = first.ok_or_else(|| Error::internal("a database without records was opened"))?;
        let first = first.map_err(|e| record_error(&lmdb, 0, e))?;
        let transformer = Transformer::new(&self.transform, self.phase, first.image.extent)?;
        transformer.check(first.image.extent).map_err(|e| record_error(&lmdb, 0, e))?;
        let batch = self.param.batch_size() as usize;
        let out = transformer.output();
        let mut shapes = vec![Shape::from([batch, out.channels, out.height, out.width])];
        if tops == 2 {
            shapes.push(Shape::from([batch]));
        }
        let skip = self.draws.once("rand_skip", self.param.rand_skip() as usize) as u64;
        let start = Cursor { record: skip % lmdb.records(), image: 0 };
        self.opened = Some(Opened {
            lmdb,
            transformer: Arc::new(transformer),
            shapes: shapes.clone(),
            encoded: first.encoded,
            start,
            ahead: None,
        });
        Ok(shapes)
    }

    fn load(&mut self, _step: &Step, tops: &mut [ViewMut<'_, Host>]) -> Result<()> {
        let opened = self.opened.as_mut().ok_or_else(|| Error::internal("Data was used before it was opened"))?;
        let ahead = match &mut opened.ahead {
            Some(ahead) => ahead,
            none => {
                let rows = self.param.batch_size() as usize;
                let cores = std::thread::available_parallelism().map_or(1, |n| n.get());
                let from = self.cursor.unwrap_or(opened.start);
                let mut assembler = Assembler {
                    records: Records::from(opened.lmdb.clone(), from.record)?,
                    image: from.image,
                    lmdb: opened.lmdb.clone(),
                    transformer: opened.transformer.clone(),
                    draws: self.draws.clone(),
                    color: self.color,
                    rows,
                    threads: if opened.encoded { cores.min(rows.div_ceil(IMAGES_PER_THREAD)) } else { 1 },
                };
                let buffers = Batch::several(self.param.prefetch().max(1) as usize, &opened.shapes)?;
                none.insert(Prefetch::spawn("Data batches", buffers, move |batch| assembler.fill(batch))?)
            }
        };
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
            let records = opened.lmdb.records();
            if cursor.record >= records {
                let what = format!("the saved position is record {} of {records}", cursor.record);
                return Err(Error::data(&self.path, what));
            }
            opened.ahead = None;
        }
        self.cursor = Some(cursor);
        Ok(())
    }
}

fn record_error(lmdb: &Lmdb, index: u64, what: impl std::fmt::Display) -> Error {
    Error::data(lmdb.path(), format!("record {index} {what}"))
}

/// Makes batches of records; runs on the reading thread.
struct Assembler {
    records: Records,
    image: u64,
    lmdb: Arc<Lmdb>,
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
        let (transformer, draws, color, lmdb) = (&self.transformer, &self.draws, self.color, &self.lmdb);
        let threads = self.threads;
        let mut done = 0;
        while done < self.rows {
            let records = self.records.next(self.rows - done)?;
            let image = self.image + done as u64;
            let one = |i: usize, out: &mut [f32]| -> Result<f32> {
                let (index, record) = records[i];
                let decoded = decode(record, color).map_err(|e| record_error(lmdb, index, e))?;
                transformer.check(decoded.image.extent).map_err(|e| record_error(lmdb, index, e))?;
                transformer.apply(&decoded.image, draws.image(image + i as u64), out);
                Ok(decoded.label.unwrap_or(0) as f32)
            };
            let (from, to) = (done, done + records.len());
            let labels = in_parallel(&mut first[from * each..to * each], each, records.len().div_ceil(threads), one)?;
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

/// Runs `one` on each image of a batch of outputs, `part` images to a thread. Threads of its own, not the pool's: the
/// pool may be waiting for this very batch.
fn in_parallel(
    outputs: &mut [f32],
    each: usize,
    part: usize,
    one: impl Fn(usize, &mut [f32]) -> Result<f32> + Sync,
) -> Result<Vec<f32>> {
    let run = |from: usize, outputs: &mut [f32]| -> Result<Vec<f32>> {
        outputs.chunks_exact_mut(each).enumerate().map(|(i, out)| one(from + i, out)).collect()
    };
    if part * each >= outputs.len() {
        return run(0, outputs);
    }
    std::thread::scope(|scope| {
        let run = &run;
        let threads: Vec<_> = outputs
            .chunks_mut(part * each)
            .enumerate()
            .map(|(i, outputs)| scope.spawn(move || run(i * part, outputs)))
            .collect();
        let mut labels = Vec::new();
        for thread in threads {
            labels.extend(thread.join().map_err(|_| Error::internal("a thread that decodes images panicked"))??);
        }
        Ok(labels)
    })
}

/// Images that are worth a thread.
const IMAGES_PER_THREAD: usize = 16;

/// Builds a Data layer.
pub(crate) fn build(layer: &LayerParameter, cx: &BuildCx) -> Result<Node> {
    Ok(Node::Source(Box::new(LmdbData::new(layer, cx)?)))
}
