//! What a command prints on standard output: its result, and nothing besides.

use std::error::Error;
use std::fmt;
use std::io::{self, Write};

use lgm_proto::strings::readable;

/// Standard output takes no more.
#[derive(Debug)]
pub struct StdoutError(pub io::Error);

impl fmt::Display for StdoutError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot write to standard output: {}", self.0)
    }
}

impl Error for StdoutError {}

/// Prints a text, all of it before this returns.
///
/// # Errors
/// When standard output is full, or its reader has closed it.
pub fn print(text: &str) -> Result<(), StdoutError> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(readable(text).as_bytes()).and_then(|()| stdout.flush()).map_err(StdoutError)
}

/// Whether an error only means that the reader of standard output has closed it, as `head` does after its last line.
pub fn reader_left(error: &anyhow::Error) -> bool {
    error.downcast_ref::<StdoutError>().is_some_and(|StdoutError(error)| error.kind() == io::ErrorKind::BrokenPipe)
}
