//! Lists of image files with labels, as ImageData and `convert_imageset` read them: one image a line, the name, which may
//! have spaces, a space and a whole number.

use std::path::{Path, PathBuf};

use lgm_core::fs::relative_to;
use lgm_core::{Error, Result};
use lgm_proto::strings;

use crate::image::{self, Color, Raster};
use crate::warnings::{Alike, Flaw};

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
        ImageList::of_lines(path, root, |_, line| entry(line))
    }

    /// Reads the list `path` as Caffe's `convert_imageset` does: of what follows a line's last blank, the label is the number
    /// that C's `atoi` reads there, 0 if it reads none. A line that names no file has an empty name. The first of either is
    /// warned of.
    ///
    /// # Errors
    /// When the list cannot be read, names no file, or has a label of more than 32 bits.
    pub fn read_loosely(path: &Path, root: &str) -> Result<Self> {
        let (nameless, unlabelled, inexact) = (Alike::default(), Alike::default(), Alike::default());
        ImageList::of_lines(path, root, |number, line| {
            let at = || format!("{}: line {number}", path.display());
            let parts = line.rsplit_once([' ', '\t']);
            let (name, label) = parts.unwrap_or((line, line));
            if name.trim().is_empty() {
                nameless.add(|| format!("{} names no file and is passed over", at()));
                return Ok(("".into(), 0));
            }
            let read = atoi(label).ok_or_else(|| format!("expected a label of 32 bits, found '{label}'"))?;
            let is_number = label.trim_start_matches(['+', '-']).starts_with(|c: char| c.is_ascii_digit());
            if parts.is_none() || !is_number {
                unlabelled.add(|| format!("{}: '{line}' has no label; {read} is taken, as in Caffe", at()));
            } else if label.parse::<i32>().is_err() {
                inexact.add(|| format!("{}: the label '{label}' is taken for {read}, as in Caffe", at()));
            }
            Ok((name.into(), read))
        })
    }

    /// The list of what `entry` makes of each line, without blanks at its end, and its number.
    fn of_lines(
        path: &Path,
        root: &str,
        entry: impl Fn(usize, &str) -> Result<(Box<str>, i32), String>,
    ) -> Result<Self> {
        let bytes = std::fs::read(path).map_err(Error::io(path, "open the list of images"))?;
        let text = strings::of_file(&bytes);
        let images = (1..).zip(text.lines()).map(|(number, line)| {
            entry(number, line.trim_end()).map_err(|what| Error::data(path, format!("line {number}: {what}")))
        });
        let images = images.collect::<Result<Vec<_>>>()?;
        if images.iter().all(|(name, _)| name.is_empty()) {
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

    /// Decodes an image and brings it to a size, height first, if one is given; with what is amiss with it.
    ///
    /// # Errors
    /// When the file cannot be read or decoded; names list, line and file.
    pub fn decode(&self, index: usize, color: Color, size: Option<(usize, usize)>) -> Result<(Raster, Option<Flaw>)> {
        let file = self.file(index);
        let (mut image, flaw) = image::read_file(&file, color).map_err(|e| self.error(index, self.unread(index, e)))?;
        if let Some((height, width)) = size {
            image = image.resized(height, width).map_err(|e| self.error(index, format!("{}: {e}", file.display())))?;
        }
        Ok((image, flaw))
    }

    /// Why an image was not read, of the error of reading it.
    pub fn unread(&self, index: usize, e: Error) -> String {
        match e {
            Error::Io { source, .. } if source.kind() == std::io::ErrorKind::NotFound => {
                format!("'{}' does not exist{}", self.file(index).display(), self.hint(index))
            }
            other => other.to_string(),
        }
    }

    /// Where else a file that is not there may be.
    fn hint(&self, index: usize) -> String {
        let apart = strings::to_path(&self.root).join(strings::to_path(self.name(index)));
        if !self.root.is_empty() && !self.root.ends_with('/') && apart.is_file() {
            return format!("; the folder '{}' needs a slash at its end", self.root);
        }
        relative_to(&self.file(index))
    }
}

/// What C's `atoi` reads of a text: the whole number that it begins with, or 0; none where that has more than 32 bits.
fn atoi(text: &str) -> Option<i32> {
    let digits = text.strip_prefix(['+', '-']).unwrap_or(text);
    let behind = digits.trim_start_matches(|c: char| c.is_ascii_digit());
    if behind.len() == digits.len() {
        return Some(0);
    }
    text.strip_suffix(behind)?.parse().ok()
}

/// A line's name and label, or what it lacks.
fn entry(line: &str) -> Result<(Box<str>, i32), String> {
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
    fn loose_lines_are_read_as_atoi_reads() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("list.txt");
        let text = "a b.jpg 3\r\n\nc.jpg 1.7\nd 3abc\ne.jpg\n7.jpg\nf x\n 4\ng -2147483648\nh\t+5 \ni -x\n";
        std::fs::write(&path, text).unwrap();
        let list = ImageList::read_loosely(&path, "").unwrap();
        let found: Vec<_> = (0..list.len()).map(|i| (list.name(i), list.label(i))).collect();
        let mut want =
            vec![("a b.jpg", 3), ("", 0), ("c.jpg", 1), ("d", 3), ("e.jpg", 0), ("7.jpg", 7), ("f", 0), ("", 0)];
        want.extend([("g", i32::MIN), ("h", 5), ("i", 0)]);
        assert_eq!(found, want);
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
        for (text, what) in [
            ("\n \n", "list.txt: must list at least one image, but is empty"),
            ("a.jpg 1\nb.jpg 2147483648\n", "line 2: expected a label of 32 bits, found '2147483648'"),
        ] {
            std::fs::write(&path, text).unwrap();
            let error = ImageList::read_loosely(&path, "").unwrap_err().to_string();
            assert!(error.contains(what), "{error}");
        }
        let error = ImageList::read(&dir.path().join("none.txt"), "").unwrap_err().to_string();
        assert!(error.contains("none.txt: cannot open the list of images"), "{error}");
    }
}
