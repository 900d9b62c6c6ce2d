//! Files of records in blocks of 32 KiB: the manifest, and the logs with what is in no table yet.
//!
//! A record is one fragment or several, each with a checksum, its length and its kind. All but a record's last fragment
//! reach to the end of their block. Where a writer was killed, a record's last part may be missing at the end of the file.

use std::fs::File;
use std::os::unix::fs::FileExt;

use lgm_core::{Error, Result, memory};

use super::Place;
use super::bytes::{Input, matches};

/// Bytes of a block.
const BLOCK: u64 = 32 << 10;
/// Bytes before a fragment's content.
const HEADER: usize = 7;
/// Kinds of fragments: a whole record, the first, one in the middle, the last.
const FULL: u8 = 1;
const FIRST: u8 = 2;
const MIDDLE: u8 = 3;
const LAST: u8 = 4;

/// A file of records, read from its start to its end.
pub(super) struct Log<'a> {
    place: &'a Place,
    name: &'a str,
    file: File,
    /// The block that is being read, where it starts in the file, and how much of it was taken.
    block: Vec<u8>,
    start: u64,
    at: usize,
    /// Bytes of the file.
    len: u64,
    /// The last record.
    record: Vec<u8>,
    /// Where its fragments lie: the place in the record, and in the file.
    pieces: Vec<(usize, u64)>,
    /// The file ended within a record.
    is_cut: bool,
}

impl<'a> Log<'a> {
    pub fn open(place: &'a Place, name: &'a str) -> Result<Self> {
        let (file, len) = place.file(name)?;
        let (block, record, pieces) = (Vec::new(), Vec::new(), Vec::new());
        Ok(Log { place, name, file, block, start: 0, at: 0, len, record, pieces, is_cut: false })
    }

    /// The file, to read parts of records by [`read_part`].
    pub fn into_file(self) -> File {
        self.file
    }

    /// Reads the next record; false at the end of the file. An error where that is within a record: then [`Log::is_cut`].
    pub fn next(&mut self) -> Result<bool> {
        self.record.clear();
        self.pieces.clear();
        let mut begun = false;
        loop {
            let Some((kind, len)) = self.fragment()? else {
                return if begun { Err(self.cut()) } else { Ok(false) };
            };
            let from = self.at;
            self.at = self.at.saturating_add(len);
            match kind {
                // Early writers left an empty first fragment at the end of a block and began anew.
                FULL | FIRST if !begun || self.record.is_empty() => self.pieces.clear(),
                MIDDLE | LAST if begun => {}
                _ => return Err(self.damaged("has a fragment out of place")),
            }
            begun = true;
            if matches!(kind, FIRST | MIDDLE) && self.at as u64 != BLOCK {
                return Err(self.damaged("has a fragment that ends within its block"));
            }
            self.pieces.push((self.record.len(), self.start.saturating_add(from as u64)));
            let content = self.block.get(from..self.at).unwrap_or_default();
            if content.len() > self.record.capacity().saturating_sub(self.record.len()) {
                let what = || format!("{}: a record of {}", self.place, self.name);
                memory::reserve(
                    &mut self.record,
                    content.len().max(self.pieces.len().saturating_mul(BLOCK as usize)),
                    what(),
                )?;
            }
            self.record.extend_from_slice(content);
            if matches!(kind, FULL | LAST) {
                return Ok(true);
            }
        }
    }

    /// Whether the file has ended within a record.
    pub fn is_cut(&self) -> bool {
        self.is_cut
    }

    /// The last record.
    pub fn record(&self) -> &[u8] {
        &self.record
    }

    /// Where in the file a byte of the last record lies, or what follows it.
    pub fn locate(&self, at: usize) -> u64 {
        let behind = self.pieces.partition_point(|&(start, _)| start <= at);
        let piece = behind.checked_sub(1).and_then(|i| self.pieces.get(i));
        piece.map_or(0, |&(start, place)| place.saturating_add(at.saturating_sub(start) as u64))
    }

    /// The error of a record that cannot be right: "NAME …".
    pub fn damaged(&self, what: &str) -> Error {
        let at = self.start.saturating_add(self.at as u64);
        self.place.damaged(self.name, &format!("{what}, before byte {at} of {}", self.len))
    }

    fn cut(&mut self) -> Error {
        self.is_cut = true;
        self.place.cut(self.name, &format!("ends after {} bytes, within a record", self.len))
    }

    /// Moves to the content of the next fragment; its kind and length. None at the end of the file.
    fn fragment(&mut self) -> Result<Option<(u8, usize)>> {
        loop {
            let rest = self.block.get(self.at..).unwrap_or_default();
            let mut input = Input(rest);
            let Some((sum, len, kind)) =
                input.u32().and_then(|sum| Some((sum, usize::from(input.u16()?), input.u8()?)))
            else {
                // A block's last bytes that hold no header are padding.
                let whole = self.block.len() as u64 == BLOCK;
                if !whole && !rest.is_empty() {
                    return Err(self.cut());
                }
                if self.next_block()? { continue } else { return Ok(None) }
            };
            if (sum, len, kind) == (0, 0, 0) {
                // Room that a writer had reserved.
                self.at = self.block.len();
                continue;
            }
            let Some(content) = input.bytes(len) else {
                let whole = self.block.len() as u64 == BLOCK;
                return Err(if whole {
                    self.damaged("has a fragment that is longer than its block")
                } else {
                    self.cut()
                });
            };
            if !matches(sum, &[kind], content) {
                return Err(self.damaged("has a fragment that does not match its checksum"));
            }
            self.at = self.at.saturating_add(HEADER);
            return Ok(Some((kind, len)));
        }
    }

    fn next_block(&mut self) -> Result<bool> {
        let start = self.start.saturating_add(self.block.len() as u64);
        let len = self.len.saturating_sub(start).min(BLOCK) as usize;
        if len == 0 {
            return Ok(false);
        }
        (self.start, self.at) = (start, 0);
        self.block.resize(len, 0);
        self.place.read(self.name, &self.file, &mut self.block, start)?;
        Ok(true)
    }
}

/// Appends `len` bytes of a record, from byte `at` of the file on, to a buffer that has room for them.
pub(super) fn read_part(file: &File, mut at: u64, mut len: usize, to: &mut Vec<u8>) -> std::io::Result<()> {
    while len > 0 {
        let left = BLOCK.saturating_sub(at.checked_rem(BLOCK).unwrap_or(0));
        let part = usize::try_from(left).unwrap_or(usize::MAX).min(len);
        let start = to.len();
        to.resize(start.saturating_add(part), 0);
        file.read_exact_at(to.get_mut(start..).unwrap_or_default(), at)?;
        len = len.saturating_sub(part);
        at = at.saturating_add(part as u64).saturating_add(HEADER as u64);
    }
    Ok(())
}
