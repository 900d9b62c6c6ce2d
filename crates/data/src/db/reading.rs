//! A database that a source reads ahead, and where the source stands in it.

use std::sync::Arc;

use lgm_core::{Error, Result, State};

use super::{Cursor, Database};
use crate::ahead::Ahead;
use crate::warnings::Warnings;

/// Nothing before the database is opened, but for the place that a snapshot kept.
pub(crate) struct Reading {
    opened: Option<Opened>,
    restored: Option<Cursor>,
    warnings: Arc<Warnings>,
}

/// A database, where it begins, and its batches.
pub(crate) struct Opened {
    pub database: Arc<Database>,
    pub start: Cursor,
    pub ahead: Ahead<Cursor>,
}

impl Reading {
    /// The reading of a layer that warns so.
    pub fn new(warnings: Arc<Warnings>) -> Self {
        Reading { opened: None, restored: None, warnings }
    }

    /// Begins at the place that was restored, or else at `start`.
    pub fn open(&mut self, database: Arc<Database>, start: Cursor) {
        let at = self.restored.map_or(start, |at| self.warnings.placed(at.check(&database).map(|()| at), start));
        self.opened = Some(Opened { database, start, ahead: Ahead::from(at) });
    }

    /// The database and its batches.
    ///
    /// # Errors
    /// When it was not opened before.
    pub fn opened(&mut self) -> Result<&mut Opened> {
        self.opened.as_mut().ok_or_else(|| Error::internal("a database was used before it was opened"))
    }

    /// What a snapshot keeps.
    pub fn state(&self) -> State {
        self.opened.as_ref().map(|opened| opened.ahead.place()).or(self.restored).unwrap_or_default().state()
    }

    /// Goes on from the place that a snapshot kept, or from the start where the state is that of another layer or the
    /// database has no such place.
    pub fn restore(&mut self, state: &State) {
        let saved = Cursor::restored(state);
        self.restored = match &mut self.opened {
            Some(Opened { database, start, ahead }) => {
                let at = saved.and_then(|at| at.check(database).map(|()| at));
                let at = self.warnings.placed(at, *start);
                *ahead = Ahead::from(at);
                Some(at)
            }
            None => self.warnings.placed(saved.map(Some), None),
        };
    }
}
