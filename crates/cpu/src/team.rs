//! The threads that compute: one team for the process, whose members wait for work awake for a while before they sleep.
//!
//! A training iteration is hundreds of parallel loops of some microseconds to some milliseconds, one right after the
//! other. Waking a sleeping thread costs about as much as the shortest of them, so members spin between loops, as OpenMP
//! runtimes do. A loop belongs to the thread that starts it, which works along; while the team is busy, whoever else
//! starts a loop, a task of the loop at hand included, runs it alone.

use std::any::Any;
use std::cell::{Cell, RefCell, UnsafeCell};
use std::hint::spin_loop;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex, OnceLock};
use std::thread::{JoinHandle, Thread};
use std::time::{Duration, Instant};

/// How long a member stays awake without work.
const AWAKE: Duration = Duration::from_micros(200);
/// Turns of a waiting loop between two looks at the clock.
const TURNS: u32 = 64;

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

/// A loop: its body and where its indices end.
#[derive(Clone, Copy)]
struct Loop {
    task: *const (dyn Fn(usize) + Sync),
    count: usize,
}

/// What the members share. A loop is open while `turn` is odd. A member counts itself `inside` before it looks whether
/// a loop is open and leaves only when it touches that loop no more; who starts loops closes one, waits until nobody is
/// inside, and only then returns or writes the next. All of it is sequentially consistent, so one of the two sees the
/// other.
struct Board {
    turn: AtomicUsize,
    inside: AtomicUsize,
    /// The next index of each thread's share of the open loop, the owner's first; on lines of their own, being written for
    /// each index.
    next: Vec<Line<AtomicUsize>>,
    open: UnsafeCell<Loop>,
    /// What a task of the loop panicked with.
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    /// Held by whoever has a loop open.
    taken: AtomicBool,
    asleep: Vec<AtomicBool>,
    closing: AtomicBool,
}

#[repr(align(128))]
struct Line<T>(T);

// SAFETY: `open` is written only by the holder of `taken` while no loop is open and nobody is inside, and read only by
// members inside an open loop; the task it points to is shared between threads by its bound.
unsafe impl Sync for Board {}
// SAFETY: as above.
unsafe impl Send for Board {}

struct Team {
    board: Arc<Board>,
    members: Vec<JoinHandle<()>>,
    sleepers: Vec<Thread>,
}

impl Team {
    fn new(threads: usize) -> Team {
        let others = threads.max(1) - 1;
        fn nothing(_: usize) {}
        let board = Arc::new(Board {
            turn: AtomicUsize::new(0),
            inside: AtomicUsize::new(0),
            next: (0..=others).map(|_| Line(AtomicUsize::new(0))).collect(),
            open: UnsafeCell::new(Loop { task: &nothing, count: 0 }),
            panic: Mutex::new(None),
            taken: AtomicBool::new(false),
            asleep: (0..others).map(|_| AtomicBool::new(false)).collect(),
            closing: AtomicBool::new(false),
        });
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
        let board = &*self.board;
        if self.members.is_empty() || board.taken.compare_exchange(false, true, SeqCst, SeqCst).is_err() {
            return false;
        }
        // SAFETY: the lifetime is forgotten, but the loop is closed and nobody is inside when this call returns.
        let task = unsafe { std::mem::transmute::<&(dyn Fn(usize) + Sync), &'static (dyn Fn(usize) + Sync)>(task) };
        // SAFETY: no loop is open, nobody is inside one, and this thread holds `taken`.
        unsafe { *board.open.get() = Loop { task, count } };
        board.next.iter().enumerate().for_each(|(i, next)| next.0.store(board.share(i, count).start, SeqCst));
        board.turn.fetch_add(1, SeqCst);
        let sleepers = self.sleepers.iter().zip(&board.asleep).take(count - 1);
        sleepers.filter(|(_, asleep)| asleep.swap(false, SeqCst)).for_each(|(thread, _)| thread.unpark());
        ALONE.set(true);
        board.work(0, Loop { task, count });
        ALONE.set(false);
        board.turn.fetch_add(1, SeqCst);
        let mut wait = Wait::new(Duration::MAX);
        while board.inside.load(SeqCst) > 0 {
            wait.turn();
        }
        let panic = board.panic.lock().map(|mut p| p.take()).unwrap_or_default();
        board.taken.store(false, SeqCst);
        if let Some(panic) = panic {
            resume_unwind(panic);
        }
        true
    }
}

impl Drop for Team {
    fn drop(&mut self) {
        self.board.closing.store(true, SeqCst);
        self.sleepers.iter().for_each(Thread::unpark);
        for member in self.members.drain(..) {
            // A member catches what its tasks panic with; there is nothing else it could have died of.
            let _ = member.join();
        }
    }
}

impl Board {
    /// The share of a loop that a thread begins with: the same part of every loop over a batch, so that it finds in its
    /// caches what it left there.
    fn share(&self, thread: usize, count: usize) -> Range<usize> {
        let threads = self.next.len();
        thread * count / threads..(thread + 1) * count / threads
    }

    /// Takes indices of a loop, from this thread's share and then from the others', until none is left. What a task panics
    /// with is kept for the loop's owner.
    fn work(&self, thread: usize, Loop { task, count }: Loop) {
        let threads = self.next.len();
        let run = AssertUnwindSafe(|| {
            for share in (0..threads).map(|i| (thread + i) % threads) {
                let end = self.share(share, count).end;
                loop {
                    let i = self.next[share].0.fetch_add(1, SeqCst);
                    if i >= end {
                        break;
                    }
                    // SAFETY: the loop is open, so its owner still waits for it.
                    unsafe { (*task)(i) };
                }
            }
        });
        if let Err(panic) = catch_unwind(run) {
            self.next.iter().for_each(|next| next.0.store(count, SeqCst));
            if let Ok(mut kept) = self.panic.lock() {
                kept.get_or_insert(panic);
            }
        }
    }

    /// A member's life.
    fn serve(&self, member: usize, awake: Duration) {
        let mut seen = 0;
        let mut wait = Wait::new(awake);
        while !self.closing.load(SeqCst) {
            let turn = self.turn.load(SeqCst);
            if turn != seen && turn % 2 == 1 {
                self.inside.fetch_add(1, SeqCst);
                seen = self.turn.load(SeqCst);
                if seen % 2 == 1 {
                    // SAFETY: inside an open loop.
                    self.work(member + 1, unsafe { *self.open.get() });
                }
                self.inside.fetch_sub(1, SeqCst);
                wait = Wait::new(awake);
            } else if !wait.turn() {
                self.asleep[member].store(true, SeqCst);
                let turn = self.turn.load(SeqCst);
                if (turn == seen || turn.is_multiple_of(2)) && !self.closing.load(SeqCst) {
                    std::thread::park();
                }
                self.asleep[member].store(false, SeqCst);
                wait = Wait::new(awake);
            }
        }
    }
}

/// Waiting awake for a while.
struct Wait {
    turns: u32,
    since: Option<Instant>,
    limit: Duration,
}

impl Wait {
    fn new(limit: Duration) -> Wait {
        Wait { turns: 0, since: None, limit }
    }

    /// Waits a moment; `false` when the time is up.
    fn turn(&mut self) -> bool {
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

#[cfg(test)]
mod tests {
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
