//! Batches copied to the device while it computes on the one before.

use std::sync::Arc;

use lgm_core::{DevicePtr, Error, Result};

use crate::gpu::context::{Context, Stream, driver};
use crate::gpu::event::Event;
use crate::gpu::memory::pinned::PinnedBuffer;

/// A ring of batches between the host and a net's inputs: each slot has pinned host memory, where a batch is decoded,
/// and device memory, into which the copy stream brings it while the compute stream is busy with another.
///
/// For a slot: fill [`Feed::host`], [`Feed::send`] it, and when its turn has come [`Feed::deliver`] it to the inputs, a
/// short copy within the device, so that a recorded graph can always read the same addresses. None of these waits for
/// the computation but `host`, for the slot's batch before the one being filled.
pub struct Feed {
    context: Arc<Context>,
    slots: Vec<Slot>,
    bytes: usize,
}

struct Slot {
    host: PinnedBuffer,
    device: DevicePtr,
    /// The batch has left the host memory.
    sent: Event,
    /// The batch has left the device memory.
    delivered: Event,
}

impl Feed {
    pub(crate) fn new(context: &Arc<Context>, bytes: usize, slots: usize) -> Result<Feed> {
        let mut feed = Feed { context: context.clone(), slots: Vec::new(), bytes };
        for _ in 0..slots {
            feed.slots.push(Slot {
                host: PinnedBuffer::new(context, bytes)?,
                sent: Event::new(context, false)?,
                delivered: Event::new(context, false)?,
                device: context.alloc(bytes)?,
            });
        }
        Ok(feed)
    }

    fn slot(&mut self, slot: usize) -> Result<&mut Slot> {
        let slots = self.slots.len();
        self.slots.get_mut(slot).ok_or_else(|| Error::internal(format!("slot {slot} of a feed of {slots}")))
    }

    /// The host memory of a slot, once what it held before has been sent.
    ///
    /// # Errors
    /// When there is no such slot or the device failed.
    pub fn host(&mut self, slot: usize) -> Result<&mut PinnedBuffer> {
        let slot = self.slot(slot)?;
        slot.sent.wait()?;
        Ok(&mut slot.host)
    }

    /// Puts the copy of a slot's first `bytes` bytes on the copy stream, after the slot's last delivery.
    ///
    /// # Errors
    /// When there is no such slot, it is shorter, or the device failed.
    pub fn send(&mut self, slot: usize, bytes: usize) -> Result<()> {
        check_range(0, bytes, self.bytes)?;
        let context = self.context.clone();
        let slot = self.slot(slot)?;
        slot.delivered.hold(Stream::Copy)?;
        let at = slot.host.bytes().as_ptr().cast();
        if bytes > 0 {
            driver!(context, cuMemcpyHtoDAsync_v2(slot.device.0, at, bytes, context.stream(Stream::Copy)))?;
        }
        slot.sent.record(Stream::Copy)
    }

    /// Puts the copies of parts of a slot, each from an offset to an address and so many bytes long, on the compute
    /// stream, after the slot's sending.
    ///
    /// # Errors
    /// When there is no such slot or part, or the device failed.
    pub fn deliver(&mut self, slot: usize, parts: &[(usize, DevicePtr, usize)]) -> Result<()> {
        parts.iter().try_for_each(|&(offset, _, bytes)| check_range(offset, bytes, self.bytes))?;
        let context = self.context.clone();
        let slot = self.slot(slot)?;
        slot.sent.hold(Stream::Compute)?;
        for &(offset, to, bytes) in parts {
            context.copy(slot.device.offset(offset), to, bytes)?;
        }
        slot.delivered.record(Stream::Compute)
    }
}

impl Drop for Feed {
    fn drop(&mut self) {
        for slot in &self.slots {
            let _ = self.context.free(slot.device);
        }
    }
}

fn check_range(offset: usize, bytes: usize, room: usize) -> Result<()> {
    match offset.checked_add(bytes) {
        Some(end) if end <= room => Ok(()),
        _ => Err(Error::internal(format!("{bytes} bytes from {offset} of a feed's slot of {room} bytes"))),
    }
}

#[cfg(test)]
mod tests {
    use super::check_range;

    #[test]
    fn parts_lie_within_the_slot() {
        assert!(check_range(0, 16, 16).is_ok() && check_range(16, 0, 16).is_ok());
        assert!(check_range(1, 16, 16).is_err() && check_range(usize::MAX, 2, 16).is_err());
    }
}
