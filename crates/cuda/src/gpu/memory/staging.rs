//! Copies between ordinary host memory and the device, by way of a ring of pinned pieces: the caller's memory is free
//! at once, and the device copies at full speed while the host fills the next piece.

use std::collections::VecDeque;
use std::sync::Arc;

use lgm_core::{DevicePtr, Result};

use crate::gpu::context::{Context, Stream, driver};
use crate::gpu::event::Event;
use crate::gpu::memory::pinned::PinnedBuffer;

/// Bytes of a piece: long enough that the bus is the limit, short enough that the first piece is soon under way.
const PIECE: usize = 1 << 20;
/// Pieces of the ring; so many small uploads can be under way before the host waits for the oldest.
const PIECES: usize = 16;
/// Pieces of a download under way at a time.
const AHEAD: usize = 4;

struct Slot {
    host: PinnedBuffer,
    /// The last copy that used the slot.
    done: Event,
}

pub(crate) struct Staging {
    context: Arc<Context>,
    slots: Vec<Slot>,
    next: usize,
}

impl Staging {
    pub(crate) fn new(context: &Arc<Context>) -> Result<Staging> {
        let slot = |_| Ok(Slot { host: PinnedBuffer::new(context, PIECE)?, done: Event::new(context, false)? });
        Ok(Staging { context: context.clone(), slots: (0..PIECES).map(slot).collect::<Result<_>>()?, next: 0 })
    }

    /// The next slot of the ring, once the copy that used it last is done.
    fn acquire(&mut self) -> Result<usize> {
        let slot = self.next;
        self.next = (slot + 1) % self.slots.len();
        self.slots[slot].done.wait()?;
        Ok(slot)
    }

    pub(crate) fn upload(&mut self, from: &[u8], to: DevicePtr) -> Result<()> {
        let stream = self.context.stream(Stream::Compute);
        for (offset, piece) in pieces(from.len()) {
            let slot = self.acquire()?;
            let Slot { host, done } = &mut self.slots[slot];
            host.bytes_mut()[..piece].copy_from_slice(&from[offset..offset + piece]);
            let at = host.bytes().as_ptr().cast();
            driver!(self.context, cuMemcpyHtoDAsync_v2(to.offset(offset).0, at, piece, stream))?;
            done.record(Stream::Compute)?;
        }
        Ok(())
    }

    pub(crate) fn download(&mut self, from: DevicePtr, to: &mut [u8]) -> Result<()> {
        let stream = self.context.stream(Stream::Compute);
        let mut under_way: VecDeque<(usize, usize, usize)> = VecDeque::new();
        for (offset, piece) in pieces(to.len()) {
            if under_way.len() == AHEAD {
                self.collect(under_way.pop_front(), to)?;
            }
            let slot = self.acquire()?;
            let Slot { host, done } = &mut self.slots[slot];
            let at = host.bytes_mut().as_mut_ptr().cast();
            driver!(self.context, cuMemcpyDtoHAsync_v2(at, from.offset(offset).0, piece, stream))?;
            done.record(Stream::Compute)?;
            under_way.push_back((slot, offset, piece));
        }
        while !under_way.is_empty() {
            self.collect(under_way.pop_front(), to)?;
        }
        Ok(())
    }

    fn collect(&self, piece: Option<(usize, usize, usize)>, to: &mut [u8]) -> Result<()> {
        let Some((slot, offset, piece)) = piece else { return Ok(()) };
        self.slots[slot].done.wait()?;
        to[offset..offset + piece].copy_from_slice(&self.slots[slot].host.bytes()[..piece]);
        Ok(())
    }
}

/// The pieces of a copy: offset and length in bytes.
fn pieces(bytes: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..bytes).step_by(PIECE).map(move |offset| (offset, PIECE.min(bytes - offset)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_cover_a_copy_once() {
        for bytes in [0, 1, 4, PIECE - 1, PIECE, PIECE + 1, 3 * PIECE, 5 * PIECE + 12] {
            let mut end = 0;
            for (offset, piece) in pieces(bytes) {
                assert_eq!(offset, end);
                assert!((1..=PIECE).contains(&piece));
                end += piece;
            }
            assert_eq!(end, bytes);
        }
        // A slot is collected before the ring comes round to it again.
        const { assert!(AHEAD < PIECES) };
    }
}
