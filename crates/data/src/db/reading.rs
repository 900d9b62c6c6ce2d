//! A database that a source reads ahead, and where the source stands in it.

use std::sync::Arc;

use lgm_core::{Error, Result, State};

use super::{Cursor, Database};
use crate::ahead::Ahead;

/// Nothing before the database is opened, but for the place that a snapshot kept.
#[derive(Default)]
pub(crate) struct Reading {
    opened: Option<(Arc<Database>, Ahead<Cursor>)>,
    restored: Option<Cursor>,
}

impl Reading {
    /// Begins at the place that was restored, or else at `start`.
    ///
    /// # Errors
    /// When the database has no such place.
    pub fn open(&mut self, database: Arc<Database>, start: Cursor) -> Result<()> {
        let at = self.restored.map_or(Ok(start), |at| at.check(&database).map(|()| at))?;
        self.opened = Some((database, Ahead::from(at)));
        Ok(())
    }

    /// The database and its batches.
    ///
    /// # Errors
    /// When it was not opened before.
    pub fn opened(&mut self) -> Result<(&Arc<Database>, &mut Ahead<Cursor>)> {
        let opened = self.opened.as_mut().map(|(database, ahead)| (&*database, ahead));
        opened.ok_or_else(|| Error::internal("a database was used before it was opened"))
    }

    /// What a snapshot keeps.
    pub fn state(&self) -> State {
        self.opened.as_ref().map(|(_, ahead)| ahead.place()).or(self.restored).unwrap_or_default().state()
    }

    /// Goes on from the place that a snapshot kept.
    ///
    /// # Errors
    /// When the state is that of another layer, or the database has no such place.
    pub fn restore(&mut self, state: &State) -> Result<()> {
        let at = Cursor::restored(state)?;
        if let Some((database, ahead)) = &mut self.opened {
            at.check(database)?;
            *ahead = Ahead::from(at);
        }
        self.restored = Some(at);
        Ok(())
    }
}
