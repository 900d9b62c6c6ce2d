//! The one error type of the crates: what went wrong, and where in the user's files.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::Shape;

/// A result whose error is [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

pub use lgm_proto::Position;

/// What can go wrong between a prototxt and a trained net.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A net, layer or solver asks for something that cannot be done; the text says what to mend.
    #[error("{0}")]
    Config(String),
    /// Two shapes that had to agree do not.
    #[error("{what}: expected shape {expected}, found {found}")]
    Shape {
        /// What the shapes belong to.
        what: String,
        /// The shape that was needed.
        expected: Shape,
        /// The shape that was there.
        found: Shape,
    },
    /// Data on disk is missing, damaged or not what was asked for.
    #[error("{}: {what}", path.display())]
    Data {
        /// The file or folder.
        path: PathBuf,
        /// What is wrong with it and what was expected.
        what: String,
    },
    /// The operating system refused.
    #[error("{}: cannot {doing}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The attempted act, as in "cannot …".
        doing: &'static str,
        /// The system's reason.
        source: io::Error,
    },
    /// Something wants more memory than there is.
    #[error("{what} takes {}, but there are only {available}", crate::memory::in_units(*wanted))]
    Memory {
        /// What wants it: a layer's blobs, a parameter, a file's records.
        what: String,
        /// Bytes it takes.
        wanted: u64,
        /// What there is.
        available: crate::memory::Available,
    },
    /// A name that is none of those there are.
    #[error("{what} '{found}'{}{among}", hint.as_ref().map(|near| format!("; did you mean '{near}'?")).unwrap_or_default())]
    Unknown {
        /// What it should have named, as in "unknown layer type".
        what: String,
        /// The name.
        found: String,
        /// The nearest name there is, where one is near.
        hint: Option<String>,
        /// The rest of the sentence: all that there are, or nothing.
        among: String,
    },
    /// Several errors, each on a line of its own.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
    Several(Vec<Error>),
    /// A loss, a gradient or a parameter that is NaN or infinite.
    #[error("{0}")]
    NotFinite(String),
    /// A device, its driver or one of its libraries refused or failed.
    #[error("{text}")]
    Device {
        /// Which device, which call, what it answered and what to try.
        text: String,
        /// The device takes no more work: what it held is gone, and only a new process can use it again.
        lost: bool,
    },
    /// A device has less memory than is wanted.
    #[error("{text}")]
    DeviceMemory {
        /// What wants how much of which device, and what to try.
        text: String,
        /// Bytes wanted.
        wanted: u64,
        /// Bytes free.
        free: u64,
    },
    /// A run that ended by an error, and what became of what it had done.
    #[error("{source}; {note}")]
    Ended {
        /// What ended it.
        source: Box<Error>,
        /// What was saved, or from what to resume.
        note: String,
    },
    /// The text of a prototxt is malformed; the message carries file, line and column.
    #[error(transparent)]
    Proto(#[from] lgm_proto::Error),
    /// An error that belongs to one layer of a net.
    #[error("{}layer '{layer}'{}: {source}", placed(at.as_ref()), in_brackets(kind))]
    Layer {
        /// The layer's name.
        layer: String,
        /// The layer's type.
        kind: String,
        /// Where the layer stands in the prototxt.
        at: Option<Position>,
        /// What happened there.
        source: Box<Error>,
    },
    /// An error about one field of a solver.
    #[error("{}solver field '{field}': {source}", placed(at.as_ref()))]
    Field {
        /// The field's name.
        field: String,
        /// Where the field stands in the prototxt.
        at: Option<Position>,
        /// What is wrong with it.
        source: Box<Error>,
    },
    /// An error of something that is done once, for everyone who asks for it.
    #[error(transparent)]
    Shared(#[from] Arc<Error>),
    /// A defect of lgm-caffe itself; never the user's doing.
    #[error("internal error, please report it: {0}")]
    Internal(String),
}

impl Error {
    /// An [`Error::Config`].
    pub fn config(text: impl Into<String>) -> Self {
        Error::Config(text.into())
    }

    /// An [`Error::Unknown`] of a name that is none of `known`, without a list of them.
    pub fn unknown<'a>(what: impl Into<String>, found: &str, known: impl IntoIterator<Item = &'a str>) -> Self {
        let hint = nearest(found, known).map(str::to_string);
        Error::Unknown { what: what.into(), found: found.into(), hint, among: String::new() }
    }

    /// An [`Error::Unknown`] of a name that is none of `known`, with all of them.
    pub fn unknown_among(what: impl Into<String>, found: &str, known: &[&str]) -> Self {
        let hint = nearest(found, known.iter().copied()).map(str::to_string);
        let among = format!(" (there are {})", known.join(", "));
        Error::Unknown { what: what.into(), found: found.into(), hint, among }
    }

    /// An [`Error::Device`] after which the device still answers.
    pub fn device(text: impl Into<String>) -> Self {
        Error::Device { text: text.into(), lost: false }
    }

    /// The same kind of error, with what was being done before its text.
    #[must_use]
    pub fn while_doing(self, what: impl std::fmt::Display) -> Self {
        match self {
            Error::Device { text, lost } => Error::Device { text: format!("{what}: {text}"), lost },
            Error::DeviceMemory { text, wanted, free } => {
                Error::DeviceMemory { text: format!("{what}: {text}"), wanted, free }
            }
            other => Error::Config(format!("{what}: {other}")),
        }
    }

    /// The error itself, without the layer, the field or the run that it is wrapped in.
    pub fn root(&self) -> &Error {
        match self {
            Error::Layer { source, .. } | Error::Field { source, .. } | Error::Ended { source, .. } => source.root(),
            Error::Shared(source) => source.root(),
            other => other,
        }
    }

    /// Whether a device is lost.
    pub fn is_device_lost(&self) -> bool {
        matches!(self.root(), Error::Device { lost: true, .. })
    }

    /// An [`Error::Internal`].
    pub fn internal(text: impl Into<String>) -> Self {
        Error::Internal(text.into())
    }

    /// An [`Error::Data`].
    pub fn data(path: impl AsRef<Path>, what: impl Into<String>) -> Self {
        Error::Data { path: path.as_ref().into(), what: what.into() }
    }

    /// An adapter for `map_err`: `File::open(p).map_err(Error::io(p, "open"))`.
    pub fn io(path: impl AsRef<Path>, doing: &'static str) -> impl FnOnce(io::Error) -> Error {
        let path = path.as_ref().to_path_buf();
        move |source| Error::Io { path, doing, source }
    }

    /// Names the layer an error belongs to, unless it is named already.
    pub fn in_layer(self, layer: &str, kind: &str, at: Option<&Position>) -> Self {
        match self {
            Error::Layer { .. } => self,
            source => Error::Layer {
                layer: layer.into(),
                kind: kind.into(),
                at: at.cloned(),
                source: Box::new(source.of_named_file()),
            },
        }
    }

    /// Names the solver's field an error belongs to.
    pub fn in_field(self, field: &str, at: Option<Position>) -> Self {
        Error::Field { field: field.into(), at, source: Box::new(self.of_named_file()) }
    }

    /// The same error; of a file that another file names and that is not there, with what such names are relative to.
    fn of_named_file(self) -> Self {
        match self.missing_file() {
            Some((path, doing, reason)) => {
                let reason = format!("{reason}{}", crate::fs::relative_to(path));
                Error::Io { path: path.into(), doing, source: io::Error::new(io::ErrorKind::NotFound, reason) }
            }
            None => self,
        }
    }

    /// The file that is not there, what was to be done with it, and the system's words.
    fn missing_file(&self) -> Option<(&Path, &'static str, &io::Error)> {
        match self {
            Error::Io { path, doing, source } | Error::Proto(lgm_proto::Error::Io { path, doing, source }) => {
                (source.kind() == io::ErrorKind::NotFound).then_some((path, *doing, source))
            }
            Error::Shared(source) => source.missing_file(),
            _ => None,
        }
    }
}

/// A place as a message begins with it.
fn placed(at: Option<&Position>) -> String {
    at.map(|at| format!("{at}: ")).unwrap_or_default()
}

/// A layer's type behind its name, if it has any.
fn in_brackets(kind: &str) -> String {
    if kind.is_empty() { String::new() } else { format!(" ({kind})") }
}

/// Fails with [`Error::Config`] unless a condition holds: `ensure!(n > 0, "num_output must be positive, found {n}")`.
#[macro_export]
macro_rules! ensure {
    ($cond:expr, $($text:tt)+) => {
        // A match, so that a condition on floats need not be negated.
        match $cond {
            true => {}
            false => return Err($crate::Error::config(format!($($text)+))),
        }
    };
}

/// Of `known`, the name nearest to a misspelt `name`, if one is near enough to suggest.
pub fn nearest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    lgm_proto::nearest(name, known)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_not_there_is_told_with_what_its_name_is_relative_to() {
        let missing = || io::Error::from(io::ErrorKind::NotFound);
        let here = format!(
            "entity not found (names are relative to the folder the program runs in, {})",
            std::env::current_dir().unwrap().display()
        );
        let io = |path: &str| Error::io(path, "read")(missing());
        let of_proto =
            |path: &str| Error::Proto(lgm_proto::Error::Io { path: path.into(), doing: "read", source: missing() });
        for make in [&io as &dyn Fn(&str) -> Error, &of_proto, &|path: &str| Error::Shared(Arc::new(io(path)))] {
            let said = make("sub/a.h5").in_layer("d", "HDF5Data", None).to_string();
            assert_eq!(said, format!("layer 'd' (HDF5Data): sub/a.h5: cannot read: {here}"));
            let said = make("net.prototxt").in_field("net", None).to_string();
            assert_eq!(said, format!("solver field 'net': net.prototxt: cannot read: {here}"));
            let said = make("/no/a.h5").in_layer("d", "HDF5Data", None).to_string();
            assert_eq!(said, "layer 'd' (HDF5Data): /no/a.h5: cannot read: entity not found");
        }
        let refused = Error::io("a", "read")(io::Error::from(io::ErrorKind::PermissionDenied)).in_layer("d", "", None);
        assert_eq!(refused.to_string(), "layer 'd': a: cannot read: permission denied");
    }
}
