//! A file opened for reading.

use std::path::{Path, PathBuf};

use lgm_core::{Error, Result};

/// The first bytes of every HDF5 file.
pub(crate) const MAGIC: [u8; 8] = *b"\x89HDF\r\n\x1a\n";

/// Whether a file is HDF5, by its first bytes.
///
/// # Errors
/// When it cannot be read.
pub fn is_hdf5(path: &Path) -> Result<bool> {
    use std::io::Read;
    let mut head = Vec::new();
    let file = std::fs::File::open(path).map_err(Error::io(path, "open"))?;
    file.take(8).read_to_end(&mut head).map_err(Error::io(path, "read"))?;
    Ok(head == MAGIC)
}

/// An HDF5 file opened for reading.
pub struct H5File {
    path: PathBuf,
    pub(crate) file: hdf5_metno::File,
}

impl H5File {
    pub(crate) fn new(path: &Path, file: hdf5_metno::File) -> Self {
        H5File { path: path.into(), file }
    }

    /// The file's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn fail(&self, what: impl Into<String>) -> Error {
        Error::data(&self.path, what)
    }
}
