//! What can be wrong with a file, and where.

use std::fmt;
use std::path::{Path, PathBuf};

use crate::FileKind;

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
    /// A prototxt breaks the rules of the text format or of the schema, or cannot be upgraded.
    #[error("{at}: {fault}")]
    Text {
        /// Where.
        at: Position,
        /// What is wrong there.
        fault: Fault,
    },
    /// Several errors, each on a line of its own.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
    Several(Vec<Error>),
    /// A binary file is damaged, cut short or of another kind.
    #[error("{}: {fault}", path.display())]
    Binary {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        fault: BinaryFault,
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

/// What is wrong at a place of a text.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Fault {
    /// The text breaks the rules of the text format, or a value is not of its field's type.
    #[error("{0}")]
    Syntax(String),
    /// A field that its message does not have.
    #[error("unknown field '{field}' in {message}{hint}")]
    UnknownField {
        /// The field.
        field: String,
        /// The message's type.
        message: String,
        /// The rest of the sentence: the nearest field, or all there are.
        hint: String,
    },
    /// A name or number that the field's enum does not have.
    #[error("unknown value '{value}' for {field}{hint}")]
    UnknownValue {
        /// The field.
        field: String,
        /// The value.
        value: String,
        /// The rest of the sentence: the nearest value, or all there are.
        hint: String,
    },
    /// A message without one of its required fields.
    #[error("{message} needs a field '{field}', which is missing")]
    MissingField {
        /// The message's field.
        message: String,
        /// The field that it lacks.
        field: String,
    },
    /// A number that its field cannot have.
    #[error("{field} {must}, found {found}")]
    Number {
        /// The field.
        field: String,
        /// The rule, as in "must not be negative".
        must: &'static str,
        /// The number.
        found: String,
    },
    /// A setting of a fork that would change results and is not supported.
    #[error("{0}")]
    Unsupported(String),
    /// An older net or solver that cannot be upgraded.
    #[error("{0}")]
    Upgrade(String),
}

impl Fault {
    /// An [`Error::Text`] of this fault.
    pub fn at(self, at: Position) -> Error {
        Error::Text { at, fault: self }
    }
}

/// What is wrong with a binary file.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BinaryFault {
    /// It has no bytes.
    #[error("the file is empty")]
    Empty,
    /// It is in HDF5's format.
    #[error("expected a protobuf file, found an HDF5 file; name it with the extension .h5")]
    Hdf5,
    /// It is recognised as a file of another kind.
    #[error("expected {wanted}, found {}", found.described())]
    OtherKind {
        /// The kind that was expected.
        wanted: FileKind,
        /// The kind that it is.
        found: FileKind,
    },
    /// Its bytes are no message of the expected type.
    #[error("damaged, cut short, or not a binary file of Caffe's: {0}")]
    Damaged(#[from] WireFault),
}

/// Where bytes stop being a protobuf message.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WireFault {
    /// No field's key.
    #[error("at byte {0}, no field begins")]
    NoField(usize),
    /// A number that goes on to the end of the bytes.
    #[error("at byte {0}, a number does not end")]
    Number(usize),
    /// A length that goes on to the end of the bytes.
    #[error("at byte {0}, a length does not end")]
    Length(usize),
    /// A group, which no message of Caffe's has.
    #[error("at byte {0}, a group begins or ends, which no message of Caffe's has")]
    Group(usize),
    /// A field longer than the bytes that are left.
    #[error("at byte {at}, field {number} needs {length} bytes, but only {left} are left")]
    Short {
        /// Where the field begins.
        at: usize,
        /// The field's number.
        number: u64,
        /// The length that it claims.
        length: usize,
        /// The bytes that are left.
        left: usize,
    },
    /// Fields that are whole but of other types than the schema's.
    #[error("does not hold what was expected ({0})")]
    Content(#[from] prost::DecodeError),
}

impl Error {
    /// An [`Error::Binary`].
    pub(crate) fn binary(path: impl AsRef<Path>, fault: impl Into<BinaryFault>) -> Self {
        Error::Binary { path: path.as_ref().into(), fault: fault.into() }
    }

    /// Fails if there are faults in a text, with all of them in the order of the text.
    ///
    /// # Errors
    /// [`Error::Text`], or [`Error::Several`] of them.
    pub fn all(mut faults: Vec<(Position, Fault)>) -> Result<()> {
        faults.sort_by_key(|(at, _)| (at.line, at.column));
        let mut errors: Vec<_> = faults.into_iter().map(|(at, fault)| fault.at(at)).collect();
        match errors.len() {
            0 => Ok(()),
            1 => Err(errors.remove(0)),
            _ => Err(Error::Several(errors)),
        }
    }

    /// An adapter for `map_err`: `fs::read(p).map_err(Error::io(p, "read"))`.
    pub(crate) fn io(path: impl AsRef<Path>, doing: &'static str) -> impl FnOnce(std::io::Error) -> Error {
        let path = path.as_ref().to_path_buf();
        move |source| Error::Io { path, doing, source }
    }
}
