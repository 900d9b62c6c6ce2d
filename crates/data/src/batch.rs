//! A batch in host memory, on its way from a reading thread to the net.

use lgm_core::{Error, Float, Host, Result, Shape, State, ViewMut, memory, with_float};

/// The values of each top, and the position that follows the batch.
pub(crate) struct Batch<P> {
    pub tops: Vec<Vec<f32>>,
    pub next: P,
}

impl<P: Default> Batch<P> {
    /// So many batches of zeros for tops of the given shapes.
    pub fn several(count: usize, shapes: &[Shape]) -> Result<Vec<Self>> {
        // Beside the values, what a batch and its places in the queues take.
        let all = shapes.iter().fold(256, |sum: usize, s| s.count().saturating_mul(4).saturating_add(sum));
        memory::check(all.saturating_mul(count), format!("reading {count} batches ahead"))?;
        let top = |s: &Shape| memory::zeros(s.count(), "a batch read ahead");
        let batch = |_| Ok(Batch { tops: shapes.iter().map(top).collect::<Result<_>>()?, next: P::default() });
        (0..count).map(batch).collect()
    }
}

/// Copies a batch to the net's blobs.
pub(crate) fn copy_out(batch: &[Vec<f32>], tops: &mut [ViewMut<'_, Host>]) -> Result<()> {
    for (values, top) in batch.iter().zip(tops) {
        if values.len() != top.shape().count() {
            let text = format!("a batch of {} values does not fill a top of shape {}", values.len(), top.shape());
            return Err(Error::internal(text));
        }
        with_float!(top.dtype(), T => {
            top.slice_mut::<T>()?.iter_mut().zip(values).for_each(|(o, &v)| *o = T::of(f64::from(v)));
        });
    }
    Ok(())
}

/// A whole number of a saved state.
pub(crate) fn read_counter(state: &State, name: &str) -> Result<u64> {
    match state.get(name) {
        Some(&v) if v >= 0.0 && v.fract() == 0.0 => Ok(v as u64),
        Some(v) => Err(Error::config(format!("the saved data position '{name}' must be a whole number, found {v}"))),
        None => {
            Err(Error::config(format!("the saved data position lacks '{name}', as that of another type of layer does")))
        }
    }
}
