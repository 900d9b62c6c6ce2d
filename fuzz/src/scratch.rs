//! Files for readers that want a path.

use std::fs;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

/// A folder in memory, if there is one, that goes when the process ends in order.
pub struct Scratch(TempDir);

impl Scratch {
    /// A new one.
    pub fn new() -> Scratch {
        let memory = Path::new("/dev/shm");
        let folder = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() };
        Scratch(folder.expect("a folder for scratch files"))
    }

    /// The path of a name in it.
    pub fn at(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// The same as text, for a prototxt.
    pub fn text(&self, name: &str) -> String {
        self.at(name).to_str().expect("an ASCII path").to_string()
    }

    /// Writes a file, and the folders it lies in.
    pub fn write(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.at(name);
        let folder = path.parent().expect("a path in a folder");
        fs::create_dir_all(folder).and_then(|()| fs::write(&path, bytes)).expect("scratch files can be written");
        path
    }

    /// The path of a name under which nothing lies any more.
    pub fn fresh(&self, name: &str) -> PathBuf {
        let path = self.at(name);
        if path.exists() {
            fs::remove_dir_all(&path).expect("scratch files can be removed");
        }
        path
    }
}
