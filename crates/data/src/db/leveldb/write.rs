//! Writing a database, through a library.

use std::path::{Path, PathBuf};

use lgm_core::{Error, Result};
use rusty_leveldb::{CompressorId, DB, Options, Status, compressor::SnappyCompressor};

use crate::db::sink::{Group, Sink};

/// Bytes of a block, and of what is in memory before a table is made of it, as Caffe sets them; of the latter Caffe sets four
/// times as much.
const BLOCK: usize = 64 << 10;
const BUFFER: usize = 64 << 20;

/// A new database, open for writing.
pub(in crate::db) struct LeveldbWriter {
    /// The name that errors have.
    path: PathBuf,
    database: DB,
}

impl LeveldbWriter {
    /// Makes a database in an empty folder; errors call it `path`.
    pub fn create(path: &Path, folder: &Path) -> Result<Self> {
        let options = Options {
            block_size: BLOCK,
            write_buffer_size: BUFFER,
            max_file_size: BUFFER,
            compressor: SnappyCompressor::ID,
            ..Options::default()
        };
        let database = DB::open(folder, options).map_err(|e| failed(path, &e))?;
        Ok(LeveldbWriter { path: path.into(), database })
    }
}

impl Sink for LeveldbWriter {
    fn commit(&mut self, group: &Group) -> Result<()> {
        let mut records = group.records.iter();
        records.try_for_each(|(key, value)| self.database.put(key, value)).map_err(|e| failed(&self.path, &e))
    }

    fn close(mut self: Box<Self>) -> Result<()> {
        self.database.close().map_err(|e| failed(&self.path, &e))
    }
}

fn failed(path: &Path, e: &Status) -> Error {
    Error::data(path, format!("the LevelDB database cannot be written: {e}"))
}
