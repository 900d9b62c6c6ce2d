//! New databases of images of one size, under their numbers: what Caffe's converters of published datasets write.

#![cfg_attr(not(test), warn(clippy::arithmetic_side_effects))]

use std::path::Path;

use lgm_core::{Error, Result};
use prost::Message;

use super::{BLOCK, Progress};
use crate::datum::record;
use crate::db::{Backend, Writer};
use crate::pixels::Extent;

/// A new database, which has its name from [`Datums::finish`] on; dropped before, it leaves nothing behind.
pub(super) struct Datums {
    writer: Writer,
    extent: Extent,
    /// Digits of a key.
    digits: usize,
}

impl Datums {
    /// Makes a database in a folder that does not exist.
    ///
    /// # Errors
    /// When there is something under that name, or it cannot be made.
    pub fn create(out: &Path, backend: Backend, extent: Extent, digits: usize) -> Result<Self> {
        Ok(Datums { writer: Writer::create(out, backend)?, extent, digits })
    }

    /// Stores all images, 8-bit planes one after another, with their labels.
    ///
    /// # Errors
    /// When a label is too large for a `Datum`, or the database cannot be written.
    pub fn fill(
        &mut self,
        images: impl ExactSizeIterator<Item = (Vec<u8>, usize)>,
        progress: Progress<'_>,
    ) -> Result<()> {
        let (count, digits) = (images.len(), self.digits);
        for (i, (planes, label)) in images.enumerate() {
            let label = i32::try_from(label)
                .map_err(|_| Error::config(format!("image {i} has the label {label}, more than a Datum can hold")))?;
            let datum = record(self.extent, planes, Some(label))?;
            self.writer.put(format!("{i:0digits$}").as_bytes(), datum.encode_to_vec())?;
            let done = i.saturating_add(1);
            if done % BLOCK == 0 || done == count {
                progress(done, count);
            }
        }
        self.writer.commit()
    }

    /// Gives the database its name.
    ///
    /// # Errors
    /// When it cannot be written, or something has that name by now.
    pub fn finish(self) -> Result<()> {
        self.writer.finish()
    }
}
