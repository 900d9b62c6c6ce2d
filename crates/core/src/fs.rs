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
        let tmp = Builder::new().prefix(&temporary_prefix(path)).rand_bytes(RANDOM).make_in(folder, |tmp| {
            let file = File::options().write(true).create_new(true).open(tmp);
            file.inspect_err(|e| refused = e.raw_os_error())
        });
        // The system's own reason: the library's adds the temporary name.
        let tmp = tmp.map_err(|e| Error::io(path, "create")(refused.map_or(e, io::Error::from_raw_os_error)))?;
        // Some file systems have no locks; there, what a killed process leaves stays.
        let _ = tmp.as_file().try_lock();
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

/// Removes temporary files that killed processes left in a folder, of those files whose names `whose` wants. Gives what was
/// removed.
pub fn remove_unfinished(folder: &Path, whose: impl Fn(&str) -> bool) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let mut removed = Vec::new();
    for entry in entries.flatten() {
        let name = entry.file_name();
        let name = strings::from_path(&name);
        let name = name.strip_prefix('.').and_then(|name| name.rsplit_once(MARK));
        // Not through a link, which may lead to a file that is somebody's.
        let plain = entry.file_type().is_ok_and(|kind| kind.is_file());
        if !plain || !name.is_some_and(|(name, _)| whose(name)) {
            continue;
        }
        let file =
            File::options().write(true).custom_flags(rustix::fs::OFlags::NOFOLLOW.bits() as i32).open(entry.path());
        if file.is_ok_and(|file| file.try_lock().is_ok()) && fs::remove_file(entry.path()).is_ok() {
            removed.push(entry.path());
        }
    }
    removed
}

/// A folder under a temporary name beside its place, which it takes when it is published. Dropped before, it is removed.
#[must_use = "a staged folder is removed unless it is published"]
pub struct StagedFolder {
    tmp: TempDir,
    path: PathBuf,
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
        let (prefix, mode) = (temporary_prefix(path), Permissions::from_mode(0o777));
        let tmp = Builder::new().prefix(&prefix).rand_bytes(RANDOM).permissions(mode).tempdir_in(folder_of(path));
        Ok(StagedFolder { tmp: tmp.map_err(Error::io(path, "create"))?, path: path.into() })
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
        let StagedFolder { tmp, path } = self;
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

/// The folder that a path lies in.
fn folder_of(path: &Path) -> &Path {
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
    fn a_pipe_is_written_to_and_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pipe");
        assert!(std::process::Command::new("mkfifo").arg(&path).status().unwrap().success());
        let reader = std::thread::spawn({
            let path = path.clone();
            move || fs::read_to_string(path).unwrap()
        });
        write_bytes(&path, b"whole").unwrap();
        assert_eq!(reader.join().unwrap(), "whole");
        assert!(is_stream(&path));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn links_of_the_system_are_followed_and_what_they_lead_to_grows() {
        use std::os::fd::AsRawFd;
        let dir = tempfile::tempdir().unwrap();
        let (path, link) = (dir.path().join("redirected"), dir.path().join("link"));
        fs::write(&path, "before, ").unwrap();
        let file = File::open(&path).unwrap();
        let system = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
        std::os::unix::fs::symlink(&system, &link).unwrap();
        write_bytes(&system, b"bytes, ").unwrap();
        write_atomic::<Error>(&link, |t| fs::write(t, "more").map_err(Error::io(t, "write"))).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "before, bytes, more");
        assert_eq!(fs::read_link(&link).unwrap(), system);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
    }

    #[test]
    fn names_are_new_each_time_and_planted_links_are_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let (victim, path) = (dir.path().join("victim"), dir.path().join("a"));
        fs::write(&victim, "precious").unwrap();
        std::os::unix::fs::symlink(&victim, &path).unwrap();
        let mut names = Vec::new();
        for _ in 0..2 {
            write_atomic::<Error>(&path, |t| {
                names.push(t.to_path_buf());
                fs::write(t, "new").map_err(Error::io(t, "write"))
            })
            .unwrap();
        }
        assert_ne!(names[0], names[1]);
        assert!(!fs::symlink_metadata(&path).unwrap().is_symlink());
        write_bytes(&path, b"bytes").unwrap();
        assert_eq!((fs::read(&path).unwrap(), fs::read(&victim).unwrap()), (b"bytes".to_vec(), b"precious".to_vec()));
        let plain = fs::File::create(dir.path().join("plain")).unwrap().metadata().unwrap().permissions();
        assert_eq!(fs::metadata(&path).unwrap().permissions(), plain, "as any file that this process makes");
    }

    #[test]
    fn what_killed_processes_left_is_removed_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        for name in [".a_iter_1.x.tmp-123", ".b_iter_1.x.tmp-123", "a_iter_1.x.tmp-123", ".a_iter_1.x"] {
            fs::write(at(name), "").unwrap();
        }
        std::os::unix::fs::symlink(at(".a_iter_1.x"), at(".a_iter_2.x.tmp-5")).unwrap();
        let under_way = Staged::bytes(&at("a_iter_3.x"), b"half").unwrap();
        assert_eq!(remove_unfinished(dir.path(), |name| name.starts_with("a_iter_")), [at(".a_iter_1.x.tmp-123")]);
        publish_all([under_way]).unwrap();
        assert_eq!(fs::read(at("a_iter_3.x")).unwrap(), b"half");
        assert!(at(".a_iter_1.x").exists() && at(".a_iter_2.x.tmp-5").is_symlink());
    }

    #[test]
    fn folders_appear_whole_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("db");
        drop(StagedFolder::create(&path).unwrap());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        let folder = StagedFolder::create(&path).unwrap();
        fs::write(folder.path().join("f"), "1").unwrap();
        assert!(!path.exists());
        folder.publish().unwrap();
        assert!(path.join("f").exists());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        assert!(StagedFolder::create(&path).is_err());
    }
}
