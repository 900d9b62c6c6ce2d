//! LMDB databases as Caffe lays them out: one folder, records in the order of their keys in the unnamed database.

use std::collections::HashMap;
use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};

use heed::types::{Bytes, DecodeIgnore};
use heed::{CommitOrAbort, Env, EnvFlags, EnvOpenOptions, WithoutTls};
use lgm_core::{Error, Result};

type Database = heed::Database<'static, Bytes, Bytes>;

/// A database opened for reading. Nothing is written, not even a lock: a folder one may only read will do.
///
/// LMDB allows one environment for each folder in a process; openings of the same folder share it.
pub struct Lmdb {
    path: PathBuf,
    key: PathBuf,
    /// `None` only while dropping.
    env: Option<Env<WithoutTls>>,
    database: Database,
    records: u64,
}

struct Shared {
    env: Env<WithoutTls>,
    database: Database,
    users: usize,
}

static OPEN: LazyLock<Mutex<HashMap<PathBuf, Shared>>> = LazyLock::new(Mutex::default);

fn open_ones() -> MutexGuard<'static, HashMap<PathBuf, Shared>> {
    OPEN.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Lmdb {
    /// Opens the database in a folder.
    ///
    /// # Errors
    /// When the folder is missing, holds no LMDB database (a LevelDB database is recognised and named), or an empty one.
    pub fn open(path: impl AsRef<Path>) -> Result<Arc<Self>> {
        let path = path.as_ref();
        let key = path.canonicalize().map_err(Error::io(path, "open the database"))?;
        check_kind(path, &key)?;
        let fail = |e: heed::Error| Error::data(path, format!("cannot be read as an LMDB database: {e}"));
        let mut open = open_ones();
        if !open.contains_key(&key) {
            let mut options = EnvOpenOptions::new().read_txn_without_tls();
            // SAFETY: LMDB asks that nobody changes the file under the memory map. Read-only without locks, a database
            // that another process rewrites in place at the same time would be misread; Caffe's rule, that a database
            // is not written while a net trains from it, holds here too.
            let env = unsafe {
                options.flags(EnvFlags::READ_ONLY | EnvFlags::NO_LOCK);
                options.open(&key)
            }
            .map_err(fail)?;
            let database = open_unnamed(&env).map_err(fail)?.ok_or_else(|| Error::data(path, EMPTY))?;
            open.insert(key.clone(), Shared { env, database, users: 0 });
        }
        let Some(shared) = open.get_mut(&key) else {
            return Err(Error::internal("a database vanished from the list of open ones"));
        };
        shared.users += 1;
        let mut lmdb =
            Lmdb { path: path.into(), key, env: Some(shared.env.clone()), database: shared.database, records: 0 };
        // Dropping an `Lmdb` takes the lock, on an error below too.
        drop(open);
        lmdb.records = {
            let env = lmdb.env()?;
            let txn = env.read_txn().map_err(fail)?;
            lmdb.database.len(&txn).map_err(fail)?
        };
        if lmdb.records == 0 {
            return Err(Error::data(path, EMPTY));
        }
        Ok(Arc::new(lmdb))
    }

    /// Number of records; at least one.
    pub fn records(&self) -> u64 {
        self.records
    }

    /// The database's folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn env(&self) -> Result<&Env<WithoutTls>> {
        self.env.as_ref().ok_or_else(|| Error::internal("a closed database was read"))
    }

    fn fail(&self, e: heed::Error) -> Error {
        Error::data(&self.path, format!("the database cannot be read: {e}"))
    }
}

const EMPTY: &str = "the database holds no records";

fn open_unnamed(env: &Env<WithoutTls>) -> heed::Result<Option<Database>> {
    let opened = env.open_databases_and_commit(env.read_txn()?, |opener, txn| {
        opener.open_database::<Bytes, Bytes>(txn, None).map(CommitOrAbort::<_, ()>::Commit)
    })?;
    Ok(opened.commit().flatten())
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

impl Drop for Lmdb {
    fn drop(&mut self) {
        let mut open = open_ones();
        // Closed under the lock: whoever opens the folder next must not find it half open.
        self.env = None;
        if let Some(shared) = open.get_mut(&self.key) {
            shared.users -= 1;
            if shared.users == 0 {
                open.remove(&self.key);
            }
        }
    }
}

/// A place in a database that moves forward through the records and round again.
pub struct Records {
    lmdb: Arc<Lmdb>,
    index: u64,
    /// The key of the record before `index`; `None` at the first record.
    last: Option<Vec<u8>>,
}

impl Records {
    /// Starts at record `index`, counted in the order of the keys, modulo the number of records.
    ///
    /// # Errors
    /// When the database is damaged.
    pub fn from(lmdb: Arc<Lmdb>, index: u64) -> Result<Self> {
        let index = index % lmdb.records;
        let last = match index {
            0 => None,
            _ => {
                let txn = lmdb.env()?.read_txn().map_err(|e| lmdb.fail(e))?;
                let keys = lmdb.database.remap_data_type::<DecodeIgnore>();
                let entry = keys.iter(&txn).map_err(|e| lmdb.fail(e))?.nth(index as usize - 1);
                let (key, ()) = entry.transpose().map_err(|e| lmdb.fail(e))?.ok_or_else(|| changed(&lmdb.path))?;
                Some(key.to_vec())
            }
        };
        Ok(Records { lmdb, index, last })
    }

    /// The index of the next record.
    pub fn index(&self) -> u64 {
        self.index
    }

    /// Hands the next `n` records to `visit` at once, each with its index, and moves past them.
    ///
    /// # Errors
    /// When the database is damaged, and what `visit` returns.
    pub fn next<T>(&mut self, n: usize, visit: impl FnOnce(&[(u64, &[u8])]) -> Result<T>) -> Result<T> {
        let lmdb = self.lmdb.clone();
        let fail = |e| lmdb.fail(e);
        let txn = lmdb.env()?.read_txn().map_err(fail)?;
        let mut records = Vec::with_capacity(n);
        let mut index = self.index;
        let mut last: Option<Vec<u8>> = self.last.take();
        while records.len() < n {
            let start = last.as_deref().map_or(Bound::Unbounded, Bound::Excluded);
            let range = (start, Bound::<&[u8]>::Unbounded);
            let before = records.len();
            let mut key: &[u8] = &[];
            for entry in lmdb.database.range(&txn, &range).map_err(fail)?.take(n - before) {
                let (k, value) = entry.map_err(fail)?;
                records.push((index, value));
                (key, index) = (k, index + 1);
            }
            let read = records.len() - before;
            if read == 0 && last.is_none() {
                return Err(changed(&lmdb.path));
            }
            // Short of the number asked for: the end was reached, the rest comes from the beginning.
            last = (records.len() == n).then(|| key.to_vec());
            if last.is_none() {
                index = 0;
            }
        }
        let result = visit(&records);
        self.index = index % lmdb.records;
        self.last = last.filter(|_| self.index != 0);
        result
    }
}

fn changed(path: &Path) -> Error {
    Error::data(path, "the database changed while it was read")
}

/// Writes records to a new database in `folder`, which exists and is empty. `bytes` bounds the size of all keys and
/// values; `each` is called with a function that stores a key and its value.
pub(crate) fn write(
    folder: &Path,
    bytes: usize,
    each: impl FnOnce(&mut dyn FnMut(&[u8], &[u8]) -> Result<()>) -> Result<()>,
) -> Result<()> {
    let fail = |e: heed::Error| Error::data(folder, format!("the LMDB database cannot be written: {e}"));
    // A record takes at most a page more than its bytes, and never less than half of its page is used.
    let size = (bytes.saturating_mul(3) + (64 << 20)).next_multiple_of(1 << 16);
    // Made here because LMDB's binding would make them unreadable for others.
    for name in ["data.mdb", "lock.mdb"] {
        let file = folder.join(name);
        std::fs::File::create(&file).map_err(Error::io(&file, "create"))?;
    }
    let mut options = EnvOpenOptions::new().read_txn_without_tls();
    options.map_size(size);
    // SAFETY: the folder was made for this database and has a name that nobody else uses.
    let env = unsafe { options.open(folder) }.map_err(fail)?;
    let txn = env.write_txn().map_err(fail)?;
    let mut failed = None;
    env.create_databases_and_commit(txn, |opener, txn| {
        let database = opener.create_database::<Bytes, Bytes>(txn, None)?;
        let mut put = |key: &[u8], value: &[u8]| database.put(txn, key, value).map_err(fail);
        Ok(match each(&mut put) {
            Ok(()) => CommitOrAbort::Commit(()),
            Err(e) => {
                failed = Some(e);
                CommitOrAbort::Abort(())
            }
        })
    })
    .map_err(fail)?;
    match failed {
        Some(e) => Err(e),
        None => Ok(()),
    }
}
