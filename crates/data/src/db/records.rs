//! Records of a database, one after another in the order of their keys or another one, and round again.

use std::fmt::Display;
use std::path::Path;
use std::sync::Arc;

use lgm_core::{Error, Result, memory};

use super::shuffled::{Locations, Shuffled};
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

/// Makes room in a buffer for the key and the value of a record of the database in `path`, at least twofold, so that what
/// is there is copied few times.
pub(super) fn room(buffer: &mut Vec<u8>, lengths: [usize; 2], path: &Path) -> Result<()> {
    let len = lengths.iter().fold(0, |sum: usize, &len| sum.saturating_add(len));
    if len <= buffer.capacity().saturating_sub(buffer.len()) {
        return Ok(());
    }
    memory::reserve(buffer, len.max(buffer.len()), format!("{}: a record", path.display()))
}

/// A place in a database that moves through the records and round again.
pub struct Records {
    database: Arc<Database>,
    order: Order,
    /// The place of the next record in the order.
    index: u64,
    /// What the last call read: keys and values, and of each record the index, where it starts, where its value does and
    /// where that ends.
    bytes: Vec<u8>,
    spans: Vec<(u64, [usize; 3])>,
}

/// The order in which records are read.
enum Order {
    /// That of the keys; here is the next one.
    Keys(Box<dyn Walk>),
    /// Another one each time round.
    Shuffled(Shuffled),
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
        Ok(Records { database, order: Order::Keys(walk), index, bytes: Vec::new(), spans: Vec::new() })
    }

    /// Starts at place `position`, counted from the first record of the first time round, of an order that `draw` gives for
    /// each time round.
    pub(crate) fn shuffled(
        database: Arc<Database>,
        locations: Arc<Locations>,
        position: u64,
        draw: impl Fn(u64, usize) -> Vec<u32> + Send + 'static,
    ) -> Self {
        let shuffled = Shuffled::new(locations, position, draw);
        let index = shuffled.place();
        Records { database, order: Order::Shuffled(shuffled), index, bytes: Vec::new(), spans: Vec::new() }
    }

    /// The place of the next record in the order: its index, if that is the order of the keys.
    pub fn index(&self) -> u64 {
        self.index
    }

    /// The next records: `most` of them, or as many as fill some 64 MiB, one at least. Moves past them.
    ///
    /// # Errors
    /// When the database is damaged, or one record is larger than the memory there is.
    pub fn next(&mut self, most: usize) -> Result<Vec<Record<'_>>> {
        self.read(most, |_| false)
    }

    /// As [`Records::next`], but no further than the last record; [`Records::index`] is 0 behind that.
    ///
    /// # Errors
    /// As there.
    pub fn next_to_end(&mut self, most: usize) -> Result<Vec<Record<'_>>> {
        self.read(most, |index| index == 0)
    }

    fn read(&mut self, most: usize, is_end: impl Fn(u64) -> bool) -> Result<Vec<Record<'_>>> {
        self.bytes.clear();
        self.spans.clear();
        while self.spans.len() < most && (self.bytes.len() < PART || self.spans.is_empty()) {
            self.read_one()?;
            if is_end(self.index) {
                break;
            }
        }
        let record = |&(index, [start, value, end]): &(u64, [usize; 3])| {
            let [key, value] = [start..value, value..end].map(|span| self.bytes.get(span).unwrap_or_default());
            Record { index, key, value }
        };
        Ok(self.spans.iter().map(record).collect())
    }

    fn read_one(&mut self) -> Result<()> {
        let start = self.bytes.len();
        let mut span = |index: u64, [key, value]: [usize; 2]| {
            let middle = start.saturating_add(key);
            self.spans.push((index, [start, middle, middle.saturating_add(value)]));
        };
        let (database, this) = (&self.database, self.index);
        match &mut self.order {
            Order::Shuffled(shuffled) => {
                let (record, location) = shuffled.next();
                span(record, database.store.read(location, &mut self.bytes)?);
                self.index = shuffled.place();
            }
            Order::Keys(walk) => {
                let Some(lengths) = walk.lengths()? else {
                    return Err(Error::internal("a database was read beyond its end"));
                };
                room(&mut self.bytes, lengths, &database.path)?;
                walk.append_to(&mut self.bytes)?;
                span(this, lengths);
                if let Err(e) = walk.skip(1) {
                    let key = self.bytes.get(start..start.saturating_add(lengths[0])).unwrap_or_default();
                    return Err(behind(e, this, key));
                }
                self.index = this.saturating_add(1);
                if walk.lengths()?.is_none() {
                    *walk = database.store.walk()?;
                    self.index = 0;
                }
            }
        }
        Ok(())
    }
}
