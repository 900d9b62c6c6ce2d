//! The protocol of the thread team under a model checker: loom runs it in every order of its steps, up to a number of
//! preemptions, and with every value that a load may see under the orderings that are written. It finds accesses to memory
//! that another thread may be writing, sleepers that nobody wakes, and whatever the assertions say.
//!
//! The protocol is compiled from its source, with loom's types for the standard library's.

use std::time::Duration;

use board::Board;
use loom::model::Builder;
use loom::sync::Arc;
use loom::thread::{self, JoinHandle};
use sync::UnsafeCell;

#[path = "../src/team/board.rs"]
mod board;

/// See `src/team/sync.rs`.
mod sync {
    use std::time::Duration;

    pub use loom::cell::UnsafeCell;
    pub use loom::sync::Mutex;
    pub use loom::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
    pub use loom::thread::park;

    pub struct Wait(Duration);

    impl Wait {
        pub fn new(limit: Duration) -> Wait {
            Wait(limit)
        }

        /// Loom gives way to other threads at a yield, so one before a member sleeps would leave out orders.
        pub fn turn(&mut self) -> bool {
            let awake = self.0 > Duration::ZERO;
            if awake {
                loom::thread::yield_now();
            }
            awake
        }
    }
}

/// A place for each index of a loop, which only that index's task may touch, and its owner afterwards.
struct Places(Vec<UnsafeCell<usize>>);

// SAFETY: loom fails where two threads touch a place at once.
unsafe impl Sync for Places {}
// SAFETY: as above.
unsafe impl Send for Places {}

impl Places {
    fn new(count: usize) -> Places {
        Places((0..count).map(|_| UnsafeCell::new(0)).collect())
    }

    fn count(&self, i: usize) {
        // SAFETY: see above.
        self.0[i].with_mut(|place| unsafe { *place += 1 });
    }

    fn all_are(&self, times: usize) {
        // SAFETY: see above.
        self.0.iter().for_each(|place| assert_eq!(place.with(|place| unsafe { *place }), times));
    }
}

struct Team {
    board: Arc<Board>,
    members: Vec<JoinHandle<()>>,
}

impl Team {
    fn new(members: usize) -> Team {
        let board = Arc::new(Board::new(members));
        let start = |member| {
            let board = board.clone();
            thread::spawn(move || board.serve(member, Duration::ZERO))
        };
        Team { members: (0..members).map(start).collect(), board }
    }

    fn share(&self, count: usize, task: &(dyn Fn(usize) + Sync)) -> Result<bool, board::Panic> {
        self.board.share(count, task, |member| self.members[member].thread().unpark())
    }

    fn close(self) {
        self.board.close();
        self.members.iter().for_each(|member| member.thread().unpark());
        assert!(self.members.into_iter().all(|member| member.join().is_ok()));
    }
}

fn model(preemptions: usize, run: impl Fn() + Sync + Send + 'static) {
    let mut builder = Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.check(run);
}

/// Each loop has places of its own that end with it, as what a task borrows does: a member that is late touches memory that
/// is no longer there, which the next loop's owner writes meanwhile.
#[test]
fn every_index_runs_once_and_nobody_is_inside_when_a_loop_returns() {
    model(3, || {
        let team = Team::new(1);
        for count in [2, 3] {
            let places = Places::new(count);
            assert!(team.share(count, &|i| places.count(i)).unwrap());
            places.all_are(1);
        }
        team.close();
    });
}

#[test]
fn two_members_share_a_loop() {
    model(2, || {
        let team = Team::new(2);
        let places = Places::new(3);
        assert!(team.share(3, &|i| places.count(i)).unwrap());
        places.all_are(1);
        team.close();
    });
}

/// Another thread's loop runs on the team or, while that is busy, not at all.
#[test]
fn two_owners_take_turns() {
    model(2, || {
        let team = Arc::new(Team::new(1));
        let run = |team: &Team| {
            let places = Places::new(2);
            let shared = team.share(2, &|i| places.count(i)).unwrap();
            places.all_are(usize::from(shared));
        };
        let other = team.clone();
        let other = thread::spawn(move || run(&other));
        run(&team);
        other.join().unwrap();
        Arc::try_unwrap(team).ok().unwrap().close();
    });
}

/// The task of the owner's part waits for that of the member's, which therefore must not sleep through the loop.
#[test]
fn a_member_that_falls_asleep_hears_of_the_loop() {
    model(3, || {
        let team = Team::new(1);
        let begun = sync::AtomicUsize::new(0);
        let wait_for_both = |_| {
            begun.fetch_add(1, sync::Ordering::Relaxed);
            while begun.load(sync::Ordering::Relaxed) < 2 {
                thread::yield_now();
            }
        };
        assert!(team.share(2, &wait_for_both).unwrap());
        team.close();
    });
}
