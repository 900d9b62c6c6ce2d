//! The memory and call depth that reading a pickle takes, estimated before it is read: the reader copies every value that is
//! referred to again and recurses into nested values, so that a few bytes could exhaust both.
//!
//! The opcodes are those of Python's `pickletools`; any other byte ends the estimate, as it ends the reading.
#![cfg_attr(not(test), warn(clippy::arithmetic_side_effects))]

use std::collections::HashMap;

/// Deepest nesting of values; CIFAR's go five deep.
const DEPTH: usize = 64;
/// Bytes that one value takes at least.
const VALUE: usize = 32;
/// Bytes that may be copied whatever the file's size, and for each of its bytes: every array in it is copied a few times.
const COPIED: (usize, usize) = (1 << 20, 16);
/// Bytes of the longest number: reading one takes the square of its length.
const NUMBER: usize = 64;

/// Fails for a pickle that takes far more to read than it holds. The error completes the sentence "the pickle …".
pub(super) fn check(pickle: &[u8]) -> Result<(), &'static str> {
    let mut estimate = Estimate { rest: pickle, len: pickle.len(), ..Estimate::default() };
    loop {
        match estimate.step() {
            Ok(()) => {}
            Err(Stop::Reader) => return Ok(()),
            Err(Stop::Refused(why)) => return Err(why),
        }
    }
}

enum Stop {
    /// The end, or what the reader itself refuses.
    Reader,
    Refused(&'static str),
}

/// A value: how deeply it is nested, the memory it takes, and whether values may still be added to it.
#[derive(Clone, Copy, Default)]
struct Item {
    depth: usize,
    size: usize,
    grows: bool,
}

#[derive(Default)]
struct Estimate<'a> {
    rest: &'a [u8],
    len: usize,
    stack: Vec<Item>,
    /// The stacks below the marks.
    below: Vec<Vec<Item>>,
    memo: HashMap<u64, Item>,
    copied: usize,
}

impl<'a> Estimate<'a> {
    fn step(&mut self) -> Result<(), Stop> {
        match self.take(1)?[0] {
            // Protocol, frame.
            0x80 => self.take(1).map(drop),
            0x95 => self.take(8).map(drop),
            b'(' => {
                let stack = std::mem::take(&mut self.stack);
                self.below.push(stack);
                Ok(())
            }
            b'0' if !self.stack.is_empty() => self.pop().map(drop),
            b'0' | b'1' => self.pop_mark().map(drop),
            b'2' => Err(Stop::Refused("copies a value on its stack, as Python never does")),
            // What has no parts, by the size of what follows: none, fixed, after its length, a line, two.
            b'N' | 0x88 | 0x89 => self.push_plain(0),
            b'K' => self.take(1).and_then(|_| self.push_plain(0)),
            b'M' => self.take(2).and_then(|_| self.push_plain(0)),
            b'J' => self.take(4).and_then(|_| self.push_plain(0)),
            b'G' => self.take(8).and_then(|_| self.push_plain(0)),
            b'U' | b'C' | 0x8c => self.prefixed(1).and_then(|n| self.push_plain(n)),
            b'T' | b'B' | b'X' => self.prefixed(4).and_then(|n| self.push_plain(n)),
            0x8d | 0x8e | 0x96 => self.prefixed(8).and_then(|n| self.push_plain(n)),
            0x8a => self.prefixed(1).and_then(|n| self.number(n)),
            0x8b => self.prefixed(4).and_then(|n| self.number(n)),
            b'I' | b'L' | b'F' => self.line().and_then(|line| self.number(line.len())),
            b'S' | b'V' => self.line().and_then(|line| self.push_plain(line.len())),
            b'c' => self.line().and_then(|_| self.line()).and_then(|_| self.push_plain(0)),
            0x93 => self.pop().and_then(|_| self.pop()).and_then(|_| self.push_plain(0)),
            // The memo.
            b'p' => self.line().and_then(|line| self.put(decimal(line)?)),
            b'q' => self.little(1).and_then(|id| self.put(id)),
            b'r' => self.little(4).and_then(|id| self.put(id)),
            0x94 => self.put(self.memo.len() as u64),
            b'g' => self.line().and_then(|line| self.get(decimal(line)?)),
            b'h' => self.little(1).and_then(|id| self.get(id)),
            b'j' => self.little(4).and_then(|id| self.get(id)),
            // Tuples, lists, dictionaries and sets.
            b')' => self.contain(&[], false),
            0x85 => self.last(1).and_then(|items| self.contain(&items, false)),
            0x86 => self.last(2).and_then(|items| self.contain(&items, false)),
            0x87 => self.last(3).and_then(|items| self.contain(&items, false)),
            b't' | 0x91 => self.pop_mark().and_then(|items| self.contain(&items, false)),
            b']' | b'}' | 0x8f => self.contain(&[], true),
            b'l' | b'd' => self.pop_mark().and_then(|items| self.contain(&items, true)),
            b'a' => self.last(1).and_then(|items| self.grow(&items)),
            b's' => self.last(2).and_then(|items| self.grow(&items)),
            b'e' | b'u' | 0x90 => self.pop_mark().and_then(|items| self.grow(&items)),
            // Objects: what a call makes of its arguments is no larger than they are.
            b'R' => {
                let (made, _callable) = (self.pop()?, self.pop()?);
                self.copy(made.size)?;
                self.push(Item { grows: false, ..made })
            }
            b'b' => {
                let (state, _object) = (self.pop()?, self.pop()?);
                self.push(Item { grows: false, ..state })
            }
            b'i' => {
                self.line().and_then(|_| self.line()).and_then(|_| self.pop_mark()).and_then(|_| self.push_plain(0))
            }
            b'o' => self.pop_mark().and_then(|_| self.pop()).and_then(|_| self.push_plain(0)),
            0x81 => self.last(2).and_then(|_| self.push_plain(0)),
            0x92 => self.last(3).and_then(|_| self.push_plain(0)),
            _ => Err(Stop::Reader),
        }
    }

    fn take(&mut self, len: usize) -> Result<&'a [u8], Stop> {
        let (taken, rest) = self.rest.split_at_checked(len).ok_or(Stop::Reader)?;
        self.rest = rest;
        Ok(taken)
    }

    fn line(&mut self) -> Result<&'a [u8], Stop> {
        let len = self.rest.iter().position(|byte| *byte == b'\n').ok_or(Stop::Reader)?;
        let line = self.take(len)?;
        self.take(1)?;
        Ok(line.strip_suffix(b"\r").unwrap_or(line))
    }

    fn little(&mut self, width: usize) -> Result<u64, Stop> {
        Ok(self.take(width)?.iter().rev().fold(0, |n, byte| n << 8 | u64::from(*byte)))
    }

    /// Moves over bytes that stand behind their number, which is given.
    fn prefixed(&mut self, width: usize) -> Result<usize, Stop> {
        let len = usize::try_from(self.little(width)?).map_err(|_| Stop::Reader)?;
        self.take(len).map(<[u8]>::len)
    }

    fn number(&mut self, len: usize) -> Result<(), Stop> {
        if len > NUMBER { Err(Stop::Refused("holds a number of more than 64 bytes")) } else { self.push_plain(0) }
    }

    fn push(&mut self, item: Item) -> Result<(), Stop> {
        if item.depth > DEPTH {
            return Err(Stop::Refused("holds more than 64 values inside each other"));
        }
        self.stack.push(item);
        Ok(())
    }

    fn push_plain(&mut self, bytes: usize) -> Result<(), Stop> {
        self.push(Item { depth: 0, size: bytes.saturating_add(VALUE), grows: false })
    }

    fn pop(&mut self) -> Result<Item, Stop> {
        self.stack.pop().ok_or(Stop::Reader)
    }

    fn last(&mut self, count: usize) -> Result<Vec<Item>, Stop> {
        (0..count).map(|_| self.pop()).collect()
    }

    fn pop_mark(&mut self) -> Result<Vec<Item>, Stop> {
        let below = self.below.pop().ok_or(Stop::Reader)?;
        Ok(std::mem::replace(&mut self.stack, below))
    }

    fn contain(&mut self, items: &[Item], grows: bool) -> Result<(), Stop> {
        let empty = Item { depth: 1, size: VALUE, grows };
        self.push(items.iter().fold(empty, holding))
    }

    fn grow(&mut self, items: &[Item]) -> Result<(), Stop> {
        let top = self.pop()?;
        if !top.grows {
            return Err(Stop::Refused("puts something into a value that is whole"));
        }
        self.push(items.iter().fold(top, holding))
    }

    /// A value that is kept already is copied.
    fn put(&mut self, id: u64) -> Result<(), Stop> {
        let top = *self.stack.last().ok_or(Stop::Reader)?;
        self.memo.insert(id, top);
        self.copy(top.size)
    }

    fn get(&mut self, id: u64) -> Result<(), Stop> {
        let item = *self.memo.get(&id).ok_or(Stop::Reader)?;
        // Its final size is not known yet.
        if item.grows {
            return Err(Stop::Refused("refers to a list or dictionary a second time"));
        }
        self.copy(item.size)?;
        self.push(item)
    }

    fn copy(&mut self, bytes: usize) -> Result<(), Stop> {
        self.copied = self.copied.saturating_add(bytes);
        if self.copied > self.len.saturating_mul(COPIED.1).saturating_add(COPIED.0) {
            return Err(Stop::Refused("refers to its values so often that it would take many times its size"));
        }
        Ok(())
    }
}

/// What is known of a container once it holds an item too.
fn holding(container: Item, item: &Item) -> Item {
    let (depth, size) = (container.depth.max(item.depth.saturating_add(1)), container.size.saturating_add(item.size));
    Item { depth, size, ..container }
}

fn decimal(line: &[u8]) -> Result<u64, Stop> {
    std::str::from_utf8(line).ok().and_then(|text| text.parse().ok()).ok_or(Stop::Reader)
}
