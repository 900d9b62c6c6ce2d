//! LMDB databases as Caffe lays them out: one folder, records in the order of their keys in the unnamed database.
//!
//! They are read page by page, every number in a page checked before it is followed: LMDB's own library maps the file and
//! believes it, so that one that was cut short or damaged ends the process.

#![cfg_attr(not(test), warn(clippy::arithmetic_side_effects))]

mod page;
mod tree;
mod write;

use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use lgm_core::{Error, Result, memory};

use page::{Pages, Tree};
use tree::Cursor;
pub(crate) use write::write;

/// Bytes of records in memory from which no more are read at once.
const PART: usize = 64 << 20;

/// A database opened for reading. Nothing is written, not even a lock: a folder one may only read will do.
pub struct Lmdb {
    path: PathBuf,
    pages: Pages,
    records: Tree,
}

impl Lmdb {
    /// Opens the database in a folder.
    ///
    /// # Errors
    /// When the folder is missing, holds no LMDB database (a LevelDB database is recognised and named), an empty one, one
    /// that was cut short, or one that keeps more than records.
    pub fn open(path: impl AsRef<Path>) -> Result<Arc<Self>> {
        let path = path.as_ref();
        let folder = path.canonicalize().map_err(Error::io(path, "open the database"))?;
        check_kind(path, &folder)?;
        let data = folder.join("data.mdb");
        let file = File::open(&data).map_err(Error::io(&data, "open"))?;
        Lmdb::read(path, file)
    }

    /// Reads the header of a file of pages.
    pub(crate) fn read(path: &Path, file: File) -> Result<Arc<Self>> {
        let (pages, header) = Pages::open(path, file)?;
        tree::check_length(&pages, &header)?;
        let records = header.records;
        if records.root.is_none() || records.entries == 0 {
            return Err(Error::data(path, "the database holds no records"));
        }
        if records.has_duplicates() {
            return Err(Error::data(path, "the database keeps several records under one key (MDB_DUPSORT)"));
        }
        Ok(Arc::new(Lmdb { path: path.into(), pages, records }))
    }

    /// Number of records; at least one.
    pub fn records(&self) -> u64 {
        self.records.entries
    }

    /// The database's folder.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

fn check_kind(path: &Path, folder: &Path) -> Result<()> {
    if folder.join("data.mdb").is_file() {
        return Ok(());
    }
    let what = if folder.join("CURRENT").is_file() {
        "is a LevelDB database, which cannot be read; convert it to LMDB (the same keys and values) and set backend: LMDB"
    } else if folder.is_dir() {
        "holds no LMDB database: expected a file data.mdb in the folder"
    } else {
        "expected the folder of an LMDB database, found a file"
    };
    Err(Error::data(path, what))
}

/// A place in a database that moves forward through the records and round again.
pub struct Records {
    lmdb: Arc<Lmdb>,
    index: u64,
    /// At the record `index`.
    cursor: Cursor,
    /// What the last call read, and the position of each record in it.
    bytes: Vec<u8>,
    spans: Vec<(u64, Range<usize>)>,
}

impl Records {
    /// Starts at record `index`, counted in the order of the keys, modulo the number of records.
    ///
    /// # Errors
    /// When the database is damaged.
    pub fn from(lmdb: Arc<Lmdb>, index: u64) -> Result<Self> {
        let index = index.checked_rem(lmdb.records()).unwrap_or(0);
        let mut cursor = Cursor::first(&lmdb.pages, lmdb.records)?;
        cursor.skip(&lmdb.pages, index)?;
        Ok(Records { lmdb, index, cursor, bytes: Vec::new(), spans: Vec::new() })
    }

    /// The index of the next record.
    pub fn index(&self) -> u64 {
        self.index
    }

    /// The next records, each with its index: `most` of them, or as many as fill some 64 MiB, one at least. Moves past them.
    ///
    /// # Errors
    /// When the database is damaged, or one record is larger than the memory there is.
    pub fn next(&mut self, most: usize) -> Result<Vec<(u64, &[u8])>> {
        let lmdb = &*self.lmdb;
        self.bytes.clear();
        self.spans.clear();
        while self.spans.len() < most && (self.bytes.len() < PART || self.spans.is_empty()) {
            let start = self.bytes.len();
            let value = self.cursor.value(&lmdb.pages)?;
            let say = || format!("{}: record {}", lmdb.path.display(), self.index);
            if value.len() > self.bytes.capacity().saturating_sub(start) {
                // At least twofold, so that a part is copied few times.
                memory::reserve(&mut self.bytes, value.len().max(start), say())?;
            }
            value.append_to(&lmdb.pages, &mut self.bytes)?;
            self.spans.push((self.index, start..self.bytes.len()));
            self.index = self.index.saturating_add(1).checked_rem(lmdb.records()).unwrap_or(0);
            match self.index {
                0 => self.cursor = Cursor::first(&lmdb.pages, lmdb.records)?,
                _ => self.cursor.skip(&lmdb.pages, 1)?,
            }
        }
        Ok(self.spans.iter().map(|(index, span)| (*index, &self.bytes[span.clone()])).collect())
    }
}
