//! ImageData: batches of images from files that a list names, and their labels.
//!
//! Each line of `source` is a file name, which may have spaces, a space and a label, a whole number; `root_folder` is put
//! before every name as it is. Files are told apart by their content and read as OpenCV reads them (see
//! `image`): to blue, green, red planes, or with `is_color: false` to gray. With `new_height` and `new_width` every image
//! is brought to that size (bilinearly, as OpenCV does); then `transform_param` applies (see `transform`), whose
//! `force_color` and `force_gray` have no effect, as in Caffe (a warning says so).
//!
//! Images are taken in the list's order, from the last one on to the first again; with `shuffle` each epoch has an order of
//! its own. With `rand_skip` n, the first image is one of the first n, at random. The `prefetch` batches of `data_param`
//! (4) are kept ready; threads share the decoding of each. Batches depend on the seed alone, not on the threads.
//!
//! | top | shape |
//! | --- | --- |
//! | first | `batch_size` × channels × height × width, of the first image or `crop_size` |
//! | second, optional | `batch_size`: the labels |
//!
//! Differences: Caffe takes the shape from the first image of each batch; here all must fit the first of all. Caffe passes
//! over an image that cannot be read and leaves the batch as it was; here it is an error with list, line and file, and so
//! is a line without a label (Caffe takes 0). The first JPEG that was cut short is warned of. Caffe starts over after a
//! resume; here the position and the epoch's order are saved, and a run starts over, with a warning, where the list has no
//! such position.

use std::sync::Arc;

use lgm_core::{BuildCx, Error, Host, Node, Phase, Result, Shape, Source, State, Step, ViewMut, ensure};
use lgm_proto::{ImageDataParameter, LayerParameter, TransformationParameter, strings};

use crate::ahead::Ahead;
use crate::batch::{Batch, read_counter};
use crate::image::Color;
use crate::image_list::ImageList;
use crate::order::Draws;
use crate::parallel::{in_parallel, threads_for};
use crate::prefetch::Prefetch;
use crate::transform::{Transformer, ignore_forced_color};
use crate::warnings::Warnings;

/// Where a run stands: the epoch, and how many of its images were taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Cursor {
    epoch: u64,
    taken: u64,
}

impl Cursor {
    fn restored(state: &State) -> Result<Self> {
        Ok(Cursor { epoch: read_counter(state, "epoch")?, taken: read_counter(state, "taken")? })
    }
}

/// The ImageData source. See the module's documentation.
pub struct ImageData {
    param: ImageDataParameter,
    transform: TransformationParameter,
    color: Color,
    size: Option<(usize, usize)>,
    prefetch: usize,
    phase: Phase,
    draws: Draws,
    opened: Option<Opened>,
    /// A place to go on from, given before the list was opened.
    restored: Option<Cursor>,
    warnings: Arc<Warnings>,
}

struct Opened {
    images: Images,
    start: Cursor,
    shapes: Vec<Shape>,
    ahead: Ahead<Cursor>,
}

/// What batches are made of.
#[derive(Clone)]
struct Images {
    list: Arc<ImageList>,
    transformer: Arc<Transformer>,
    order: Order,
    color: Color,
    size: Option<(usize, usize)>,
    rows: usize,
    warnings: Arc<Warnings>,
}

/// The order of an epoch's images.
#[derive(Clone)]
struct Order {
    draws: Draws,
    shuffle: bool,
    /// That of the epoch asked for last.
    known: Option<(u64, Arc<Vec<u32>>)>,
}

impl Order {
    /// The index in the list of an image that is number `at.taken` of its epoch.
    fn index(&mut self, at: Cursor, images: usize) -> usize {
        if !self.shuffle {
            return at.taken as usize;
        }
        let known = self.known.take().filter(|(epoch, _)| *epoch == at.epoch);
        let (_, order) = self.known.insert(
            known.unwrap_or_else(|| (at.epoch, Arc::new(self.draws.permutation("files", &[at.epoch], images)))),
        );
        order.get(at.taken as usize).map_or(0, |&i| i as usize)
    }
}

impl ImageData {
    /// Builds the source of a layer.
    ///
    /// # Errors
    /// When the layer's parameters are missing or contradictory.
    pub fn new(layer: &LayerParameter, cx: &BuildCx) -> Result<Self> {
        let param = layer.image_data_param.clone().unwrap_or_default();
        ensure!(
            !param.source().is_empty(),
            "image_data_param needs a source: a text file that lists images and labels"
        );
        ensure!(param.batch_size() > 0, "image_data_param needs a positive batch_size");
        let (height, width) = (param.new_height() as usize, param.new_width() as usize);
        ensure!(
            (height == 0) == (width == 0),
            "image_data_param needs new_height and new_width both or neither, found {height} and {width}"
        );
        let transform = layer.transform_param.clone().unwrap_or_default();
        ignore_forced_color(&transform, layer, "is_color of image_data_param asks for colour or gray");
        Ok(ImageData {
            transform,
            color: if param.is_color() { Color::Force } else { Color::Gray },
            size: (height > 0).then_some((height, width)),
            prefetch: layer.data_param.clone().unwrap_or_default().prefetch().max(1) as usize,
            phase: cx.phase,
            draws: Draws::new(cx.seed, layer.name(), cx.phase),
            opened: None,
            restored: None,
            warnings: Arc::new(Warnings::of(layer)),
            param,
        })
    }
}

impl Source for ImageData {
    fn open(&mut self, tops: usize) -> Result<Vec<Shape>> {
        ensure!(
            (1..=2).contains(&tops),
            "ImageData takes one top, the images, or two, images and labels; found {tops}"
        );
        let source = strings::to_path(self.param.source());
        let list = ImageList::read(&source, self.param.root_folder())?;
        tracing::info!("A total of {} images.", list.len());
        let skip = self.draws.once("rand_skip", self.param.rand_skip() as usize) as u64;
        let start = Cursor { epoch: 0, taken: skip.checked_rem(list.len() as u64).unwrap_or(0) };
        let at = self.restored.map_or(start, |at| self.warnings.placed(check(at, &list), start));
        let mut order = Order { draws: self.draws.clone(), shuffle: self.param.shuffle(), known: None };
        let first = order.index(at, list.len());
        let extent = list.decode(first, self.color, self.size)?.0.extent;
        let transformer = Transformer::new(&self.transform, self.phase, extent)?;
        transformer.check(extent).map_err(|e| misfit(&list, first, e))?;
        let (rows, out) = (self.param.batch_size() as usize, transformer.output());
        let mut shapes = vec![Shape::from([rows, out.channels, out.height, out.width])];
        shapes.extend((tops == 2).then(|| Shape::from([rows])));
        let images = Images {
            list: Arc::new(list),
            transformer: Arc::new(transformer),
            order,
            color: self.color,
            size: self.size,
            rows,
            warnings: self.warnings.clone(),
        };
        self.opened = Some(Opened { images, start, shapes: shapes.clone(), ahead: Ahead::from(at) });
        Ok(shapes)
    }

    fn load(&mut self, _step: &Step, tops: &mut [ViewMut<'_, Host>]) -> Result<()> {
        let opened = self.opened.as_mut().ok_or_else(|| Error::internal("ImageData was used before it was opened"))?;
        let (images, shapes, prefetch) = (&opened.images, &opened.shapes, self.prefetch);
        opened.ahead.next(tops, |from| {
            let (mut images, mut at) = (images.clone(), from);
            let fill = move |batch: &mut Batch<Cursor>| images.fill(&mut at, batch);
            Prefetch::spawn("ImageData batches", Batch::several(prefetch, shapes)?, fill)
        })
    }

    fn state(&self) -> State {
        let at = self.opened.as_ref().map(|opened| opened.ahead.place()).or(self.restored).unwrap_or_default();
        [("epoch", at.epoch), ("taken", at.taken)].into_iter().map(|(k, v)| (k.to_string(), v as f64)).collect()
    }

    fn restore(&mut self, state: &State) -> Result<()> {
        let saved = Cursor::restored(state);
        self.restored = match &mut self.opened {
            Some(Opened { images, start, ahead, .. }) => {
                let at = self.warnings.placed(saved.and_then(|at| check(at, &images.list)), *start);
                *ahead = Ahead::from(at);
                Some(at)
            }
            None => self.warnings.placed(saved.map(Some), None),
        };
        Ok(())
    }
}

/// A saved place, which must be one of the list.
fn check(at: Cursor, list: &ImageList) -> Result<Cursor> {
    if at.taken < list.len() as u64 {
        return Ok(at);
    }
    let what = format!("the saved position is image {} of an epoch, but the list has {}", at.taken, list.len());
    Err(Error::data(list.path(), what))
}

fn misfit(list: &ImageList, index: usize, what: impl std::fmt::Display) -> Error {
    list.error(index, format!("{} {what}", list.file(index).display()))
}

impl Images {
    /// Makes the batch at `at` and moves on.
    fn fill(&mut self, at: &mut Cursor, batch: &mut Batch<Cursor>) -> Result<()> {
        let images = self.list.len() as u64;
        let picked: Vec<(usize, u64)> = (0..self.rows)
            .map(|_| {
                let index = self.order.index(*at, self.list.len());
                let image = at.epoch.saturating_mul(images).saturating_add(at.taken);
                at.taken = at.taken.saturating_add(1);
                if at.taken >= images {
                    *at = Cursor { epoch: at.epoch.saturating_add(1), taken: 0 };
                }
                (index, image)
            })
            .collect();
        let (first, rest) =
            batch.tops.split_first_mut().ok_or_else(|| Error::internal("an ImageData layer without tops"))?;
        let (list, transformer, draws) = (&self.list, &self.transformer, &self.order.draws);
        let flaws = in_parallel(first, transformer.output().count(), threads_for(self.rows), |i, out| {
            let (index, image) = picked[i];
            let (decoded, flaw) = list.decode(index, self.color, self.size)?;
            transformer.check(decoded.extent).map_err(|e| misfit(list, index, e))?;
            let decoded = decoded.planes().map_err(|e| misfit(list, index, e))?;
            transformer.apply(&decoded, draws.image(image), out);
            Ok(flaw)
        })?;
        for (flaw, (index, _)) in flaws.into_iter().zip(&picked) {
            self.warnings.flaw(flaw, |flaw| misfit(list, *index, flaw));
        }
        if let Some(labels) = rest.first_mut() {
            labels.iter_mut().zip(&picked).for_each(|(label, (index, _))| *label = self.list.label(*index) as f32);
        }
        batch.next = *at;
        Ok(())
    }
}

/// Builds an ImageData layer.
pub(crate) fn build(layer: &LayerParameter, cx: &BuildCx) -> Result<Node> {
    Ok(Node::Source(Box::new(ImageData::new(layer, cx)?)))
}
