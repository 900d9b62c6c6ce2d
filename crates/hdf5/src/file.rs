//! Reading a file: what is in it, by name.

use std::os::fd::AsRawFd;
use std::path::Path;

use hdf5_metno::types::{FixedAscii, FixedUnicode};
use lgm_core::{Error, Result};
use lgm_proto::strings;

use crate::dataset::H5Dataset;
use crate::handle::H5File;
use crate::{filters, header, reason, walk};

/// Names that a message lists at most.
const LISTED: usize = 50;
/// Longest string written, a path's limit on Linux. Caffe writes strings of just their length and reads any length.
pub(crate) const STRING: usize = 4096;

impl H5File {
    /// Opens a file for reading.
    ///
    /// # Errors
    /// When it is missing, unreadable or not HDF5.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        // Asked of the system first: its reasons are clearer than the library's.
        let opened = std::fs::File::open(path).map_err(Error::io(path, "open"))?;
        // The library takes no names but in UTF-8.
        let by_number = format!("/proc/self/fd/{}", opened.as_raw_fd());
        let file = hdf5_metno::File::open(path.to_str().unwrap_or(&by_number))
            .map_err(|e| Error::data(path, format!("cannot be read as an HDF5 file: {}", reason(&e))))?;
        let file = H5File::new(path, file);
        header::check_group(&file, &file.file, "")?;
        Ok(file)
    }

    /// The names of all datasets, groups included (`group/name`), in alphabetical order within a group. A group that
    /// several links name is listed under each, but not within itself.
    ///
    /// # Errors
    /// When the file is damaged, or holds more than a file that means well.
    pub fn datasets(&self) -> Result<Vec<String>> {
        let mut names = Vec::new();
        for group in walk::groups(self, &self.file)? {
            let path = |name| if group.name.is_empty() { name } else { format!("{}/{name}", group.name) };
            names.extend(group.datasets.into_iter().map(path));
        }
        Ok(names)
    }

    /// Whether there is a link of this name, which may hold groups.
    pub fn contains(&self, name: &str) -> bool {
        let parts: Vec<&str> = name.split('/').filter(|part| !part.is_empty()).collect();
        (1..=parts.len()).all(|n| {
            let path = parts[..n].join("/");
            self.file.link_exists(&path) && (n == parts.len() || self.group(&path).is_ok())
        })
    }

    fn group(&self, of: &str) -> Result<hdf5_metno::Group> {
        let group = self.file.group(of).map_err(|e| self.fail(format!("has no group '{of}': {}", reason(&e))))?;
        header::check_group(self, &group, of)?;
        Ok(group)
    }

    /// Opens a dataset of numbers.
    ///
    /// # Errors
    /// When it is missing (the message lists what is there), cannot be read (the message has the library's reason) or does
    /// not hold numbers.
    pub fn dataset(&self, name: &str) -> Result<H5Dataset> {
        if !self.contains(name) {
            return Err(self.fail(format!("no dataset named '{name}' ({})", self.found())));
        }
        H5Dataset::new(self, name, self.open_dataset(name)?)
    }

    fn open_dataset(&self, name: &str) -> Result<hdf5_metno::Dataset> {
        header::check(self, name)?;
        let fail = |e| self.fail(format!("'{name}' cannot be read as a dataset: {}", reason(&e)));
        let dataset = self.file.dataset(name).map_err(fail)?;
        if dataset.is_chunked() {
            filters::check(self, name, &dataset)?;
        }
        Ok(dataset)
    }

    fn found(&self) -> String {
        match self.datasets() {
            Ok(names) if names.is_empty() => "datasets found: none".into(),
            Ok(names) if names.len() > LISTED => {
                format!(
                    "datasets found: {} and {} more",
                    names[..LISTED].join(", "),
                    names.len().saturating_sub(LISTED)
                )
            }
            Ok(names) => format!("datasets found: {}", names.join(", ")),
            Err(e) => format!("what is there cannot be listed: {e}"),
        }
    }

    /// The one number of a dataset.
    ///
    /// # Errors
    /// As [`H5File::dataset`], and when it holds none or several.
    pub fn integer(&self, name: &str) -> Result<i32> {
        let mut number = [0];
        self.dataset(name)?.read_into(&mut number)?;
        Ok(number[0])
    }

    /// A string of fixed length, as Caffe and this program write them.
    ///
    /// # Errors
    /// When it is missing, or none.
    pub fn text(&self, name: &str) -> Result<String> {
        let dataset = self.open_dataset(name)?;
        let read = || {
            let size = dataset.dtype()?.size();
            if size > STRING {
                return Err(format!("it is {size} bytes long, expected {STRING} at most").into());
            }
            // Nothing says that the bytes are text, though the library takes them for it. Text has the characters that stand for bytes
            // as `H5Image::text` writes them.
            let text = |bytes: &[u8]| match std::str::from_utf8(bytes) {
                Ok(text) => text.to_string(),
                Err(_) => strings::from_bytes(bytes).into_owned(),
            };
            match dataset.read_scalar::<FixedAscii<STRING>>() {
                Ok(found) => Ok(text(found.as_bytes())),
                Err(_) => Ok(text(dataset.read_scalar::<FixedUnicode<STRING>>()?.as_bytes())),
            }
        };
        read().map_err(|e| self.fail(format!("'{name}' cannot be read as a string: {}", reason(&e))))
    }

    /// The groups under the group `of` that stand for something: the innermost ones, and those that hold datasets too. Names
    /// are paths below `of`.
    ///
    /// # Errors
    /// When there is no such group, it is damaged, or it holds more than a file that means well.
    pub fn groups(&self, of: &str) -> Result<Vec<crate::H5Group>> {
        walk::groups(self, &self.group(of)?)
    }

    /// Number of links in the group `of`.
    ///
    /// # Errors
    /// When there is no such group.
    pub fn members(&self, of: &str) -> Result<usize> {
        Ok(usize::try_from(self.group(of)?.len()).unwrap_or(usize::MAX))
    }
}
