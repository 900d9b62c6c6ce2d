//! Lists of image files with labels, as ImageData and `convert_imageset` read them: one image a line, the name, which may
//! have spaces, a space and a whole number.

use std::path::{Path, PathBuf};

use lgm_core::{Error, Result};
use lgm_proto::strings;

use crate::image::{self, Color, Raster};

/// The images of a list, in its order.
#[derive(Debug)]
pub(crate) struct ImageList {
    path: PathBuf,
    root: String,
    /// What lines hold; the first is line 1.
    images: Vec<(Box<str>, i32)>,
}

impl ImageList {
    /// Reads the list `path`. `root` is put before every name as it is.
    ///
    /// # Errors
    /// When the list cannot be read, holds no line, or one that is no name with a label.
    pub fn read(path: &Path, root: &str) -> Result<Self> {
        let bytes = std::fs::read(path).map_err(Error::io(path, "open the list of images"))?;
        let text = strings::of_file(&bytes);
        let images = text.lines().enumerate().map(|(i, line)| {
            entry(line).map_err(|what| Error::data(path, format!("line {}: {what}", i.saturating_add(1))))
        });
        let images = images.collect::<Result<Vec<_>>>()?;
        if images.is_empty() {
            return Err(Error::data(path, "must list at least one image, but is empty"));
        }
        Ok(ImageList { path: path.into(), root: root.into(), images })
    }

    /// The number of images; at least one.
    pub fn len(&self) -> usize {
        self.images.len()
    }

    /// The list's own path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The name of an image, as the list has it.
    pub fn name(&self, index: usize) -> &str {
        self.images.get(index).map_or("", |(name, _)| name)
    }

    /// The label of an image.
    pub fn label(&self, index: usize) -> i32 {
        self.images.get(index).map_or(0, |(_, label)| *label)
    }

    /// The file of an image.
    pub fn file(&self, index: usize) -> PathBuf {
        strings::to_path(&format!("{}{}", self.root, self.name(index)))
    }

    /// What is wrong with an image, with its line.
    pub fn error(&self, index: usize, what: impl std::fmt::Display) -> Error {
        Error::data(&self.path, format!("line {}: {what}", index.saturating_add(1)))
    }

    /// Decodes an image and brings it to a size, height first, if one is given.
    ///
    /// # Errors
    /// When the file cannot be read or decoded; names list, line and file.
    pub fn decode(&self, index: usize, color: Color, size: Option<(usize, usize)>) -> Result<Raster> {
        let file = self.file(index);
        let image = image::read_file(&file, color).map_err(|e| match e {
            Error::Io { source, .. } if source.kind() == std::io::ErrorKind::NotFound => {
                self.error(index, format!("'{}' does not exist{}", file.display(), self.hint(index)))
            }
            other => self.error(index, other),
        })?;
        match size {
            Some((height, width)) => {
                image.resized(height, width).map_err(|e| self.error(index, format!("{}: {e}", file.display())))
            }
            None => Ok(image),
        }
    }

    /// Where else a file that is not there may be.
    fn hint(&self, index: usize) -> String {
        let apart = strings::to_path(&self.root).join(strings::to_path(self.name(index)));
        if !self.root.is_empty() && !self.root.ends_with('/') && apart.is_file() {
            return format!("; the folder '{}' needs a slash at its end", self.root);
        }
        match Path::new(&self.root).is_absolute() || Path::new(self.name(index)).is_absolute() {
            true => String::new(),
            false => {
                let here = std::env::current_dir().unwrap_or_default();
                format!(" (names are relative to the folder the program runs in, {})", here.display())
            }
        }
    }
}

/// A line's name and label, or what it lacks.
fn entry(line: &str) -> Result<(Box<str>, i32), String> {
    let line = line.trim_end();
    if line.trim_start().is_empty() {
        return Err("is empty; expected a file name, a space and a label".into());
    }
    let Some((name, label)) = line.rsplit_once([' ', '\t']).filter(|(name, _)| !name.trim().is_empty()) else {
        return Err(format!("'{line}' has no label; expected a file name, a space and a label"));
    };
    match label.parse() {
        Ok(label) => Ok((name.into(), label)),
        Err(_) => Err(format!("expected a label, a whole number, at the end, found '{label}'")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_spaces_and_labels_come_last() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("list.txt");
        std::fs::write(&path, "a b/1 2.jpg 3\nc.png -1\r\nd\t7 \n").unwrap();
        let list = ImageList::read(&path, "images/").unwrap();
        let found: Vec<_> = (0..list.len()).map(|i| (list.file(i), list.label(i))).collect();
        let want = [("images/a b/1 2.jpg", 3), ("images/c.png", -1), ("images/d", 7)];
        assert_eq!(found, want.map(|(name, label)| (PathBuf::from(name), label)));
    }

    #[test]
    fn lines_that_are_none_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("list.txt");
        for (text, what) in [
            ("", "list.txt: must list at least one image, but is empty"),
            ("a.jpg 1\n\nb.jpg 2\n", "list.txt: line 2: is empty; expected a file name, a space and a label"),
            ("a.jpg\n", "list.txt: line 1: 'a.jpg' has no label; expected"),
            (" 1\n", "list.txt: line 1: ' 1' has no label"),
            ("a 1\nb.jpg one\n", "line 2: expected a label, a whole number, at the end, found 'one'"),
            ("a 99999999999\n", "found '99999999999'"),
        ] {
            std::fs::write(&path, text).unwrap();
            let error = ImageList::read(&path, "").unwrap_err().to_string();
            assert!(error.contains(what), "{error}");
        }
        let error = ImageList::read(&dir.path().join("none.txt"), "").unwrap_err().to_string();
        assert!(error.contains("none.txt: cannot open the list of images"), "{error}");
    }
}
