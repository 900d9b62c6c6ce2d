//! Writing a database, through LMDB itself.

use std::path::Path;

use heed::types::Bytes;
use heed::{CommitOrAbort, EnvOpenOptions};
use lgm_core::{Error, Result};

/// Writes records to a new database in `folder`, which exists and is empty. `bytes` bounds the size of all keys and
/// values; `each` is called with a function that stores a key and its value.
pub(crate) fn write(
    folder: &Path,
    bytes: usize,
    each: impl FnOnce(&mut dyn FnMut(&[u8], &[u8]) -> Result<()>) -> Result<()>,
) -> Result<()> {
    let fail = |e: heed::Error| Error::data(folder, format!("the LMDB database cannot be written: {e}"));
    // A record takes at most a page more than its bytes, and never less than half of its page is used.
    let size = bytes.saturating_mul(3).saturating_add(64 << 20).next_multiple_of(1 << 16);
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
