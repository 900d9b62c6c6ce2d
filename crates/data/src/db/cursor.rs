//! Where a source stands in a database.

use std::sync::Arc;

use lgm_core::{Error, Result, State};

use super::{Database, Records};
use crate::batch::read_counter;
use crate::warnings::Warnings;

/// The next record, and how many images went before it since training began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Cursor {
    pub record: u64,
    pub image: u64,
}

impl Cursor {
    /// Before record `index` of a database, counted round and round.
    ///
    /// # Errors
    /// When the database is damaged.
    pub fn at(database: &Arc<Database>, index: u64) -> Result<Self> {
        Ok(Cursor { record: Records::from(database.clone(), index)?.index(), image: 0 })
    }

    /// The records from here on, in the order of their keys, and where they begin: at `start`, with a warning, where the
    /// database ends before this place.
    ///
    /// # Errors
    /// When the database is damaged.
    pub fn records(self, database: &Arc<Database>, start: Cursor, warnings: &Warnings) -> Result<(Self, Records)> {
        let records = Records::from(database.clone(), self.record)?;
        if records.index() == self.record {
            return Ok((self, records));
        }
        let what = format!("the saved position is record {}, but the database ends before it", self.record);
        let at = warnings.placed(Err(Error::data(database.path(), what)), start);
        Ok((at, Records::from(database.clone(), at.record)?))
    }

    /// What a snapshot keeps.
    pub fn state(self) -> State {
        [("record", self.record), ("image", self.image)].into_iter().map(|(k, v)| (k.to_string(), v as f64)).collect()
    }

    /// The place that a snapshot kept.
    ///
    /// # Errors
    /// When the state is that of another layer.
    pub fn restored(state: &State) -> Result<Self> {
        Ok(Cursor { record: read_counter(state, "record")?, image: read_counter(state, "image")? })
    }

    /// Fails unless this is a place of the database, where that knows how many records it has.
    ///
    /// # Errors
    /// When it is none.
    pub fn check(self, database: &Database) -> Result<()> {
        match database.count().filter(|&count| self.record >= count) {
            Some(count) => {
                let what = format!("the saved position is record {} of {count}", self.record);
                Err(Error::data(database.path(), what))
            }
            None => Ok(()),
        }
    }
}
