//! The protocol by which threads share loops. No thread, clock or thread-local variable is named here: what the protocol
//! is made of comes from `super::sync`, so that `tests/team_model.rs` can try it in every order of its steps.

use std::any::Any;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use super::sync::Ordering::{AcqRel, Acquire, Relaxed, Release};
use super::sync::{AtomicBool, AtomicUsize, Mutex, UnsafeCell, Wait, park};

/// What a turn adds to [`Board::state`]; below it is the number of members inside.
const TURN: usize = 1 << (usize::BITS / 2);

/// A loop: its body and where its indices end.
#[derive(Clone, Copy)]
struct Loop {
    task: *const (dyn Fn(usize) + Sync),
    count: usize,
}

/// What a task panicked with.
pub(super) type Panic = Box<dyn Any + Send>;

/// What the threads of a team share: the owner of a loop, which is whoever starts it, and the members.
///
/// A loop is open while the turn is odd. A member enters by adding itself to those inside, in the same word as the turn and
/// so in one step with looking at it, and leaves when it touches the loop no more; the owner closes a loop by the next turn
/// and waits until nobody is inside. Whoever enters after that sees an even turn and touches nothing.
pub(super) struct Board {
    /// The turn, times [`TURN`], and the number of members inside.
    state: AtomicUsize,
    /// The next index of each thread's share of the open loop, the owner's first; on lines of their own, being written for
    /// each index.
    next: Vec<Line<AtomicUsize>>,
    open: UnsafeCell<Loop>,
    /// What a task of the loop panicked with.
    panic: Mutex<Option<Panic>>,
    /// Held by whoever has a loop open.
    taken: AtomicBool,
    asleep: Vec<AtomicBool>,
    closing: AtomicBool,
}

#[repr(align(128))]
struct Line<T>(T);

// SAFETY: `open` is written only by the holder of `taken` while no loop is open and nobody who saw one is inside, and read
// only by members inside an open loop; the task it points to is shared between threads by its bound.
unsafe impl Sync for Board {}
// SAFETY: as above.
unsafe impl Send for Board {}

impl Board {
    /// For an owner and so many members.
    pub fn new(members: usize) -> Board {
        fn nothing(_: usize) {}
        Board {
            state: AtomicUsize::new(0),
            next: (0..=members).map(|_| Line(AtomicUsize::new(0))).collect(),
            open: UnsafeCell::new(Loop { task: &nothing, count: 0 }),
            panic: Mutex::new(None),
            taken: AtomicBool::new(false),
            asleep: (0..members).map(|_| AtomicBool::new(false)).collect(),
            closing: AtomicBool::new(false),
        }
    }

    /// Runs a loop with the members, those that sleep woken by `wake`; `false`, nothing done, when another loop is open.
    ///
    /// # Errors
    /// What a task panicked with; the loop is over then too.
    pub fn share(&self, count: usize, task: &(dyn Fn(usize) + Sync), wake: impl Fn(usize)) -> Result<bool, Panic> {
        if self.taken.compare_exchange(false, true, Acquire, Relaxed).is_err() {
            return Ok(false);
        }
        // SAFETY: the lifetime is forgotten, but the loop is closed and nobody is inside when this call returns.
        let task = unsafe { std::mem::transmute::<&(dyn Fn(usize) + Sync), &'static (dyn Fn(usize) + Sync)>(task) };
        let open = Loop { task, count };
        // SAFETY: no loop is open, nobody is inside one, and this thread holds `taken`.
        self.open.with_mut(|place| unsafe { *place = open });
        self.next.iter().enumerate().for_each(|(i, next)| next.0.store(self.part(i, count).start, Relaxed));
        self.state.fetch_add(TURN, AcqRel);
        let members = self.asleep.iter().enumerate().take(count - 1);
        members.filter(|(_, asleep)| asleep.swap(false, Relaxed)).for_each(|(member, _)| wake(member));
        self.work(0, open);
        self.state.fetch_add(TURN, Relaxed);
        let mut wait = Wait::new(Duration::MAX);
        while !self.state.load(Acquire).is_multiple_of(TURN) {
            wait.turn();
        }
        let panic = self.panic.lock().map(|mut panic| panic.take()).unwrap_or_default();
        self.taken.store(false, Release);
        panic.map_or(Ok(true), Err)
    }

    /// Ends every member's [`serve`](Self::serve), once those asleep are woken.
    pub fn close(&self) {
        self.closing.store(true, Release);
    }

    /// The part of a loop that a thread begins with: the same of every loop over a batch, so that it finds in its caches
    /// what it left there.
    fn part(&self, thread: usize, count: usize) -> Range<usize> {
        let threads = self.next.len();
        thread * count / threads..(thread + 1) * count / threads
    }

    /// Takes indices of a loop, from this thread's part and then from the others', until none is left. What a task panics
    /// with is kept for the loop's owner.
    fn work(&self, thread: usize, Loop { task, count }: Loop) {
        let threads = self.next.len();
        let run = AssertUnwindSafe(|| {
            for part in (0..threads).map(|i| (thread + i) % threads) {
                let end = self.part(part, count).end;
                loop {
                    let i = self.next[part].0.fetch_add(1, Relaxed);
                    if i >= end {
                        break;
                    }
                    // SAFETY: the loop is open or this thread inside, so its owner still waits for it.
                    unsafe { (*task)(i) };
                }
            }
        });
        if let Err(panic) = catch_unwind(run) {
            self.next.iter().for_each(|next| next.0.store(count, Relaxed));
            if let Ok(mut kept) = self.panic.lock() {
                kept.get_or_insert(panic);
            }
        }
    }

    /// A member's life, until [`close`](Self::close); without work for as long as `awake`, it sleeps.
    pub fn serve(&self, member: usize, awake: Duration) {
        let open = |turn: usize| turn % 2 == 1;
        let mut seen = 0;
        let mut wait = Wait::new(awake);
        while !self.closing.load(Acquire) {
            let turn = self.state.load(Relaxed) / TURN;
            if turn != seen && open(turn) {
                seen = self.state.fetch_add(1, Acquire) / TURN;
                if open(seen) {
                    // SAFETY: inside an open loop.
                    self.work(member + 1, self.open.with(|place| unsafe { *place }));
                }
                self.state.fetch_sub(1, Release);
                wait = Wait::new(awake);
            } else if !wait.turn() {
                self.asleep[member].store(true, Relaxed);
                // This and the owner's next turn are steps on one word. If this one is the first, the owner finds the member
                // asleep and wakes it; if it is the second, it finds the loop.
                let turn = self.state.fetch_add(0, AcqRel) / TURN;
                if (turn == seen || !open(turn)) && !self.closing.load(Acquire) {
                    park();
                }
                self.asleep[member].store(false, Relaxed);
                wait = Wait::new(awake);
            }
        }
    }
}
