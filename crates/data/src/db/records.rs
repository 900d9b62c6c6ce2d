//! Records of a database, one after another and round again.

use std::fmt::Display;
use std::path::Path;
use std::sync::Arc;

use lgm_core::{Error, Result, memory};

use super::{Database, Walk};

/// Bytes of records in memory from which no more are read at once.
const PART: usize = 64 << 20;
/// Bytes of a key that an error shows.
const SHOWN: usize = 100;

/// A record in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record<'a> {
    /// Its place in the order of the keys, from 0 on.
    pub index: u64,
    /// Its key.
    pub key: &'a [u8],
    /// Its value.
    pub value: &'a [u8],
}

impl Record<'_> {
    /// The error of a record of the database in `path`, of which `what` says what is wrong: "the record …".
    pub fn error(&self, path: &Path, what: impl Display) -> Error {
        Error::data(path, format!("{} {what}", name(self.index, self.key)))
    }
}

fn name(index: u64, key: &[u8]) -> String {
    let (shown, more) = match key.get(..SHOWN) {
        Some(start) if key.len() > SHOWN => (start, "…"),
        _ => (key, ""),
    };
    // The text of keys is UTF-8 where file names are in it.
    let shown = match std::str::from_utf8(shown) {
        Ok(text) => text.escape_debug().to_string(),
        Err(_) => shown.escape_ascii().to_string(),
    };
    format!("record {index} (key '{shown}{more}')")
}

/// The error of a database that is damaged behind a record.
fn behind(e: Error, index: u64, key: &[u8]) -> Error {
    match e {
        Error::Data { path, what } => Error::Data { path, what: format!("{what} (behind {})", name(index, key)) },
        other => other,
    }
}

/// A place in a database that moves forward through the records and round again.
pub struct Records {
    database: Arc<Database>,
    index: u64,
    /// At the record `index`.
    walk: Box<dyn Walk>,
    /// What the last call read: keys and values, and of each record the index, where it starts, where its value does and
    /// where that ends.
    bytes: Vec<u8>,
    spans: Vec<(u64, [usize; 3])>,
}

impl Records {
    /// Starts at record `index`, counted in the order of the keys, modulo the number of records.
    ///
    /// # Errors
    /// When the database is damaged.
    pub fn from(database: Arc<Database>, index: u64) -> Result<Self> {
        let known = |index: u64| database.count().and_then(|count| index.checked_rem(count)).unwrap_or(index);
        let mut index = known(index);
        let mut walk = database.store.walk()?;
        let mut passed = walk.skip(index)?;
        if walk.lengths()?.is_none() {
            index = index.checked_rem(passed).unwrap_or(0);
            walk = database.store.walk()?;
            passed = walk.skip(index)?;
        }
        if passed != index {
            return Err(Error::data(&database.path, format!("has no record {index} any more")));
        }
        Ok(Records { database, index, walk, bytes: Vec::new(), spans: Vec::new() })
    }

    /// The index of the next record.
    pub fn index(&self) -> u64 {
        self.index
    }

    /// The next records: `most` of them, or as many as fill some 64 MiB, one at least. Moves past them.
    ///
    /// # Errors
    /// When the database is damaged, or one record is larger than the memory there is.
    pub fn next(&mut self, most: usize) -> Result<Vec<Record<'_>>> {
        self.bytes.clear();
        self.spans.clear();
        while self.spans.len() < most && (self.bytes.len() < PART || self.spans.is_empty()) {
            self.read_one()?;
        }
        let record = |&(index, [start, value, end]): &(u64, [usize; 3])| {
            let [key, value] = [start..value, value..end].map(|span| self.bytes.get(span).unwrap_or_default());
            Record { index, key, value }
        };
        Ok(self.spans.iter().map(record).collect())
    }

    /// Whether the next record is the first of the database.
    pub fn at_first(&self) -> bool {
        self.index == 0
    }

    fn read_one(&mut self) -> Result<()> {
        let path = &self.database.path;
        let Some([key, value]) = self.walk.lengths()? else {
            return Err(Error::internal("a database was read beyond its end"));
        };
        let start = self.bytes.len();
        let len = key.saturating_add(value);
        if len > self.bytes.capacity().saturating_sub(start) {
            // At least twofold, so that a part is copied few times.
            let what = format!("{}: record {}", path.display(), self.index);
            memory::reserve(&mut self.bytes, len.max(start), what)?;
        }
        let this = self.index;
        self.walk.append_to(&mut self.bytes)?;
        self.spans.push((this, [start, start.saturating_add(key), start.saturating_add(len)]));
        self.index = this.saturating_add(1);
        if let Err(e) = self.walk.skip(1) {
            let key = self.bytes.get(start..start.saturating_add(key)).unwrap_or_default();
            return Err(behind(e, this, key));
        }
        if self.walk.lengths()?.is_none() {
            self.walk = self.database.store.walk()?;
            self.index = 0;
        }
        Ok(())
    }
}
