//! Layers that move data between a net and the world outside it.

use crate::{BlobSpec, Host, Result, Shape, State, Step, View, ViewMut};

/// A layer that brings data in from outside: it has no bottoms and fills its tops on the host, ahead of the pass.
pub trait Source: Send {
    /// Opens the data and gives the tops' shapes; `tops` is the number of tops asked for.
    ///
    /// # Errors
    /// When the data is missing or unsuitable.
    fn open(&mut self, tops: usize) -> Result<Vec<Shape>>;

    /// Fills the tops with the next batch.
    ///
    /// # Errors
    /// When the data cannot be read.
    fn load(&mut self, step: &Step, tops: &mut [ViewMut<'_, Host>]) -> Result<()>;

    /// The position of the next batch.
    fn state(&self) -> State;

    /// Moves to a position given by [`Source::state`]. Where the data have no such position, because they or the layer's type
    /// are others than then, they begin at their start, with a warning.
    ///
    /// # Errors
    /// When what is there of the data cannot be read.
    fn restore(&mut self, state: &State) -> Result<()>;
}

/// A layer that takes data out: it has no tops and reads its bottoms on the host, after the pass.
pub trait Sink: Send {
    /// Checks the bottoms' shapes.
    ///
    /// # Errors
    /// When the bottoms are unsuitable.
    fn open(&mut self, bottoms: &[BlobSpec]) -> Result<()>;

    /// Takes one batch.
    ///
    /// # Errors
    /// When it cannot be written.
    fn store(&mut self, bottoms: &[View<'_, Host>]) -> Result<()>;
}
