//! The lists of windows that WindowData reads, as R-CNN writes them. For each image:
//!
//! ```text
//! # 0                       the image's number, from 0 on
//! images/0001.jpg           the file
//! 3                         channels, which are not used
//! 375                       height
//! 500                       width
//! 2                         the number of windows, each on a line:
//! 7 0.83 12 30 211 240      class, overlap with an object, left, top, right, bottom (both inside)
//! 7 0.11 1 1 80 95
//! ```
//!
//! Numbers and the file's name may be set apart by any blanks.

use std::path::{Path, PathBuf};
use std::str::FromStr;

use lgm_core::{Error, Result};
use lgm_proto::strings;

/// A window on an image.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Region {
    /// The index of the image in the list.
    pub image: u32,
    /// The line of the list it stands on.
    pub line: u32,
    pub label: i32,
    /// Left, top, right and bottom pixel, all inside.
    pub x1: i32,
    pub y1: i32,
    pub x2: i32,
    pub y2: i32,
}

/// The images of a list, and their windows by whether they show an object.
#[derive(Debug, Default)]
pub(crate) struct WindowFile {
    pub files: Vec<PathBuf>,
    /// Windows with an overlap of at least the threshold.
    pub foreground: Vec<Region>,
    /// Windows with an overlap below the other threshold; their class is 0.
    pub background: Vec<Region>,
}

impl WindowFile {
    /// Reads the list `path`. `root` is put before every file's name as it is.
    ///
    /// # Errors
    /// When the list cannot be read, or is not as the module says; names the line.
    pub fn read(path: &Path, root: &str, fg_threshold: f32, bg_threshold: f32) -> Result<Self> {
        let bytes = std::fs::read(path).map_err(Error::io(path, "open the list of windows"))?;
        let text = strings::of_file(&bytes);
        let mut words = Words::of(path, &text);
        let mut found = WindowFile::default();
        while words.are_left() {
            words.hash()?;
            let number: usize = words.next("the image's number")?;
            if number != found.files.len() {
                let what = format!("expected image number {}, found {number}; images count from 0", found.files.len());
                return Err(words.error(what));
            }
            let image = u32::try_from(number).map_err(|_| words.error("has more images than can be counted"))?;
            found.files.push(strings::to_path(&format!("{root}{}", words.word("the image's file")?.1)));
            for extent in ["the image's channels", "the image's height", "the image's width"] {
                words.next::<u32>(extent)?;
            }
            for _ in 0..words.next::<u32>("the number of windows")? {
                let label: i32 = words.next("a window's class")?;
                let overlap: f32 = words.next("a window's overlap")?;
                let [x1, y1, x2, y2] = [words.next("x1")?, words.next("y1")?, words.next("x2")?, words.next("y2")?];
                let region = Region { image, line: words.line as u32, label, x1, y1, x2, y2 };
                if x2 < x1 || y2 < y1 {
                    return Err(words.error(format!("the window from ({x1}, {y1}) to ({x2}, {y2}) holds no pixel")));
                }
                if overlap >= fg_threshold {
                    if label <= 0 {
                        let what = format!("a window of overlap {overlap} needs a class above 0, found {label}");
                        return Err(words.error(what));
                    }
                    found.foreground.push(region);
                } else if overlap < bg_threshold {
                    found.background.push(Region { label: 0, ..region });
                }
            }
        }
        if found.files.is_empty() {
            return Err(Error::data(path, "must list at least one image, but is empty"));
        }
        Ok(found)
    }
}

/// The words of a text, with their lines.
struct Words<'a> {
    path: &'a Path,
    words: std::iter::Peekable<Box<dyn Iterator<Item = (usize, &'a str)> + 'a>>,
    /// That of the last word.
    line: usize,
}

impl<'a> Words<'a> {
    fn of(path: &'a Path, text: &'a str) -> Self {
        let words =
            (1..).zip(text.lines()).flat_map(|(line, text)| text.split_whitespace().map(move |word| (line, word)));
        let words: Box<dyn Iterator<Item = (usize, &'a str)> + 'a> = Box::new(words);
        Words { path, words: words.peekable(), line: 0 }
    }

    fn are_left(&mut self) -> bool {
        self.words.peek().is_some()
    }

    fn error(&self, what: impl std::fmt::Display) -> Error {
        Error::data(self.path, format!("line {}: {what}", self.line))
    }

    fn word(&mut self, what: &str) -> Result<(usize, &'a str)> {
        let Some(word) = self.words.next() else {
            return Err(self.error(format!("the list ends here; expected {what}")));
        };
        self.line = word.0;
        Ok(word)
    }

    fn next<T: FromStr>(&mut self, what: &str) -> Result<T> {
        let (_, word) = self.word(what)?;
        word.parse().map_err(|_| self.error(format!("expected {what}, a number, found '{word}'")))
    }

    fn hash(&mut self) -> Result<()> {
        match self.word("'#'")? {
            (_, "#") => Ok(()),
            (_, other) => Err(self
                .error(format!("expected '#', which begins an image, found '{other}'; is a number of windows wrong?"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<WindowFile> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("windows.txt");
        std::fs::write(&path, text).unwrap();
        WindowFile::read(&path, "images/", 0.5, 0.3)
    }

    #[test]
    fn windows_are_sorted_by_their_overlap() {
        let found =
            read("# 0\na.png\n3\n20 24\n3\n3 0.8 1 3 15 12\n2 0.29 0 0 9 9\n1 0.4 0 0 1 1\n# 1 b.png 3 18 16 0\n")
                .unwrap();
        assert_eq!(found.files, ["images/a.png", "images/b.png"].map(PathBuf::from));
        let region = |line, label, [x1, y1, x2, y2]: [i32; 4]| Region { image: 0, line, label, x1, y1, x2, y2 };
        assert_eq!(found.foreground, [region(6, 3, [1, 3, 15, 12])]);
        assert_eq!(found.background, [region(7, 0, [0, 0, 9, 9])]);
    }

    #[test]
    fn mistakes_are_told_with_their_line() {
        for (text, what) in [
            ("", "windows.txt: must list at least one image, but is empty"),
            ("# 1\n", "line 1: expected image number 0, found 1; images count from 0"),
            ("a.png", "line 1: expected '#', which begins an image, found 'a.png'"),
            ("# 0 a 3 5 5 1\n1 1 0 0 2 2\n1 1 0 0 2 2\n", "line 3: expected '#'"),
            ("# 0 a\n3 5 5 2\n1 1 0 0 2 2\n", "line 3: the list ends here; expected a window's class"),
            ("# 0 a\n3 x 5\n", "line 2: expected the image's height, a number, found 'x'"),
            ("# 0 a 3 5 5 1\n0 1 0 0 2 2\n", "line 2: a window of overlap 1 needs a class above 0, found 0"),
            ("# 0 a 3 5 5 1\n1 1 3 0 2 2\n", "line 2: the window from (3, 0) to (2, 2) holds no pixel"),
        ] {
            let error = read(text).unwrap_err().to_string();
            assert!(error.contains(what), "{error}");
        }
        let error = WindowFile::read(Path::new("/nonexistent"), "", 0.5, 0.5).unwrap_err().to_string();
        assert!(error.contains("/nonexistent: cannot open the list of windows"), "{error}");
    }
}
