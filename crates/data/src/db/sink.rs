//! What a kind of database does with new records.

use lgm_core::Result;

/// Records on their way to a database.
#[derive(Default)]
pub(super) struct Group {
    pub records: Vec<(Vec<u8>, Vec<u8>)>,
    /// Bytes of their keys and values.
    pub bytes: usize,
}

/// A kind of database, open for writing.
pub(super) trait Sink {
    /// Writes a group of records.
    fn commit(&mut self, group: &Group) -> Result<()>;

    /// Ends the writing.
    fn close(self: Box<Self>) -> Result<()>;
}
