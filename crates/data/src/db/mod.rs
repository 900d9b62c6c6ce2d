//! Databases as Caffe keeps them: a folder with an LMDB or a LevelDB database, its records in the order of their keys.
//!
//! Both are read by code of our own that checks every number before it follows it, and writes nothing into the folder, not
//! even a lock; both are written by their libraries.

#![cfg_attr(not(test), warn(clippy::arithmetic_side_effects))]

mod cursor;
mod leveldb;
mod lmdb;
mod reading;
mod records;
mod shuffled;
mod sink;
mod write;

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use lgm_core::{Error, Result};

pub(crate) use cursor::Cursor;
pub(crate) use reading::{Opened, Reading};
use records::room;
pub use records::{Record, Records};
pub(crate) use shuffled::Locations;
pub use write::Writer;

/// The kinds of databases.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    /// A B+ tree in one file.
    Lmdb,
    /// Sorted tables and logs.
    Leveldb,
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Backend::Lmdb => "LMDB",
            Backend::Leveldb => "LevelDB",
        })
    }
}

/// A kind of database, opened for reading.
trait Store: Send + Sync {
    /// The number of records, where it is known without reading them all.
    fn count(&self) -> Option<u64>;

    /// A place at the first record.
    fn walk(&self) -> Result<Box<dyn Walk>>;

    /// Appends the key and the value of a record to a buffer; their lengths.
    fn read(&self, at: Location, to: &mut Vec<u8>) -> Result<[usize; 2]>;
}

/// Where a record lies: what its kind of database makes of it.
#[derive(Clone, Copy, Debug, Default)]
struct Location {
    /// The file, by its place in a list.
    file: u32,
    /// The entry of a page or a block.
    entry: u32,
    /// The page, or where the block begins.
    at: u64,
    /// Bytes of the block.
    len: u64,
}

/// A place in a database: at a record, or behind the last one.
trait Walk: Send {
    /// Bytes of the key and of the value of the record here; none behind the last.
    fn lengths(&self) -> Result<Option<[usize; 2]>>;

    /// Appends the record's key and its value to a buffer that has room for them.
    fn append_to(&self, to: &mut Vec<u8>) -> Result<()>;

    /// Where the record here lies; of no meaning behind the last.
    fn location(&self) -> Location;

    /// Moves on by `count` records, or behind the last one; returns by how many.
    fn skip(&mut self, count: u64) -> Result<u64>;
}

/// A database opened for reading.
pub struct Database {
    path: PathBuf,
    backend: Backend,
    store: Box<dyn Store>,
}

impl Database {
    /// Opens the database in a folder; what the folder holds decides of which kind it is.
    ///
    /// # Errors
    /// When the folder is missing or holds no database, an empty one, one that was cut short, or one that keeps more than
    /// records.
    pub fn open(path: impl AsRef<Path>) -> Result<Arc<Self>> {
        let path = path.as_ref();
        let folder = path.canonicalize().map_err(Error::io(path, "open the database"))?;
        let backend = kind(path, &folder)?;
        let store: Box<dyn Store> = match backend {
            Backend::Lmdb => Box::new(lmdb::Lmdb::open(path, &folder)?),
            Backend::Leveldb => Box::new(leveldb::Leveldb::open(path, &folder)?),
        };
        if store.walk()?.lengths()?.is_none() {
            return Err(Error::data(path, "the database holds no records"));
        }
        Ok(Arc::new(Database { path: path.into(), backend, store }))
    }

    /// The database's folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its kind.
    pub fn backend(&self) -> Backend {
        self.backend
    }

    /// The number of records, at least one; none where only reading them all would tell, as in LevelDB.
    pub fn count(&self) -> Option<u64> {
        self.store.count()
    }
}

/// Which database a folder holds.
fn kind(path: &Path, folder: &Path) -> Result<Backend> {
    let lmdb = folder.join("data.mdb").is_file();
    match (lmdb, folder.join("CURRENT").is_file()) {
        (true, false) => Ok(Backend::Lmdb),
        (false, true) => Ok(Backend::Leveldb),
        (true, true) => {
            Err(Error::data(path, "holds both an LMDB database (data.mdb) and a LevelDB database (CURRENT)"))
        }
        (false, false) if folder.is_dir() => Err(Error::data(
            path,
            "holds no database: expected a file data.mdb (LMDB) or CURRENT (LevelDB) in the folder",
        )),
        (false, false) => Err(Error::data(path, "expected the folder of an LMDB or LevelDB database, found a file")),
    }
}
