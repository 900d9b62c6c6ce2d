//! A source's batches read ahead, and the place they were read from.

use lgm_core::{Host, Result, ViewMut};

use crate::batch::{Batch, copy_out};
use crate::prefetch::Prefetch;

/// Batches that a thread reads from a place on, and the place behind the last one that was used.
pub(crate) struct Ahead<P> {
    place: P,
    reading: Option<Prefetch<Batch<P>>>,
}

impl<P: Copy + Send + 'static> Ahead<P> {
    /// Batches from a place on. Nothing is read before the first is asked for, so that a net can be built, and restored,
    /// without that.
    pub fn from(place: P) -> Self {
        Ahead { place, reading: None }
    }

    /// Where the next batch lies.
    pub fn place(&self) -> P {
        self.place
    }

    /// Fills the tops with the next batch; `start` starts the reading from a place.
    ///
    /// # Errors
    /// That of the reading.
    pub fn next(
        &mut self,
        tops: &mut [ViewMut<'_, Host>],
        start: impl FnOnce(P) -> Result<Prefetch<Batch<P>>>,
    ) -> Result<()> {
        let reading = match &mut self.reading {
            Some(reading) => reading,
            none => none.insert(start(self.place)?),
        };
        let batch = reading.receive()?;
        copy_out(&batch.tops, tops)?;
        self.place = batch.next;
        reading.recycle(batch);
        Ok(())
    }
}
