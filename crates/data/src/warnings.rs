//! Warnings of what is used all the same though something is amiss with it: one for all that are alike, by the first.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use lgm_core::{Error, Result};
use lgm_proto::LayerParameter;
use tracing::warn;

use crate::pixels::Extent;

/// What is amiss with an image or a record that Caffe uses all the same; completes the sentence "the record …".
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Flaw {
    #[error("is a JPEG that is cut short: what is missing of it is gray")]
    CutShort,
    #[error("has {extent} = {} pixels but {found} values: those behind the pixels are left out", extent.count())]
    Surplus { extent: Extent, found: usize },
}

/// What a layer warns of.
#[derive(Debug)]
pub(crate) struct Warnings {
    /// The layer, by its type and name.
    layer: String,
    /// Which kinds of flaws were told.
    cut_short: AtomicBool,
    surplus: AtomicBool,
}

impl Warnings {
    /// Those of a layer.
    pub fn of(layer: &LayerParameter) -> Self {
        let layer = format!("{} '{}'", layer.r#type(), layer.name());
        Warnings { layer, cut_short: AtomicBool::new(false), surplus: AtomicBool::new(false) }
    }

    /// Warns of the first flaw of each kind; `whose` says what has it.
    pub fn flaw(&self, flaw: Option<Flaw>, whose: impl FnOnce(Flaw) -> Error) {
        let Some(flaw) = flaw else { return };
        let told = match flaw {
            Flaw::CutShort => &self.cut_short,
            Flaw::Surplus { .. } => &self.surplus,
        };
        if !told.swap(true, Ordering::Relaxed) {
            warn!("{}: {} (others like it are not told)", self.layer, whose(flaw));
        }
    }

    /// The place that a snapshot kept, or `start`, with a warning, where the data have no such place: Caffe's snapshots keep
    /// none, and it begins at the start whenever it resumes.
    pub fn placed<P>(&self, saved: Result<P>, start: P) -> P {
        saved.unwrap_or_else(|e| {
            warn!("{}: {e}; its data begin at the first record, as they do whenever Caffe resumes", self.layer);
            start
        })
    }
}

/// Like things that a tool meets, told in one warning when it has ended: the first, and how many there are.
#[derive(Debug, Default)]
pub(crate) struct Alike(Mutex<(Option<String>, usize)>);

impl Alike {
    /// Counts one more; `what` describes it.
    pub fn add(&self, what: impl FnOnce() -> String) {
        let mut met = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        met.0.get_or_insert_with(what);
        met.1 = met.1.saturating_add(1);
    }
}

impl Drop for Alike {
    fn drop(&mut self) {
        let (first, count) = self.0.get_mut().unwrap_or_else(PoisonError::into_inner);
        match (first, count.saturating_sub(1)) {
            (None, _) => {}
            (Some(first), 0) => warn!("{first}"),
            (Some(first), others) => warn!("{first} ({others} more like it)"),
        }
    }
}
