//! The pages of an LMDB file (data version 1, 64-bit): its fields and their checks.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use lgm_core::{Error, Result};

/// Bytes before a page's content: its number, two bytes of padding, flags, and the bounds of its free space.
const HEADER: usize = 16;
/// The first word of a meta page's content, and the version behind it.
const MAGIC: (u32, u32) = (0xBEEF_C0DE, 1);
/// Flags of pages.
const BRANCH: u16 = 0x01;
const LEAF: u16 = 0x02;
const OVERFLOW: u16 = 0x04;
const META: u16 = 0x08;
/// Bytes before a node's key: the size of its data (of a branch, the child's page with the flags as high word), flags, and
/// the size of its key.
const NODE: usize = 8;
/// Flags of nodes: the data is on overflow pages; is a database; or has several values.
const BIG: u16 = 0x01;
const NOT_A_RECORD: u16 = 0x06;

/// A file of pages, read without a map: a read beyond its end is an error, not a signal.
pub(super) struct Pages {
    path: PathBuf,
    file: File,
    /// Bytes of a page.
    pub size: usize,
    /// Whole pages in the file.
    pub count: u64,
}

/// The page number of no page.
const NONE: u64 = u64::MAX;
/// Flag of a tree that keeps several values under one key.
const DUPLICATES: u16 = 0x04;

/// A tree, by its record in a header.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tree {
    pub flags: u16,
    pub depth: u16,
    /// Pages: branches, leaves, overflow.
    pub pages: [u64; 3],
    /// Values.
    pub entries: u64,
    /// The topmost page; none if the tree is empty.
    pub root: Option<u64>,
}

impl Tree {
    /// The 48 bytes of a tree in a header.
    pub fn parse(bytes: &[u8]) -> Tree {
        let words = word32(bytes, 4);
        Tree {
            flags: words as u16,
            depth: (words >> 16) as u16,
            pages: [8, 16, 24].map(|at| word64(bytes, at)),
            entries: word64(bytes, 32),
            root: Some(word64(bytes, 40)).filter(|&root| root != NONE),
        }
    }

    pub fn has_duplicates(&self) -> bool {
        self.flags & DUPLICATES != 0
    }
}

/// The newer of the two meta pages.
pub(super) struct Header {
    /// The tree of pages that are not in use, by the transaction that freed them.
    pub free: Tree,
    /// The tree of records.
    pub records: Tree,
    /// The last page ever used.
    pub last: u64,
    /// Number of the last transaction.
    transaction: u64,
}

impl Pages {
    /// Reads the header of a file; errors call it `path`.
    pub fn open(path: &Path, file: File) -> Result<(Pages, Header)> {
        let bytes = file.metadata().map_err(Error::io(path, "read"))?.len();
        let mut pages = Pages { path: path.into(), file, size: 0, count: bytes };
        let mut start = [0; HEADER + 28];
        if bytes < start.len() as u64 {
            return Err(pages.cut("its header is not whole"));
        }
        pages.read_at(&mut start, 0)?;
        if (word32(&start, HEADER), word32(&start, HEADER + 4)) != MAGIC {
            return Err(Error::data(
                path,
                "cannot be read as an LMDB database: data.mdb is none of 64 bits and version 1",
            ));
        }
        pages.size = word32(&start, HEADER + 24) as usize;
        if !(256..=1 << 16).contains(&pages.size) || !pages.size.is_power_of_two() {
            return Err(pages.damaged(0, &format!("gives a page size of {} bytes", pages.size)));
        }
        pages.count = bytes.checked_div(pages.size as u64).unwrap_or(0);
        if pages.count < 2 {
            return Err(pages.cut("its header is not whole"));
        }
        let metas = [0, 1].map(|number| pages.meta(number));
        let newest = metas.into_iter().flatten().max_by_key(|meta| meta.transaction);
        let header = newest.ok_or_else(|| pages.damaged(0, "and page 1 are no headers"))?;
        Ok((pages, header))
    }

    /// A meta page that makes sense; of two, one may be half written.
    fn meta(&self, number: u64) -> Option<Header> {
        let mut page = Vec::new();
        self.read(number, &mut page).ok()?;
        let at = |offset: usize| HEADER.saturating_add(offset);
        let flags = word16(&page, 10);
        let known = (word32(&page, at(0)), word32(&page, at(4))) == MAGIC;
        let header = Header {
            free: Tree::parse(&page[at(24)..at(72)]),
            records: Tree::parse(&page[at(72)..at(120)]),
            last: word64(&page, at(120)),
            transaction: word64(&page, at(128)),
        };
        (known && flags & META != 0).then_some(header)
    }

    /// Reads a page and checks that it is the one asked for.
    pub fn read(&self, number: u64, page: &mut Vec<u8>) -> Result<()> {
        self.check_there(number, 1)?;
        page.resize(self.size, 0);
        self.read_at(page, self.place(number))?;
        match word64(page, 0) {
            found if found == number => Ok(()),
            found => Err(self.damaged(number, &format!("calls itself page {found}"))),
        }
    }

    /// Fails unless so many pages from `number` on are in the file.
    fn check_there(&self, number: u64, pages: u64) -> Result<()> {
        match number.checked_add(pages) {
            Some(end) if end <= self.count => Ok(()),
            _ => Err(self.cut(&format!("page {number} is asked for"))),
        }
    }

    /// Where a page begins.
    fn place(&self, number: u64) -> u64 {
        number.saturating_mul(self.size as u64)
    }

    fn read_at(&self, bytes: &mut [u8], at: u64) -> Result<()> {
        self.file.read_exact_at(bytes, at).map_err(Error::io(&self.path, "read"))
    }

    /// The error of a page that cannot be right: "page N …".
    pub fn damaged(&self, number: u64, what: &str) -> Error {
        Error::data(&self.path, format!("the database is damaged: page {number} {what}"))
    }

    /// The error of a file that ends too early.
    pub fn cut(&self, what: &str) -> Error {
        let end = match self.size {
            0 => format!("{} bytes", self.count),
            size => format!("{} pages of {size} bytes", self.count),
        };
        let text =
            format!("the database was cut short: data.mdb ends after {end}, but {what}; copy or create it again");
        Error::data(&self.path, text)
    }

    /// The path that errors name.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// Where the list of a page's nodes goes on behind so many.
fn behind(nodes: usize) -> usize {
    HEADER.saturating_add(nodes.saturating_mul(2))
}

/// A page of a tree.
#[derive(Default)]
pub(super) struct TreePage {
    pub number: u64,
    bytes: Vec<u8>,
    /// Nodes on it; at least one.
    pub nodes: usize,
    pub is_leaf: bool,
}

impl TreePage {
    /// Replaces the page by another.
    pub fn load(&mut self, pages: &Pages, number: u64) -> Result<()> {
        pages.read(number, &mut self.bytes)?;
        let (flags, lower, upper) = (word16(&self.bytes, 10), word16(&self.bytes, 12), word16(&self.bytes, 14));
        let (lower, upper) = (usize::from(lower), usize::from(upper));
        self.number = number;
        self.is_leaf = match flags & (BRANCH | LEAF | OVERFLOW | META | 0x20 | 0x40) {
            LEAF => true,
            BRANCH => false,
            _ => return Err(pages.damaged(number, &format!("is no page of a tree (flags {flags:#x})"))),
        };
        if lower <= HEADER || !lower.is_multiple_of(2) || lower > upper || upper > self.bytes.len() {
            return Err(pages.damaged(number, &format!("has its free space from {lower} to {upper}")));
        }
        self.nodes = lower.saturating_sub(HEADER) / 2;
        Ok(())
    }

    /// Where node `i` begins, with its words: low and high word, flags, size of the key.
    fn node(&self, pages: &Pages, i: usize) -> Result<(usize, [u16; 4])> {
        let at = usize::from(word16(&self.bytes, behind(i)));
        if at < behind(self.nodes) || at.saturating_add(NODE) > self.bytes.len() {
            return Err(pages.damaged(self.number, &format!("has node {i} at byte {at}")));
        }
        Ok((at, [0, 2, 4, 6].map(|offset| word16(&self.bytes, at.saturating_add(offset)))))
    }

    /// The page below node `i` of a branch.
    pub fn child(&self, pages: &Pages, i: usize) -> Result<u64> {
        let (_, [low, high, top, _]) = self.node(pages, i)?;
        Ok(u64::from(low) | u64::from(high) << 16 | u64::from(top) << 32)
    }

    /// The key and the value of node `i` of a leaf.
    pub fn record<'a>(&'a self, pages: &Pages, i: usize) -> Result<(&'a [u8], Value<'a>)> {
        let (at, [low, high, flags, key]) = self.node(pages, i)?;
        let len = usize::from(low) | usize::from(high) << 16;
        let start = at.saturating_add(NODE);
        let end = start.saturating_add(usize::from(key));
        if flags & NOT_A_RECORD != 0 {
            let what = "the database holds named databases, expected records in the unnamed one, as Caffe writes them";
            return Err(Error::data(pages.path(), what));
        }
        let stored = if flags & BIG == 0 { len } else { 8 };
        let (key, inside) = match (self.bytes.get(start..end), self.bytes.get(end..end.saturating_add(stored))) {
            (Some(key), Some(inside)) => (key, inside),
            _ => return Err(pages.damaged(self.number, &format!("has node {i} reach beyond its end"))),
        };
        if flags & BIG == 0 {
            return Ok((key, Value::Here(inside)));
        }
        let first = word64(inside, 0);
        let count = HEADER.saturating_add(len).div_ceil(pages.size) as u64;
        pages.check_there(first, count)?;
        let mut header = [0; HEADER];
        pages.read_at(&mut header, pages.place(first))?;
        let (number, flags, there) = (word64(&header, 0), word16(&header, 10), word32(&header, 12));
        if number != first || flags & OVERFLOW == 0 || u64::from(there) < count {
            return Err(pages.damaged(first, &format!("does not begin a value of {len} bytes")));
        }
        Ok((key, Value::At(pages.place(first).saturating_add(HEADER as u64), len)))
    }
}

/// A record's value: in the leaf, or at a byte of the file, which has it.
pub(super) enum Value<'a> {
    Here(&'a [u8]),
    At(u64, usize),
}

impl Value<'_> {
    pub fn len(&self) -> usize {
        match self {
            Value::Here(bytes) => bytes.len(),
            Value::At(_, len) => *len,
        }
    }

    /// Appends the value to a buffer that has room for it.
    pub fn append_to(&self, pages: &Pages, to: &mut Vec<u8>) -> Result<()> {
        match self {
            Value::Here(bytes) => to.extend_from_slice(bytes),
            Value::At(at, len) => {
                let start = to.len();
                to.resize(start.saturating_add(*len), 0);
                pages.read_at(&mut to[start..], *at)?;
            }
        }
        Ok(())
    }
}

fn part<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let range: Range<usize> = at..at.saturating_add(N);
    bytes.get(range).and_then(|b| b.try_into().ok()).unwrap_or([0; N])
}

fn word16(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(part(bytes, at))
}

pub(super) fn word32(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(part(bytes, at))
}

pub(super) fn word64(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(part(bytes, at))
}
