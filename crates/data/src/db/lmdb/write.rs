//! Writing a database, through LMDB itself.

use std::path::{Path, PathBuf};

use heed::types::Bytes;
use heed::{CommitOrAbort, Database, Env, EnvFlags, EnvOpenOptions, WithoutTls};
use lgm_core::{Error, Result};

use crate::db::sink::{Group, Sink};

/// Bytes that the map grows by at least.
const STEP: usize = 64 << 20;

/// Bytes of a key at the most.
const LONGEST_KEY: usize = 511;

/// The system's number for an error of input or output.
const EIO: i32 = 5;

/// A new database, open for writing.
pub(in crate::db) struct LmdbWriter {
    /// The name that errors have.
    path: PathBuf,
    env: Env<WithoutTls>,
    database: Database<'static, Bytes, Bytes>,
    /// Bytes of the map, and of those that records may take so far.
    map: usize,
    used: usize,
}

impl LmdbWriter {
    /// Makes a database in an empty folder; errors call it `path`.
    pub fn create(path: &Path, folder: &Path) -> Result<Self> {
        let fail = |e| failed(path, e);
        // Made here because LMDB's binding would make them unreadable for others.
        for name in ["data.mdb", "lock.mdb"] {
            let file = folder.join(name);
            std::fs::File::create(&file).map_err(Error::io(path, "create"))?;
        }
        let mut options = EnvOpenOptions::new().read_txn_without_tls();
        options.map_size(STEP);
        // SAFETY: nothing is synced before the whole is, and until then the folder has a name of which nobody knows.
        unsafe { options.flags(EnvFlags::NO_SYNC) };
        // SAFETY: the folder was made for this database and has a name that nobody else uses.
        let env = unsafe { options.open(folder) }.map_err(fail)?;
        let txn = env.write_txn().map_err(fail)?;
        let made = env.create_databases_and_commit(txn, |opener, txn| {
            opener.create_database::<Bytes, Bytes>(txn, None).map(CommitOrAbort::<_, ()>::Commit)
        });
        let CommitOrAbort::Commit(database) = made.map_err(fail)? else {
            return Err(Error::internal("a new LMDB database was not made"));
        };
        Ok(LmdbWriter { path: path.into(), env, database, map: STEP, used: 0 })
    }
}

impl Sink for LmdbWriter {
    fn commit(&mut self, group: &Group) -> Result<()> {
        let fail = |e| failed(&self.path, e);
        // A record takes at most a page more than its bytes, and never less than half of its page is used.
        let most = group.bytes.saturating_add(group.records.len().saturating_mul(64)).saturating_mul(3);
        self.used = self.used.saturating_add(most);
        let wanted = self.used.saturating_add(STEP);
        if wanted > self.map {
            self.map = wanted.max(self.map.saturating_mul(2)).next_multiple_of(STEP);
            // SAFETY: a transaction lives within this function only.
            unsafe { self.env.resize(self.map) }.map_err(fail)?;
        }
        let mut txn = self.env.write_txn().map_err(fail)?;
        for (key, value) in &group.records {
            if !(1..=LONGEST_KEY).contains(&key.len()) {
                let start = key.get(..40).unwrap_or(key).escape_ascii();
                let what = format!("the key '{start}' has {} bytes, and LMDB takes 1 to {LONGEST_KEY}", key.len());
                return Err(Error::data(&self.path, what));
            }
            self.database.put(&mut txn, key, value).map_err(fail)?;
        }
        txn.commit().map_err(fail)
    }

    fn close(self: Box<Self>) -> Result<()> {
        self.env.prepare_for_closing().wait();
        Ok(())
    }
}

fn failed(path: &Path, e: heed::Error) -> Error {
    // What LMDB makes of a write that the system does in part, as it does at the end of a disk.
    let hint = match &e {
        heed::Error::Io(e) if e.raw_os_error() == Some(EIO) => "; the disk may be full",
        _ => "",
    };
    Error::data(path, format!("the LMDB database cannot be written: {e}{hint}"))
}
