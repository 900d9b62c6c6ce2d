//! Writing files so that a reader sees the old file or the whole new one, never a part.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use crate::{Error, Result};

/// A file written and synced under a temporary name, not yet in its place. Dropped unpublished, it is removed.
#[must_use = "a staged file is removed unless it is published"]
pub struct Staged {
    tmp: PathBuf,
    path: PathBuf,
}

impl Staged {
    /// Fills a temporary file beside `path` with `write` and syncs it.
    ///
    /// # Errors
    /// When the folder does not exist or cannot be written, or `write` fails; nothing is left behind.
    pub fn write<E: From<Error>>(path: &Path, write: impl FnOnce(&Path) -> Result<(), E>) -> Result<Staged, E> {
        let staged = Staged { tmp: temporary_name(path), path: path.into() };
        write(&staged.tmp)?;
        sync(&staged.tmp)?;
        Ok(staged)
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.tmp);
    }
}

/// Renames staged files to their places, in order.
///
/// # Errors
/// When the system refuses a rename; files before it are in place, it and those after are not.
pub fn publish_all(files: impl IntoIterator<Item = Staged>) -> Result<()> {
    files.into_iter().try_for_each(|f| publish(&f.tmp, &f.path))
}

/// Writes a file through a temporary name in the same folder: `write` fills the temporary file, which is then synced
/// and renamed to `path`. On any failure the temporary file is removed and `path` is as it was.
///
/// # Errors
/// When the folder does not exist or cannot be written, or `write` fails.
pub fn write_atomic<E: From<Error>>(
    path: impl AsRef<Path>,
    write: impl FnOnce(&Path) -> Result<(), E>,
) -> Result<(), E> {
    let staged = Staged::write(path.as_ref(), write)?;
    publish_all([staged]).map_err(E::from)
}

/// Builds a folder through a temporary name beside it, syncs its files and renames it to `path`, which must not exist.
///
/// # Errors
/// When `path` exists, its parent cannot be written, or `write` fails.
pub fn create_dir_atomic(path: impl AsRef<Path>, write: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let path = path.as_ref();
    if path.exists() {
        return Err(Error::data(path, "already exists; remove it or choose another name"));
    }
    let tmp = temporary_name(path);
    let _ = fs::remove_dir_all(&tmp);
    let result = fs::create_dir(&tmp).map_err(Error::io(&tmp, "create")).and_then(|()| write(&tmp)).and_then(|()| {
        for entry in fs::read_dir(&tmp).map_err(Error::io(&tmp, "list"))? {
            sync(&entry.map_err(Error::io(&tmp, "list"))?.path())?;
        }
        sync(&tmp)?;
        publish(&tmp, path)
    });
    if result.is_err() {
        let _ = fs::remove_dir_all(&tmp);
    }
    result
}

fn temporary_name(path: &Path) -> PathBuf {
    let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    path.with_file_name(format!(".{name}.tmp-{}", std::process::id()))
}

fn sync(path: &Path) -> Result<()> {
    File::open(path).and_then(|f| f.sync_all()).map_err(Error::io(path, "sync"))
}

fn publish(tmp: &Path, path: &Path) -> Result<()> {
    fs::rename(tmp, path).map_err(Error::io(path, "write"))?;
    let parent = match path.parent() {
        Some(p) if !p.as_os_str().is_empty() => p,
        _ => Path::new("."),
    };
    match File::open(parent).and_then(|d| d.sync_all()) {
        // Some file systems refuse to sync a folder; the rename itself has happened.
        Err(e) if e.kind() != io::ErrorKind::NotFound => Ok(()),
        other => other.map_err(Error::io(parent, "sync")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_write_leaves_the_old_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.txt");
        write_atomic::<Error>(&path, |t| fs::write(t, "old").map_err(Error::io(t, "write"))).unwrap();
        let failed = write_atomic::<Error>(&path, |t| {
            fs::write(t, "half").map_err(Error::io(t, "write"))?;
            Err(Error::config("stop"))
        });
        assert!(failed.is_err());
        assert_eq!(fs::read_to_string(&path).unwrap(), "old");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        let missing =
            write_atomic::<Error>(dir.path().join("no/b.txt"), |t| fs::write(t, "x").map_err(Error::io(t, "create")));
        assert!(missing.unwrap_err().to_string().contains("cannot create"));
    }

    #[test]
    fn folders_appear_whole_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("db");
        assert!(create_dir_atomic(&path, |_| Err(Error::config("stop"))).is_err());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        create_dir_atomic(&path, |t| fs::write(t.join("f"), "1").map_err(Error::io(t, "write"))).unwrap();
        assert!(path.join("f").exists());
        assert!(create_dir_atomic(&path, |_| Ok(())).is_err());
    }
}
