//! What can be wrong with a file, and where.

use std::fmt;
use std::path::{Path, PathBuf};

/// A result whose error is [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A place in a text file, for messages: `net.prototxt:12:3`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Position {
    /// The file as the user named it.
    pub file: PathBuf,
    /// Line, from 1.
    pub line: usize,
    /// Column, from 1, in characters.
    pub column: usize,
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.file.display(), self.line, self.column)
    }
}

/// Why a file could not be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A prototxt breaks the rules of the text format or of the schema.
    #[error("{at}: {what}")]
    Text {
        /// Where.
        at: Position,
        /// What was expected, what was found, and the nearest known name if there is one.
        what: String,
    },
    /// A binary file is damaged, cut short or of another kind.
    #[error("{}: {what}", path.display())]
    Binary {
        /// The file.
        path: PathBuf,
        /// What is wrong with it and what was expected.
        what: String,
    },
    /// A stored array contradicts itself; the caller knows whose it is.
    #[error("{what}")]
    Blob {
        /// What is wrong with it and what was expected.
        what: String,
    },
    /// The operating system refused.
    #[error("{}: cannot {doing}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The attempted act, as in "cannot …".
        doing: &'static str,
        /// The system's reason.
        source: std::io::Error,
    },
}

impl Error {
    /// An [`Error::Binary`].
    pub(crate) fn binary(path: impl AsRef<Path>, what: impl Into<String>) -> Self {
        Error::Binary { path: path.as_ref().into(), what: what.into() }
    }

    /// Fails if there are faults in a text, with all of them in the order of the text.
    ///
    /// # Errors
    /// [`Error::Text`] at the first; the others follow it on lines of their own.
    pub fn all(mut faults: Vec<(Position, String)>) -> Result<()> {
        faults.sort_by_key(|(at, _)| (at.line, at.column));
        let mut faults = faults.into_iter();
        let Some((at, what)) = faults.next() else { return Ok(()) };
        let what = faults.fold(what, |all, (at, what)| format!("{all}\n{at}: {what}"));
        Err(Error::Text { at, what })
    }

    /// An adapter for `map_err`: `fs::read(p).map_err(Error::io(p, "read"))`.
    pub(crate) fn io(path: impl AsRef<Path>, doing: &'static str) -> impl FnOnce(std::io::Error) -> Error {
        let path = path.as_ref().to_path_buf();
        move |source| Error::Io { path, doing, source }
    }
}
