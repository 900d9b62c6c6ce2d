//! Writing new databases.

use std::path::Path;

use lgm_core::Result;
use lgm_core::fs::StagedFolder;

use super::Backend;
use super::leveldb::LeveldbWriter;
use super::lmdb::LmdbWriter;
use super::sink::{Group, Sink};

/// Bytes of records from which a group is written unasked: few enough to be in the processor's caches still.
const GROUP: usize = 4 << 20;

/// A new database. It is written under another name and has its own from [`Writer::finish`] on; dropped before, it leaves
/// nothing behind.
pub struct Writer {
    // Dropped before the folder it lies in.
    sink: Box<dyn Sink>,
    folder: StagedFolder,
    group: Group,
}

impl Writer {
    /// Makes a new database in a folder that does not exist.
    ///
    /// # Errors
    /// When there is something under that name, or it cannot be made.
    pub fn create(path: impl AsRef<Path>, backend: Backend) -> Result<Self> {
        let path = path.as_ref();
        let folder = StagedFolder::create(path)?;
        let sink: Box<dyn Sink> = match backend {
            Backend::Lmdb => Box::new(LmdbWriter::create(path, folder.path())?),
            Backend::Leveldb => Box::new(LeveldbWriter::create(path, folder.path())?),
        };
        Ok(Writer { sink, folder, group: Group::default() })
    }

    /// Stores a value under a key, in place of an earlier one under the same key. Groups of some 4 MiB are written as they
    /// are full.
    ///
    /// # Errors
    /// When the database cannot be written, or the key is longer than LMDB's 511 bytes.
    pub fn put(&mut self, key: &[u8], value: Vec<u8>) -> Result<()> {
        self.group.bytes = self.group.bytes.saturating_add(key.len()).saturating_add(value.len());
        self.group.records.push((key.to_vec(), value));
        if self.group.bytes >= GROUP { self.commit() } else { Ok(()) }
    }

    /// Writes what was put.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub fn commit(&mut self) -> Result<()> {
        let group = std::mem::take(&mut self.group);
        if group.records.is_empty() { Ok(()) } else { self.sink.commit(&group) }
    }

    /// Writes what was put and gives the database its name.
    ///
    /// # Errors
    /// When the database cannot be written, or something has that name by now.
    pub fn finish(mut self) -> Result<()> {
        self.commit()?;
        self.sink.close()?;
        self.folder.publish()
    }
}
