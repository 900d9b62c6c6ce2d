//! What the protocol of the team is made of. Its model (`tests/team_model.rs`) has a module of this name with a model
//! checker's types in it.

use std::hint::spin_loop;
pub(super) use std::sync::Mutex;
pub(super) use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
pub(super) use std::thread::park;
use std::time::{Duration, Instant};

/// Turns of a waiting loop between two looks at the clock.
const TURNS: u32 = 64;

/// [`std::cell::UnsafeCell`], with each access in a closure.
pub(super) struct UnsafeCell<T>(std::cell::UnsafeCell<T>);

impl<T> UnsafeCell<T> {
    pub fn new(value: T) -> Self {
        UnsafeCell(std::cell::UnsafeCell::new(value))
    }

    pub fn with<R>(&self, read: impl FnOnce(*const T) -> R) -> R {
        read(self.0.get())
    }

    pub fn with_mut<R>(&self, write: impl FnOnce(*mut T) -> R) -> R {
        write(self.0.get())
    }
}

/// Waiting awake for a while.
pub(super) struct Wait {
    turns: u32,
    since: Option<Instant>,
    limit: Duration,
}

impl Wait {
    pub fn new(limit: Duration) -> Wait {
        Wait { turns: 0, since: None, limit }
    }

    /// Waits a moment; `false` when the time is up.
    pub fn turn(&mut self) -> bool {
        self.turns += 1;
        if !self.turns.is_multiple_of(TURNS) {
            spin_loop();
            return self.limit > Duration::ZERO;
        }
        // Whoever is waited for may want this core.
        std::thread::yield_now();
        self.since.get_or_insert_with(Instant::now).elapsed() < self.limit
    }
}
