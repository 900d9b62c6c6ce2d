//! AnnotatedData: batches of images and the boxes of the objects in them, from an LMDB or LevelDB database of `AnnotatedDatum`
//! records.
//!
//! Records are taken as by Data. An image then goes through, each where `transform_param` or `annotated_data_param` asks for it:
//! `distort_param` (see `color`), `expand_param`, one of the windows that the `batch_sampler`s find, `resize_param` (see `resize`),
//! `noise_param` (see `noise`), and what Data does: crop, mirror, mean and scale. Objects go with their image; those are left out of which nothing is seen any
//! more, or not as much as `emit_constraint` asks for. `label_map_file` is not read: classes are numbers in records.
//!
//! | top | shape |
//! | --- | --- |
//! | first | `batch_size` × channels × height × width |
//! | second, optional | 1 × 1 × rows × 8: image, class, instance, xmin, ymin, xmax, ymax, difficult |
//!
//! xmin to ymax are fractions of the image's width and height. Records without a type of annotation, where `anno_type` gives none,
//! have one label each: then the second top is `batch_size` labels.
//!
//! Source: Liu et al., "SSD: Single Shot MultiBox Detector" (2016); the layer of its Caffe. Where we differ: that makes the second
//! top as long as the batch has objects; here it has room for as many as a record has at most, times `batch_size` (all records are
//! looked through when the net is built), and rows that are not used are −1. There an image is compressed as JPEG after each of the
//! first three steps, here it is not. The position is saved in snapshots, and draws are the same at any number of threads.

mod boxes;
mod color;
mod noise;
mod resize;
mod sample;

use std::path::PathBuf;
use std::sync::Arc;

use lgm_core::{BuildCx, Error, Host, Node, Phase, Result, Shape, Source, State, Step, ViewMut, ensure};
use lgm_proto::annotated_datum::AnnotationType;
use lgm_proto::resize_parameter::ResizeMode;
use lgm_proto::{
    AnnotatedDataParameter, AnnotatedDatum, AnnotationGroup, DataParameter, LayerParameter, ResizeParameter,
    TransformationParameter, strings,
};
use prost::Message;

pub(crate) use boxes::{Corners, groups};

use crate::batch::Batch;
use crate::data::settings;
use crate::datum::{BadRecord, raster};
use crate::db::{Cursor, Database, Opened, Reading, Record, Records};
use crate::image::Color;
use crate::order::Draws;
use crate::parallel::{in_parallel, threads_for};
use crate::pixels::Extent;
use crate::prefetch::Prefetch;
use crate::transform::Transformer;
use crate::warnings::{Flaw, Warnings};
use boxes::{Object, clip, objects, see};

/// Numbers of an object in the second top.
const ROW: usize = 8;

/// What of a record says how many objects it has.
#[derive(Clone, PartialEq, Message)]
struct Groups {
    #[prost(message, repeated, tag = "3")]
    annotation_group: Vec<AnnotationGroup>,
}

/// The AnnotatedData source. See the module's documentation.
pub struct AnnotatedData {
    path: PathBuf,
    data: DataParameter,
    param: AnnotatedDataParameter,
    transform: TransformationParameter,
    color: Color,
    phase: Phase,
    draws: Draws,
    reading: Reading,
    made: Option<Made>,
    warnings: Arc<Warnings>,
}

struct Made {
    maker: Arc<Maker>,
    shapes: Vec<Shape>,
}

impl AnnotatedData {
    /// Builds the source of a layer.
    ///
    /// # Errors
    /// When the layer's parameters are missing or contradictory.
    pub fn new(layer: &LayerParameter, cx: &BuildCx) -> Result<Self> {
        let (data, transform, color) = settings(layer)?;
        let param = layer.annotated_data_param.as_deref().cloned().unwrap_or_default();
        sample::check(&param.batch_sampler)?;
        for (name, times) in
            [("resize_param", transform.resize_param.len()), ("noise_param", transform.noise_param.len())]
        {
            ensure!(times <= 1, "{name} may be given once, found {times} times");
        }
        if let Some(expansion) = &transform.expand_param {
            resize::check_expansion(expansion)?;
            ensure!(
                transform.mean_file.is_none(),
                "expand_param fills with mean_value: give that in place of mean_file"
            );
        }
        let draws = Draws::new(cx.seed, layer.name(), cx.phase);
        let (path, phase) = (strings::to_path(data.source()), cx.phase);
        let warnings = Arc::new(Warnings::of(layer));
        let reading = Reading::new(warnings.clone());
        Ok(AnnotatedData { path, data, param, transform, color, phase, draws, reading, made: None, warnings })
    }
}

/// The greatest number of objects in a record.
fn most_objects(database: &Arc<Database>) -> Result<usize> {
    let mut records = Records::from(database.clone(), 0)?;
    let mut most = 0;
    loop {
        for record in records.next(1)? {
            let groups = Groups::decode(record.value)
                .map_err(|e| record.error(database.path(), format!("is not an AnnotatedDatum: {e}")))?;
            most = most.max(groups.annotation_group.iter().map(|g| g.annotation.len()).sum());
        }
        if records.index() == 0 {
            return Ok(most);
        }
    }
}

impl Source for AnnotatedData {
    fn open(&mut self, tops: usize) -> Result<Vec<Shape>> {
        ensure!(
            (1..=2).contains(&tops),
            "AnnotatedData takes one top, the images, or two, images and labels; found {tops}"
        );
        let database = Database::open(&self.path)?;
        let mut records = Records::from(database.clone(), 0)?;
        let first = records.next(1)?;
        let first = first.first().ok_or_else(|| Error::internal("a database without records was opened"))?;
        let datum = annotated(first, &self.path)?;
        let kind = self.param.anno_type.or(datum.r#type);
        let kind = kind.map(AnnotationType::try_from).transpose().map_err(|e| first.error(&self.path, e))?;
        ensure!(
            kind.is_none_or(|kind| kind == AnnotationType::Bbox),
            "anno_type must be BBOX, boxes of objects; found {}",
            kind.map_or("none", |kind| kind.as_str_name())
        );
        let (image, _) = raster(datum.datum.unwrap_or_default(), self.color).map_err(|e| first.error(&self.path, e))?;
        let maker = Maker::new(self, kind.is_some(), image.extent)?;
        let (batch, out) = (self.data.batch_size() as usize, maker.transformer.output());
        let mut shapes = vec![Shape::from([batch, out.channels, out.height, out.width])];
        if tops == 2 && kind.is_some() {
            let rows = lgm_core::count(&[batch, most_objects(&database)?.max(1)]);
            shapes.push(Shape::from([1, 1, rows, ROW]));
        } else if tops == 2 {
            shapes.push(Shape::from([batch]));
        }
        let skip = self.draws.once("rand_skip", self.data.rand_skip() as usize) as u64;
        let start = Cursor::at(&database, skip)?;
        self.reading.open(database, start);
        self.made = Some(Made { maker: Arc::new(maker), shapes: shapes.clone() });
        Ok(shapes)
    }

    fn load(&mut self, _step: &Step, tops: &mut [ViewMut<'_, Host>]) -> Result<()> {
        let Some(Made { maker, shapes }) = self.made.as_ref() else {
            return Err(Error::internal("AnnotatedData was used before it was opened"));
        };
        let Opened { database, start, ahead } = self.reading.opened()?;
        ahead.next(tops, |from| {
            let (from, mut records) = from.records(database, *start, &maker.warnings)?;
            let (maker, mut image) = (maker.clone(), from.image);
            let buffers = Batch::several(self.data.prefetch().max(1) as usize, shapes)?;
            let fill = move |batch: &mut Batch<Cursor>| -> Result<()> {
                image = maker.fill(&mut records, image, batch)?;
                batch.next = Cursor { record: records.index(), image };
                Ok(())
            };
            Prefetch::spawn("AnnotatedData batches", buffers, fill)
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

fn annotated(record: &Record<'_>, path: &std::path::Path) -> Result<AnnotatedDatum> {
    AnnotatedDatum::decode(record.value).map_err(|e| record.error(path, format!("is not an AnnotatedDatum: {e}")))
}

/// Makes a net's images of records.
struct Maker {
    path: PathBuf,
    warnings: Arc<Warnings>,
    color: Color,
    draws: Draws,
    /// What lies around an image that was expanded.
    fill: Vec<u8>,
    param: AnnotatedDataParameter,
    transform: TransformationParameter,
    transformer: Transformer,
    rows: usize,
    /// Records have objects, not a label.
    has_objects: bool,
}

impl Maker {
    /// For images of which the first has an extent.
    fn new(layer: &AnnotatedData, has_objects: bool, first: Extent) -> Result<Maker> {
        let transform = layer.transform.clone();
        let resize = transform.resize_param.first();
        if let Some(p) = resize {
            resize::check(p, first.channels)?;
        }
        if let Some(p) = &transform.distort_param {
            color::check(p, first.channels)?;
        }
        if let Some(p) = transform.noise_param.first() {
            noise::check(p, first.channels)?;
        }
        let resized = resize.map_or(first, |p| resize::extent(p, first));
        // What is left to Data's transformation.
        let of_data = TransformationParameter {
            resize_param: Vec::new(),
            noise_param: Vec::new(),
            distort_param: None,
            expand_param: None,
            emit_constraint: None,
            ..transform.clone()
        };
        let means = &transform.mean_value;
        let mean = |c: usize| means.get(if means.len() == 1 { 0 } else { c }).map_or(0, |&mean| color::to_u8(mean));
        Ok(Maker {
            path: layer.path.clone(),
            warnings: layer.warnings.clone(),
            color: layer.color,
            draws: layer.draws.clone(),
            fill: (0..first.channels).map(mean).collect(),
            param: layer.param.clone(),
            transformer: Transformer::new(&of_data, layer.phase, resized)?,
            transform,
            rows: layer.data.batch_size() as usize,
            has_objects,
        })
    }

    /// Fills a batch with the next records, of which the first is image number `image` of the run; returns the next one's number.
    fn fill(&self, records: &mut Records, image: u64, batch: &mut Batch<Cursor>) -> Result<u64> {
        let each = self.transformer.output().count();
        let Some((first, rest)) = batch.tops.split_first_mut() else {
            return Err(Error::internal("an AnnotatedData layer without tops"));
        };
        let (mut all, threads) = (Vec::with_capacity(self.rows), threads_for(self.rows));
        while all.len() < self.rows {
            let (done, part) = (all.len(), records.next(self.rows - all.len())?);
            let one = |i: usize, out: &mut [f32]| self.image(&part[i], image + (done + i) as u64, out);
            let found = in_parallel(&mut first[done * each..(done + part.len()) * each], each, threads, one)?;
            for ((objects, label, flaw), record) in found.into_iter().zip(&part) {
                self.warnings.flaw(flaw, |flaw| record.error(&self.path, flaw));
                all.push((objects, label));
            }
        }
        if let Some(top) = rest.first_mut() {
            if self.has_objects {
                top.fill(-1.0);
                let objects = all.iter().enumerate().flat_map(|(i, (objects, _))| objects.iter().map(move |o| (i, o)));
                for (row, (i, o)) in top.chunks_exact_mut(ROW).zip(objects) {
                    row[..3].copy_from_slice(&[i as f32, o.class as f32, o.instance as f32]);
                    row[3..7].copy_from_slice(&o.corners);
                    row[7] = f32::from(u8::from(o.difficult));
                }
            } else {
                top.iter_mut().zip(&all).for_each(|(top, (_, label))| *top = *label as f32);
            }
        }
        Ok(image + self.rows as u64)
    }

    /// Writes a record's image as the net sees it; returns its objects, its label and what is amiss with it.
    fn image(&self, record: &Record<'_>, number: u64, out: &mut [f32]) -> Result<(Vec<Object>, i32, Option<Flaw>)> {
        let bad = |e: BadRecord| record.error(&self.path, e);
        let datum = annotated(record, &self.path)?;
        let (mut objects, image) = (objects(&datum.annotation_group), datum.datum.unwrap_or_default());
        let (label, p) = (image.label(), &self.transform);
        let (mut image, flaw) = raster(image, self.color).map_err(bad)?;
        if image.extent.channels != self.transformer.output().channels {
            // The steps before are for images of so many channels.
            self.transformer.check(image.extent).map_err(|e| record.error(&self.path, e))?;
        }
        let constraint = p.emit_constraint.as_ref();
        let mut random = self.draws.sequence("annotated", number);
        if let Some(p) = &p.distort_param {
            color::distort(&mut image, p, &mut random);
        }
        if let Some(p) = &p.expand_param {
            image = resize::expand(image, p, &self.fill, (&mut objects, constraint), &mut random)
                .map_err(|e| bad(e.into()))?;
        }
        if let Some(window) = sample::sample(&self.param.batch_sampler, &objects, &mut random) {
            let window = clip(window);
            image = resize::cut(&image, window).map_err(|e| bad(e.into()))?;
            see(&mut objects, window, constraint);
        }
        let before = image.extent;
        if let Some(p) = p.resize_param.first() {
            image = resize::resize(p, image, &mut objects, &mut random).map_err(|e| bad(e.into()))?;
        }
        if let Some(p) = p.noise_param.first() {
            image = noise::noise(image, p, &mut random).map_err(|e| bad(e.into()))?;
        }
        let (of, image) = (image.extent, image.planes().map_err(|e| bad(e.into()))?);
        self.transformer.check(of).map_err(|e| record.error(&self.path, e))?;
        let draw = self.draws.image(number);
        self.transformer.apply(&image, draw, out);
        let seen = self.transformer.window(of, draw);
        let along = |from: usize, len: usize, of: usize| [from as f32 / of as f32, (from + len) as f32 / of as f32];
        let ([x1, x2], [y1, y2]) = (along(seen.left, seen.width, of.width), along(seen.top, seen.height, of.height));
        let window = [x1, y1, x2, y2];
        see(&mut objects, window, constraint);
        if seen.mirror {
            objects
                .iter_mut()
                .for_each(|o| o.corners = [1.0 - o.corners[2], o.corners[1], 1.0 - o.corners[0], o.corners[3]]);
        }
        if let Some(scales) = p.resize_param.first().and_then(|p| in_window(p, before, window)) {
            objects.iter_mut().for_each(|o| o.corners = std::array::from_fn(|k| o.corners[k] * scales[k % 2]));
        }
        Ok((objects, label, flaw))
    }
}

/// With `FIT_SMALL_SIZE` and `width_scale` and `height_scale` boxes are in units of these: what a fraction of the window is of them.
fn in_window(p: &ResizeParameter, before: Extent, window: [f32; 4]) -> Option<[f32; 2]> {
    let units = [p.width_scale(), p.height_scale()];
    let wanted = p.resize_mode() == ResizeMode::FitSmallSize && !units.contains(&0);
    let after = resize::extent(p, before);
    let size = [after.width as f32 * (window[2] - window[0]), after.height as f32 * (window[3] - window[1])];
    wanted.then(|| std::array::from_fn(|k| size[k] / units[k] as f32))
}

/// Builds an AnnotatedData layer.
pub(crate) fn build(layer: &LayerParameter, cx: &BuildCx) -> Result<Node> {
    Ok(Node::Source(Box::new(AnnotatedData::new(layer, cx)?)))
}
