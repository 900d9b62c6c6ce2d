//! Tables: blocks of entries in the order of their keys, an index of the blocks, and a footer that says where that is.

use std::fs::File;
use std::ops::Range;

use lgm_core::{Error, Result, memory};

use super::bytes::{Input, matches};
use super::manifest::TableFile;
use super::{DELETION, Place, VALUE};
use crate::db::Location;

/// Bytes of the footer, and the last eight of them.
const FOOTER: usize = 48;
const MAGIC: u64 = 0xdb47_7524_8b80_fb57;
/// Bytes behind a block: how it is compressed, and its checksum.
const TRAILER: usize = 5;
/// Ways of compression.
const PLAIN: u8 = 0;
const SNAPPY: u8 = 1;
/// What a byte can unpack to at the most: Snappy copies 64 by three.
const MOST_UNPACKED: usize = 22;

/// Where a block lies in its file.
#[derive(Clone, Copy)]
struct Span {
    at: u64,
    len: usize,
}

impl Span {
    fn parse(input: &mut Input) -> Option<Span> {
        Some(Span { at: input.varint()?, len: input.length()? })
    }
}

/// A block, and an entry of it.
#[derive(Default)]
struct Block {
    bytes: Vec<u8>,
    /// Where the entries end, and where the next one begins.
    end: usize,
    next: usize,
    key: Vec<u8>,
    value: Range<usize>,
}

impl Block {
    /// Starts before the first entry of the bytes; false if they are no block.
    fn restart(&mut self) -> bool {
        (self.next, self.value) = (0, 0..0);
        self.key.clear();
        // Behind the entries, where keys are whole, and how many such places there are.
        let counted = self.bytes.last_chunk().map(|count| u32::from_le_bytes(*count) as usize);
        let places = counted.map(|count| count.saturating_add(1).saturating_mul(4));
        match places.and_then(|places| self.bytes.len().checked_sub(places)) {
            Some(end) => self.end = end,
            None => return false,
        }
        true
    }

    /// Moves to the next entry, false behind the last; none if there is no sound one.
    fn advance(&mut self) -> Option<bool> {
        if self.next >= self.end {
            return Some(false);
        }
        let mut input = Input(self.bytes.get(self.next..self.end)?);
        let (shared, own, len) = (input.length()?, input.length()?, input.length()?);
        let key = input.bytes(own)?;
        input.bytes(len)?;
        if shared > self.key.len() {
            return None;
        }
        self.key.truncate(shared);
        self.key.extend_from_slice(key);
        let end = self.end.saturating_sub(input.0.len());
        self.value = end.saturating_sub(len)..end;
        self.next = end;
        Some(true)
    }

    fn value(&self) -> &[u8] {
        self.bytes.get(self.value.clone()).unwrap_or_default()
    }
}

/// A table's file.
struct Blocks {
    /// The table's place among all, and its name.
    index: u32,
    name: String,
    file: File,
    /// Bytes of the file.
    size: u64,
}

impl Blocks {
    fn open(place: &Place, table: &TableFile) -> Result<Blocks> {
        let (file, size) = place.file(&table.name)?;
        if size != table.size {
            return Err(place.cut(&table.name, &format!("has {size} bytes where its manifest has {}", table.size)));
        }
        Ok(Blocks { index: table.index, name: table.name.clone(), file, size })
    }

    /// Where the index is.
    fn footer(&self, place: &Place) -> Result<Span> {
        let mut footer = [0; FOOTER];
        let Some(start) = self.size.checked_sub(FOOTER as u64) else {
            return Err(place.damaged(&self.name, &format!("has {} bytes, too few for a table", self.size)));
        };
        place.read(&self.name, &self.file, &mut footer, start)?;
        let mut input = Input(&footer);
        let spans = (Span::parse(&mut input), Span::parse(&mut input));
        let magic = Input(footer.get(FOOTER.saturating_sub(8)..).unwrap_or_default()).u64();
        match spans {
            _ if magic != Some(MAGIC) => Err(place.damaged(&self.name, "does not end as a table does")),
            (Some(_), Some(index)) => Ok(index),
            _ => Err(place.damaged(&self.name, "has no index")),
        }
    }

    /// Reads a block.
    fn load(&self, place: &Place, span: Span, block: &mut Block) -> Result<()> {
        let whole = span.len.saturating_add(TRAILER);
        if span.at.checked_add(whole as u64).is_none_or(|end| end > self.size) {
            return Err(self.damaged(
                place,
                span,
                &format!("would end behind the file, which has {} bytes", self.size),
            ));
        }
        let what = || format!("{place}: a block of {}", self.name);
        let mut stored = std::mem::take(&mut block.bytes);
        stored.clear();
        memory::reserve(&mut stored, whole, what())?;
        stored.resize(whole, 0);
        place.read(&self.name, &self.file, &mut stored, span.at)?;
        let mut trailer = Input(stored.get(span.len..).unwrap_or_default());
        let (Some(packing), Some(sum)) = (trailer.u8(), trailer.u32()) else {
            return Err(self.damaged(place, span, "is not whole"));
        };
        stored.truncate(span.len);
        if !matches(sum, &stored, &[packing]) {
            return Err(self.damaged(place, span, "does not match its checksum"));
        }
        block.bytes = match packing {
            PLAIN => stored,
            SNAPPY => {
                let unpacked = snap::raw::decompress_len(&stored).unwrap_or(usize::MAX);
                if unpacked > stored.len().saturating_mul(MOST_UNPACKED).saturating_add(64) {
                    return Err(self.damaged(place, span, "claims to unpack to more than it can"));
                }
                let mut bytes = memory::zeros(unpacked, what())?;
                let done = snap::raw::Decoder::new().decompress(&stored, &mut bytes);
                done.map_err(|e| self.damaged(place, span, &format!("cannot be unpacked: {e}")))?;
                bytes
            }
            other => {
                let what = format!("is packed in a way that is not known ({other}), expected Snappy (1) or none (0)");
                return Err(self.damaged(place, span, &what));
            }
        };
        if block.restart() { Ok(()) } else { Err(self.damaged(place, span, "is none")) }
    }

    fn damaged(&self, place: &Place, span: Span, what: &str) -> Error {
        place.damaged(&self.name, &format!("is wrong: the block of {} bytes at byte {} {what}", span.len, span.at))
    }
}

/// What is wrong with a block whose entries do not follow each other.
const UNREADABLE: &str = "has an entry that cannot be read";

/// A table's entries, from the first on.
struct Table {
    blocks: Blocks,
    index: Block,
    block: Block,
    /// Where the block lies, and the entry of it.
    span: Span,
    entry: u32,
}

impl Table {
    /// Opens a table, before its first entry.
    fn open(place: &Place, table: &TableFile) -> Result<Table> {
        let blocks = Blocks::open(place, table)?;
        let mut index = Block::default();
        blocks.load(place, blocks.footer(place)?, &mut index)?;
        Ok(Table { blocks, index, block: Block::default(), span: Span { at: 0, len: 0 }, entry: 0 })
    }

    /// Moves to the next entry; false behind the last.
    fn advance(&mut self, place: &Place) -> Result<bool> {
        loop {
            self.entry = self.entry.wrapping_add(1);
            match self.block.advance() {
                Some(true) => return Ok(true),
                Some(false) => {}
                None => return Err(self.blocks.damaged(place, self.span, UNREADABLE)),
            }
            let span = match self.index.advance() {
                Some(false) => return Ok(false),
                Some(true) => Span::parse(&mut Input(self.index.value())),
                None => None,
            };
            self.span = span.ok_or_else(|| place.damaged(&self.blocks.name, "has an index that cannot be read"))?;
            self.blocks.load(place, self.span, &mut self.block)?;
            // Before the first.
            self.entry = u32::MAX;
        }
    }
}

/// An entry read by itself.
pub(super) struct Entry(Block);

impl Entry {
    /// Reads the entry of a table at a place that [`Run::location`] told.
    pub fn read(place: &Place, table: &TableFile, at: Location) -> Result<Entry> {
        let blocks = Blocks::open(place, table)?;
        let span = Span { at: at.at, len: usize::try_from(at.len).unwrap_or(usize::MAX) };
        let mut block = Block::default();
        blocks.load(place, span, &mut block)?;
        for _ in 0..=at.entry {
            if block.advance() != Some(true) {
                return Err(blocks.damaged(place, span, UNREADABLE));
            }
        }
        Ok(Entry(block))
    }

    /// The key and the value.
    pub fn record(&self) -> (&[u8], &[u8]) {
        (split(&self.0.key).map_or(&[], |(key, _, _)| key), self.0.value())
    }
}

/// The entries of tables that do not overlap, in order.
pub(super) struct Run {
    /// Tables yet to be opened, the next one last.
    tables: Vec<TableFile>,
    table: Option<Table>,
}

impl Run {
    /// At the first entry of the tables, which are in order.
    pub fn first(place: &Place, tables: &[TableFile]) -> Result<Run> {
        let mut run = Run { tables: tables.iter().rev().cloned().collect(), table: None };
        run.advance(place)?;
        Ok(run)
    }

    /// Moves to the next entry, or behind the last.
    pub fn advance(&mut self, place: &Place) -> Result<()> {
        loop {
            if let Some(table) = &mut self.table
                && table.advance(place)?
            {
                return self.check(place);
            }
            let Some(next) = self.tables.pop() else {
                self.table = None;
                return Ok(());
            };
            self.table = Some(Table::open(place, &next)?);
        }
    }

    fn check(&self, place: &Place) -> Result<()> {
        match &self.table {
            Some(table) if split(&table.block.key).is_none() => {
                Err(table.blocks.damaged(place, table.span, "has a key without number and kind"))
            }
            _ => Ok(()),
        }
    }

    /// The table that the entry is in.
    pub fn name(&self) -> &str {
        self.table.as_ref().map_or("", |table| &table.blocks.name)
    }

    /// Where the entry lies.
    pub fn location(&self) -> Location {
        let Some(table) = &self.table else { return Location::default() };
        let Span { at, len } = table.span;
        Location { file: table.blocks.index.saturating_add(1), entry: table.entry, at, len: len as u64 }
    }

    /// The key here, and the entry's number.
    pub fn key(&self) -> Option<(&[u8], u64)> {
        let (key, number, _) = split(&self.table.as_ref()?.block.key)?;
        Some((key, number))
    }

    /// The value here; none for a deletion.
    pub fn value(&self) -> Option<&[u8]> {
        let block = &self.table.as_ref()?.block;
        let (_, _, kind) = split(&block.key)?;
        (kind == VALUE).then(|| block.value())
    }
}

/// A key as tables have it: the user's, then a word of the entry's number and its kind.
fn split(key: &[u8]) -> Option<(&[u8], u64, u8)> {
    let (key, word) = key.split_last_chunk()?;
    let word = u64::from_le_bytes(*word);
    let kind = word as u8;
    (kind == VALUE || kind == DELETION).then_some((key, word >> 8, kind))
}
