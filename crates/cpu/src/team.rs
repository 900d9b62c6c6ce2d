//! The threads that compute: one team for the process, whose members wait for work awake for a while before they sleep.
//!
//! A training iteration is hundreds of parallel loops of some microseconds to some milliseconds, one right after the
//! other. Waking a sleeping thread costs about as much as the shortest of them, so members spin between loops, as OpenMP
//! runtimes do. A loop belongs to the thread that starts it, which works along; while the team is busy, whoever else
//! starts a loop, a task of the loop at hand included, runs it alone.

use std::cell::{Cell, RefCell};
use std::panic::resume_unwind;
use std::sync::{Arc, OnceLock};
use std::thread::{JoinHandle, Thread};
use std::time::Duration;

use board::Board;

mod board;
mod sync;

/// How long a member stays awake without work.
const AWAKE: Duration = Duration::from_micros(200);

/// Variables that set the number of threads, the first that is set and a number above 0.
const VARIABLES: [&str; 2] = ["LGM_NUM_THREADS", "OMP_NUM_THREADS"];

static TEAM: OnceLock<Team> = OnceLock::new();

thread_local! {
    /// This thread is running a task, or starts loops that are to run on it alone.
    static ALONE: Cell<bool> = const { Cell::new(false) };
    /// The team of [`with_threads`].
    static LENT: RefCell<Option<Arc<Team>>> = const { RefCell::new(None) };
}

/// Threads that loops are shared among: `LGM_NUM_THREADS`, else `OMP_NUM_THREADS`, else as many as the system offers.
pub fn num_threads() -> usize {
    LENT.with_borrow(|lent| lent.as_ref().map(|team| team.size())).unwrap_or_else(|| global().size())
}

/// Runs `body` with a team of `threads`, this thread among them, in place of the process's.
pub fn with_threads<R>(threads: usize, body: impl FnOnce() -> R) -> R {
    struct Restore(Option<Arc<Team>>);
    impl Drop for Restore {
        fn drop(&mut self) {
            LENT.set(self.0.take());
        }
    }
    let _restore = Restore(LENT.replace(Some(Arc::new(Team::new(threads)))));
    body()
}

/// Calls `task(i)` once for each `i` in `0..count`, on the threads of the team.
pub(crate) fn run(count: usize, task: &(dyn Fn(usize) + Sync)) {
    let alone = count <= 1 || ALONE.get();
    let lent = if alone { None } else { LENT.with_borrow(Option::clone) };
    if alone || !lent.as_deref().unwrap_or_else(|| global()).share(count, task) {
        (0..count).for_each(task);
    }
}

fn global() -> &'static Team {
    TEAM.get_or_init(|| {
        let given =
            VARIABLES.iter().find_map(|v| std::env::var(v).ok()?.trim().parse().ok().filter(|&n: &usize| n > 0));
        Team::new(given.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, Into::into)))
    })
}

struct Team {
    board: Arc<Board>,
    members: Vec<JoinHandle<()>>,
    sleepers: Vec<Thread>,
}

impl Team {
    fn new(threads: usize) -> Team {
        let others = threads.max(1) - 1;
        let board = Arc::new(Board::new(others));
        // More threads than cores must not keep each other from working by spinning.
        let cores = std::thread::available_parallelism().map_or(1, Into::into);
        let awake = if threads <= cores { AWAKE } else { Duration::ZERO };
        let start = |member: usize| {
            let board = board.clone();
            std::thread::Builder::new().name(format!("compute {}", member + 1)).spawn(move || {
                ALONE.set(true);
                board.serve(member, awake);
            })
        };
        // A system that gives no more threads leaves a smaller team.
        let members: Vec<JoinHandle<()>> = (0..others).map_while(|member| start(member).ok()).collect();
        let sleepers = members.iter().map(|m| m.thread().clone()).collect();
        Team { board, members, sleepers }
    }

    fn size(&self) -> usize {
        self.members.len() + 1
    }

    /// Runs a loop on the team; `false`, nothing done, when the team is busy or is this thread alone.
    fn share(&self, count: usize, task: &(dyn Fn(usize) + Sync)) -> bool {
        if self.members.is_empty() {
            return false;
        }
        ALONE.set(true);
        let shared =
            self.board.share(count, task, |member| self.sleepers.get(member).into_iter().for_each(Thread::unpark));
        ALONE.set(false);
        shared.unwrap_or_else(|panic| resume_unwind(panic))
    }
}

impl Drop for Team {
    fn drop(&mut self) {
        self.board.close();
        self.sleepers.iter().for_each(Thread::unpark);
        for member in self.members.drain(..) {
            // A member catches what its tasks panic with; there is nothing else it could have died of.
            let _ = member.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::panic::catch_unwind;
    use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

    use super::*;

    fn sum_of(count: usize) -> usize {
        let sum = AtomicUsize::new(0);
        run(count, &|i| {
            sum.fetch_add(i + 1, SeqCst);
        });
        sum.into_inner()
    }

    #[test]
    fn every_index_runs_once_on_any_team_awake_or_asleep() {
        for threads in [1, 2, 3, 9] {
            with_threads(threads, || {
                assert_eq!(num_threads(), threads);
                for round in 0..2000 {
                    let count = round % 37;
                    assert_eq!(sum_of(count), count * (count + 1) / 2);
                    if round % 500 == 0 {
                        std::thread::sleep(2 * AWAKE);
                    }
                }
            });
        }
    }

    #[test]
    fn loops_in_tasks_and_loops_of_other_threads_run_too() {
        with_threads(3, || {
            let team = LENT.with_borrow(Option::clone);
            let nested = AtomicUsize::new(0);
            std::thread::scope(|scope| {
                for _ in 0..3 {
                    scope.spawn(|| {
                        LENT.set(team.clone());
                        for _ in 0..200 {
                            run(5, &|_| {
                                nested.fetch_add(sum_of(4), SeqCst);
                            });
                        }
                        LENT.set(None);
                    });
                }
            });
            assert_eq!(nested.into_inner(), 3 * 200 * 5 * 10);
        });
    }

    #[test]
    fn a_panic_reaches_the_owner_and_the_team_goes_on() {
        with_threads(3, || {
            for bad in [0, 17, 63] {
                let result = catch_unwind(|| run(64, &|i| assert!(i != bad, "task {i} fails")));
                let text = *result.unwrap_err().downcast::<String>().unwrap();
                assert_eq!(text, format!("task {bad} fails"));
                assert_eq!(sum_of(10), 55);
            }
        });
    }
}
