//! LMDB databases: one file of pages, records in the order of their keys in the unnamed database.
//!
//! They are read page by page, every number in a page checked before it is followed: LMDB's own library maps the file and
//! believes it, so that one that was cut short or damaged ends the process.

mod page;
mod tree;
mod write;

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use lgm_core::{Error, Result};

use super::{Location, Store, Walk, room};
use page::{Pages, Tree, TreePage};
use tree::Cursor;
pub(super) use write::LmdbWriter;

/// A database opened for reading.
pub(super) struct Lmdb {
    pages: Arc<Pages>,
    records: Tree,
}

impl Lmdb {
    /// Reads the headers of the database in `folder`; errors call it `path`.
    pub fn open(path: &Path, folder: &Path) -> Result<Self> {
        let data = folder.join("data.mdb");
        let file = File::open(&data).map_err(Error::io(&data, "open"))?;
        let (pages, header) = Pages::open(path, file)?;
        tree::check_length(&pages, &header)?;
        let mut records = header.records;
        if records.has_duplicates() {
            return Err(Error::data(path, "the database keeps several records under one key (MDB_DUPSORT)"));
        }
        if records.root.is_none() {
            records.entries = 0;
        }
        Ok(Lmdb { pages: Arc::new(pages), records })
    }
}

impl Store for Lmdb {
    fn count(&self) -> Option<u64> {
        Some(self.records.entries)
    }

    fn walk(&self) -> Result<Box<dyn Walk>> {
        let left = self.records.entries;
        let cursor = if left > 0 { Some(Cursor::first(&self.pages, self.records)?) } else { None };
        Ok(Box::new(LmdbWalk { pages: self.pages.clone(), cursor, left }))
    }

    fn read(&self, at: Location, to: &mut Vec<u8>) -> Result<[usize; 2]> {
        let mut page = TreePage::default();
        page.load(&self.pages, at.at)?;
        let (key, value) = page.record(&self.pages, at.entry as usize)?;
        room(to, [key.len(), value.len()], self.pages.path())?;
        to.extend_from_slice(key);
        value.append_to(&self.pages, to)?;
        Ok([key.len(), value.len()])
    }
}

/// A place in a database.
struct LmdbWalk {
    pages: Arc<Pages>,
    /// At a record; none behind the last.
    cursor: Option<Cursor>,
    /// Records from here on.
    left: u64,
}

impl Walk for LmdbWalk {
    fn lengths(&self) -> Result<Option<[usize; 2]>> {
        let Some(cursor) = &self.cursor else { return Ok(None) };
        let (key, value) = cursor.record(&self.pages)?;
        Ok(Some([key.len(), value.len()]))
    }

    fn append_to(&self, to: &mut Vec<u8>) -> Result<()> {
        let Some(cursor) = &self.cursor else { return Ok(()) };
        let (key, value) = cursor.record(&self.pages)?;
        to.extend_from_slice(key);
        value.append_to(&self.pages, to)
    }

    fn location(&self) -> Location {
        let (at, entry) = self.cursor.as_ref().map_or((0, 0), Cursor::place);
        Location { at, entry: entry as u32, ..Location::default() }
    }

    fn skip(&mut self, count: u64) -> Result<u64> {
        let count = count.min(self.left);
        self.left = self.left.saturating_sub(count);
        match &mut self.cursor {
            Some(cursor) if self.left > 0 => cursor.skip(&self.pages, count)?,
            cursor => *cursor = None,
        }
        Ok(count)
    }
}
