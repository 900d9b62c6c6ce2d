//! Records in random order: where each lies, and the order of a time round.

use std::sync::Arc;

use lgm_core::{Error, Result, memory};

use super::{Database, Location};

/// Where every record of a database lies, in the order of the keys.
pub(crate) struct Locations(Vec<Location>);

impl Locations {
    /// Goes through a database once. Of LMDB that reads the pages of its tree, not the large values beside it; of LevelDB it
    /// reads every block.
    ///
    /// # Errors
    /// When the database is damaged, or there is no memory for the places of its records.
    pub fn of(database: &Database) -> Result<Self> {
        let mut walk = database.store.walk()?;
        let mut all = Vec::new();
        while walk.lengths()?.is_some() {
            let len = all.len();
            if len == all.capacity() {
                let what = format!("{}: the places of its records", database.path().display());
                memory::reserve(&mut all, len.max(1024), what)?;
            }
            all.push(walk.location());
            walk.skip(1)?;
        }
        // Orders are numbers of 32 bits.
        if u32::try_from(all.len()).is_err() {
            let what = format!("holds {} records, more than can be shuffled ({})", all.len(), u32::MAX);
            return Err(Error::data(database.path(), what));
        }
        Ok(Locations(all))
    }
}

/// A place in the order of a time round.
pub(super) struct Shuffled {
    locations: Arc<Locations>,
    draw: Box<dyn Fn(u64, usize) -> Vec<u32> + Send>,
    /// The time round, the order then, and the place in it.
    round: u64,
    order: Vec<u32>,
    place: usize,
}

impl Shuffled {
    pub fn new(
        locations: Arc<Locations>,
        position: u64,
        draw: impl Fn(u64, usize) -> Vec<u32> + Send + 'static,
    ) -> Self {
        let count = locations.0.len();
        let round = position.checked_div(count as u64).unwrap_or(0);
        let place = position.checked_rem(count as u64).unwrap_or(0) as usize;
        Shuffled { order: draw(round, count), locations, draw: Box::new(draw), round, place }
    }

    /// The place of the next record.
    pub fn place(&self) -> u64 {
        self.place as u64
    }

    /// The index of the next record among the keys, and where it lies. Moves past it.
    pub fn next(&mut self) -> (u64, Location) {
        let record = self.order.get(self.place).copied().unwrap_or(0);
        self.place = self.place.saturating_add(1);
        if self.place >= self.order.len() {
            self.round = self.round.saturating_add(1);
            self.place = 0;
            self.order = (self.draw)(self.round, self.locations.0.len());
        }
        (u64::from(record), self.locations.0.get(record as usize).copied().unwrap_or_default())
    }
}
