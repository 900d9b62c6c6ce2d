//! MemoryData: batches of images and labels that the program itself feeds, through [`MemoryFeed`].
//!
//! The arrays hold a whole number of batches, which are taken in turn, from the last one on to the first again. New arrays
//! begin with their first batch. They are taken as they are: as in Caffe, whose `Reset` does the same, `transform_param`
//! does not apply (a warning says so).
//!
//! | top | shape |
//! | --- | --- |
//! | first | `batch_size` × `channels` × `height` × `width` |
//! | second, optional | `batch_size`: the labels |
//!
//! Differences: Caffe keeps pointers into the caller's arrays; here they are handed over. The position is saved with a
//! snapshot. Without arrays the first batch is an error.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use lgm_core::{BuildCx, Error, Host, Node, Phase, Result, Shape, Source, State, Step, ViewMut, count, ensure};
use lgm_proto::LayerParameter;

use crate::batch::{copy_out, read_counter};
use crate::warnings::Warnings;

/// Arrays that were fed.
#[derive(Debug)]
struct Arrays {
    images: Vec<f32>,
    labels: Vec<f32>,
}

/// What the layers of one name and phase take.
static FED: Mutex<BTreeMap<(String, bool), Arc<Arrays>>> = Mutex::new(BTreeMap::new());

/// Feeds the MemoryData layers of one name and phase, in all nets of this process.
///
/// ```
/// use lgm_core::Phase;
/// use lgm_data::MemoryFeed;
///
/// // Two images of 1 x 2 x 2 pixels for a layer `data` of batch_size 2, and their labels.
/// MemoryFeed::of("data", Phase::Test).set(vec![0.0, 0.1, 0.2, 0.3, 1.0, 1.1, 1.2, 1.3], vec![7.0, 2.0]);
/// ```
#[derive(Clone, Debug)]
pub struct MemoryFeed {
    key: (String, bool),
}

impl MemoryFeed {
    /// The feed of the layers called `layer` in `phase`.
    pub fn of(layer: &str, phase: Phase) -> Self {
        MemoryFeed { key: (layer.into(), phase == Phase::Train) }
    }

    /// Gives the layers new arrays: images one after another, channels × height × width each, and a label for each. The
    /// layers check that they fit when they next make a batch, and begin with the first.
    pub fn set(&self, images: Vec<f32>, labels: Vec<f32>) {
        let arrays = Arc::new(Arrays { images, labels });
        FED.lock().unwrap_or_else(PoisonError::into_inner).insert(self.key.clone(), arrays);
    }

    /// Takes the arrays away.
    pub fn clear(&self) {
        FED.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.key);
    }

    fn get(&self) -> Option<Arc<Arrays>> {
        FED.lock().unwrap_or_else(PoisonError::into_inner).get(&self.key).cloned()
    }
}

/// The MemoryData source. See the module's documentation.
pub struct MemoryData {
    feed: MemoryFeed,
    batch: usize,
    /// Channels, height and width.
    extent: [usize; 3],
    /// The arrays in use, and the number of their next batch.
    arrays: Option<Arc<Arrays>>,
    next: u64,
    warnings: Warnings,
}

impl MemoryData {
    /// Builds the source of a layer.
    ///
    /// # Errors
    /// When an extent is missing.
    pub fn new(layer: &LayerParameter, cx: &BuildCx) -> Result<Self> {
        let param = layer.memory_data_param.unwrap_or_default();
        let fields = [
            ("batch_size", param.batch_size()),
            ("channels", param.channels()),
            ("height", param.height()),
            ("width", param.width()),
        ];
        for (field, value) in fields {
            ensure!(value > 0, "memory_data_param needs a positive {field}");
        }
        if layer.transform_param.is_some() {
            tracing::warn!("MemoryData '{}' takes arrays as they are fed: transform_param has no effect", layer.name());
        }
        let [batch, channels, height, width] = fields.map(|(_, value)| value as usize);
        let feed = MemoryFeed::of(layer.name(), cx.phase);
        let (extent, warnings) = ([channels, height, width], Warnings::of(layer));
        Ok(MemoryData { feed, batch, extent, arrays: None, next: 0, warnings })
    }

    /// Checks arrays and returns the number of their batches.
    fn batches(&self, arrays: &Arrays) -> Result<usize> {
        let (images, labels) = (arrays.images.len(), arrays.labels.len());
        let each = count(&self.extent);
        let [channels, height, width] = self.extent;
        ensure!(
            labels > 0 && labels.is_multiple_of(self.batch),
            "the arrays fed must hold a whole number of batches of {}, found {labels} labels",
            self.batch
        );
        ensure!(
            images == count(&[labels, each]),
            "the arrays fed hold {images} values for {labels} images of {channels} x {height} x {width} = {each} values"
        );
        Ok(labels / self.batch)
    }
}

impl Source for MemoryData {
    fn open(&mut self, tops: usize) -> Result<Vec<Shape>> {
        ensure!(
            (1..=2).contains(&tops),
            "MemoryData takes one top, the images, or two, images and labels; found {tops}"
        );
        let [channels, height, width] = self.extent;
        let mut shapes = vec![Shape::from([self.batch, channels, height, width])];
        shapes.extend((tops == 2).then(|| Shape::from([self.batch])));
        Ok(shapes)
    }

    fn load(&mut self, _step: &Step, tops: &mut [ViewMut<'_, Host>]) -> Result<()> {
        let fed = self.feed.get().ok_or_else(|| {
            Error::config(
                "no arrays were fed: MemoryData is for programs that feed it (lgm_data::MemoryFeed); to read files, use \
                 Data, ImageData or HDF5Data",
            )
        })?;
        if self.arrays.as_ref().is_some_and(|known| !Arc::ptr_eq(known, &fed)) {
            self.next = 0;
        }
        let batches = self.batches(&fed)? as u64;
        let at = self.next.checked_rem(batches).unwrap_or(0) as usize;
        let each = count(&self.extent) * self.batch;
        let images = fed.images[at * each..(at + 1) * each].to_vec();
        let labels = fed.labels[at * self.batch..(at + 1) * self.batch].to_vec();
        copy_out(&[images, labels], tops)?;
        self.next = at as u64 + 1;
        self.arrays = Some(fed);
        Ok(())
    }

    fn state(&self) -> State {
        State::from([("batch".to_string(), self.next as f64)])
    }

    fn restore(&mut self, state: &State) -> Result<()> {
        self.next = self.warnings.placed(read_counter(state, "batch"), 0);
        // What is fed next goes on from there.
        self.arrays = None;
        Ok(())
    }
}

/// Builds a MemoryData layer.
pub(crate) fn build(layer: &LayerParameter, cx: &BuildCx) -> Result<Node> {
    Ok(Node::Source(Box::new(MemoryData::new(layer, cx)?)))
}
