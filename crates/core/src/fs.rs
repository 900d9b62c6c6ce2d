//! Writing files so that a reader sees the old file or the whole new one, never a part.
//!
//! Temporary files are made new, under names that nobody can guess, so that no link planted in a folder that others may
//! write leads a write elsewhere. While one is written it is locked, which tells it from what a killed process left.
//!
//! A device, a pipe or a socket under the name (`/dev/null`, a terminal) is written to and stays what it is, and so does a
//! link of the system's (`/dev/stdout`), whatever it leads to; a file there keeps what it holds and grows.

use std::ffi::OsString;
use std::fs::{self, File, Permissions};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use lgm_proto::strings;
use tempfile::{Builder, NamedTempFile, TempDir};

use crate::{Error, Result};

/// What stands between a file's name and the random part in the name of its temporary file.
const MARK: &str = ".tmp-";
/// Letters and digits of the random part: more than anybody plants links for.
const RANDOM: usize = 16;
/// Links that are followed from one to the next, as many as Linux does.
const LINKS: usize = 40;

/// A file under a temporary name, not yet in its place. Dropped unpublished, it is removed.
#[must_use = "a staged file is removed unless it is published"]
pub struct Staged {
    tmp: NamedTempFile,
    path: PathBuf,
}

impl Staged {
    /// Fills a temporary file beside `path` with `write`, which gets its name, and syncs it. What writes bytes better
    /// calls [`Staged::bytes`], which opens no name twice.
    ///
    /// # Errors
    /// When the folder does not exist or cannot be written, or `write` fails; nothing is left behind.
    pub fn write<E: From<Error>>(path: &Path, write: impl FnOnce(&Path) -> Result<(), E>) -> Result<Staged, E> {
        let staged = Staged::create(path)?;
        write(staged.tmp.path())?;
        staged.synced().map_err(E::from)
    }

    /// Writes bytes to a temporary file beside `path` and syncs it.
    ///
    /// # Errors
    /// When the folder does not exist or cannot be written; nothing is left behind.
    pub fn bytes(path: &Path, bytes: &[u8]) -> Result<Staged> {
        let mut staged = Staged::create(path)?;
        staged.tmp.as_file_mut().write_all(bytes).map_err(Error::io(path, "write"))?;
        staged.synced()
    }

    /// Makes an empty temporary file beside `path`, to be filled through [`Staged::file`].
    ///
    /// # Errors
    /// When the folder does not exist or cannot be written.
    pub fn create(path: &Path) -> Result<Staged> {
        let mut refused = None;
        let folder = if is_stream(path) { std::env::temp_dir() } else { folder_of(path).into() };
        remove_unfinished_of(path);
        let tmp = Builder::new().prefix(&temporary_prefix(path)).rand_bytes(RANDOM).make_in(folder, |tmp| {
            let file = File::options().write(true).create_new(true).open(tmp);
            file.inspect_err(|e| refused = e.raw_os_error()).and_then(|file| keep(tmp, &file).map(|()| file))
        });
        // The system's own reason: the library's adds the temporary name.
        let tmp = tmp.map_err(|e| Error::io(path, "create")(refused.map_or(e, io::Error::from_raw_os_error)))?;
        Ok(Staged { tmp, path: path.into() })
    }

    /// The temporary file.
    pub fn file(&self) -> &File {
        self.tmp.as_file()
    }

    /// Syncs what the name holds, which a writer by name may have put another file in place of.
    ///
    /// # Errors
    /// When the system cannot write it.
    pub fn synced(self) -> Result<Staged> {
        sync(self.tmp.path())?;
        Ok(self)
    }
}

/// Renames staged files to their places, in order.
///
/// # Errors
/// When the system refuses a rename; files before it are in place, it and those after are not.
pub fn publish_all(files: impl IntoIterator<Item = Staged>) -> Result<()> {
    files.into_iter().try_for_each(|Staged { tmp, path }| {
        if is_stream(&path) {
            let copy = || io::copy(&mut File::open(tmp.path())?, &mut open_stream(&path)?);
            return copy().map(drop).map_err(Error::io(&path, "write"));
        }
        tmp.persist(&path).map_err(|e| Error::io(&path, "write")(e.error))?;
        sync_folder(&path)
    })
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

/// Writes bytes as [`write_atomic`] does.
///
/// # Errors
/// When the folder does not exist or cannot be written.
pub fn write_bytes(path: impl AsRef<Path>, bytes: &[u8]) -> Result<()> {
    publish_all([Staged::bytes(path.as_ref(), bytes)?])
}

/// Removes temporary files and folders that killed processes left in a folder, of those whose names `whose` wants. Gives
/// what was removed.
pub fn remove_unfinished(folder: &Path, whose: impl Fn(&str) -> bool) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let mut removed = Vec::new();
    for entry in entries.flatten() {
        let name = entry.file_name();
        let name = strings::from_path(&name);
        let name = name.strip_prefix('.').and_then(|name| name.rsplit_once(MARK));
        if !name.is_some_and(|(name, _)| whose(name)) {
            continue;
        }
        // Not through a link, which may lead to a file that is somebody's; and no pipe, which may have no other end.
        let (is_folder, is_file) = entry.file_type().map_or((false, false), |kind| (kind.is_dir(), kind.is_file()));
        let (path, flags) = (entry.path(), rustix::fs::OFlags::NOFOLLOW.bits() as i32);
        let open = || File::options().read(is_folder).write(is_file).custom_flags(flags).open(&path);
        if (is_folder || is_file)
            && let Ok(left) = open()
            && left.try_lock().is_ok()
            && if is_folder { fs::remove_dir_all(&path) } else { fs::remove_file(&path) }.is_ok()
        {
            removed.push(path);
        }
    }
    removed
}

/// Locks a new temporary file or folder. Some file systems have no locks; there, what a killed process leaves stays.
///
/// # Errors
/// `AlreadyExists`, which asks for another name, when a process that clears away what is not locked came before.
fn keep(tmp: &Path, opened: &File) -> io::Result<()> {
    let _ = opened.lock();
    if tmp.exists() { Ok(()) } else { Err(io::ErrorKind::AlreadyExists.into()) }
}

/// Removes what killed processes left of one output.
fn remove_unfinished_of(path: &Path) {
    let own = strings::from_path(path.file_name().unwrap_or_default());
    remove_unfinished(folder_of(path), |name| name == own);
}

/// A folder under a temporary name beside its place, which it takes when it is published. Dropped before, it is removed.
#[must_use = "a staged folder is removed unless it is published"]
pub struct StagedFolder {
    tmp: TempDir,
    path: PathBuf,
    /// The folder itself, which is locked as a file is that is being written.
    _lock: File,
}

impl StagedFolder {
    /// Makes an empty folder.
    ///
    /// # Errors
    /// When `path` exists or its parent cannot be written.
    pub fn create(path: &Path) -> Result<StagedFolder> {
        if path.exists() {
            return Err(Error::data(path, "already exists; remove it or choose another name"));
        }
        remove_unfinished_of(path);
        let (prefix, mode) = (temporary_prefix(path), Permissions::from_mode(0o777));
        let make = || {
            let tmp =
                Builder::new().prefix(&prefix).rand_bytes(RANDOM).permissions(mode).tempdir_in(folder_of(path))?;
            let lock = File::open(tmp.path())?;
            keep(tmp.path(), &lock).map(|()| StagedFolder { tmp, path: path.into(), _lock: lock })
        };
        make().map_err(Error::io(path, "create"))
    }

    /// Where the folder is for now.
    pub fn path(&self) -> &Path {
        self.tmp.path()
    }

    /// Syncs the folder's files and renames it to its place.
    ///
    /// # Errors
    /// When something is there by now, or the system refuses.
    pub fn publish(self) -> Result<()> {
        let StagedFolder { tmp, path, _lock } = self;
        for entry in fs::read_dir(tmp.path()).map_err(Error::io(&tmp, "list"))? {
            sync(&entry.map_err(Error::io(&tmp, "list"))?.path())?;
        }
        sync(tmp.path())?;
        fs::rename(tmp.path(), &path).map_err(Error::io(&path, "write"))?;
        // Under its new name it stays.
        let _ = tmp.keep();
        sync_folder(&path)
    }
}

/// Whether a name leads to something that bytes go through and that no file may take the place of.
fn is_stream(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|found| !found.is_dir() && (!found.is_file() || system_link(path).is_some()))
}

/// Opens a stream; standard output and standard error as they are, for what is written there by others comes before and
/// behind.
fn open_stream(path: &Path) -> io::Result<File> {
    let link = system_link(path).unwrap_or_default();
    let own = PathBuf::from(format!("/proc/{}/fd", std::process::id()));
    match link.strip_prefix(own).ok().and_then(Path::to_str) {
        Some("1") => io::stdout().as_fd().try_clone_to_owned().map(File::from),
        Some("2") => io::stderr().as_fd().try_clone_to_owned().map(File::from),
        _ => File::options().append(true).open(path),
    }
}

/// The last link in `/dev` or below `/proc` that a name leads through, if it does.
fn system_link(path: &Path) -> Option<PathBuf> {
    let (mut path, mut found) = (path.to_path_buf(), None);
    for _ in 0..LINKS {
        let Ok(target) = fs::read_link(&path) else { break };
        let folder = folder_of(&path).canonicalize().ok()?;
        if folder == Path::new("/dev") || folder.starts_with("/proc") {
            found = Some(folder.join(path.file_name()?));
        }
        path = folder.join(target);
    }
    found
}

/// How the names of a file's temporary files begin.
fn temporary_prefix(path: &Path) -> OsString {
    let mut prefix = OsString::from(".");
    prefix.push(path.file_name().unwrap_or_default());
    prefix.push(MARK);
    prefix
}

/// Makes a folder, with those that it lies in, for what `write` writes there. Where that fails, those that were made for it
/// are removed again as far as they are empty.
///
/// # Errors
/// When the folder cannot be made, or `write` fails.
pub fn in_folder<T>(folder: &Path, write: impl FnOnce() -> Result<T>) -> Result<T> {
    let new: Vec<&Path> = folder.ancestors().take_while(|f| !f.as_os_str().is_empty() && !f.exists()).collect();
    let made = fs::create_dir_all(folder).map_err(Error::io(folder, "create"));
    made.and_then(|()| write()).inspect_err(|_| new.iter().for_each(|folder| drop(fs::remove_dir(folder))))
}

/// Behind an error of a file named so that is not there, what the name is relative to; nothing of an absolute one.
pub fn relative_to(path: &Path) -> String {
    match std::env::current_dir() {
        Ok(here) if path.is_relative() => {
            format!(" (names are relative to the folder the program runs in, {})", here.display())
        }
        _ => String::new(),
    }
}

/// The folder that a path lies in.
pub fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn sync(path: &Path) -> Result<()> {
    File::open(path).and_then(|f| f.sync_all()).map_err(Error::io(path, "sync"))
}

fn sync_folder(path: &Path) -> Result<()> {
    let folder = folder_of(path);
    match File::open(folder).and_then(|d| d.sync_all()) {
        // Some file systems refuse to sync a folder; the rename itself has happened.
        Err(e) if e.kind() != io::ErrorKind::NotFound => Ok(()),
        other => other.map_err(Error::io(folder, "sync")),
    }
}

#[cfg(test)]
mod tests;
