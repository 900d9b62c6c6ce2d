//! What Ctrl-C (SIGINT) and SIGHUP do to a training run.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Context;
use clap::ValueEnum;
use signal_hook::consts::{SIGHUP, SIGINT};
use signal_hook::flag;

/// What a signal asks of the training loop.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Action {
    /// Take a snapshot if the solver takes any, and stop.
    Stop,
    /// Take a snapshot and go on.
    Snapshot,
    /// Go on.
    None,
}

/// The signals that have come and are not yet answered.
#[derive(Debug)]
pub struct Signals {
    sigint: (Arc<AtomicBool>, Action),
    sighup: (Arc<AtomicBool>, Action),
}

/// Catches SIGINT and SIGHUP for the rest of the process; to be called once.
///
/// A signal that stops (by default Ctrl-C) leaves the iteration in hand to finish and its snapshot to be written. The
/// same signal a second time does not wait: it ends the process at once.
///
/// # Errors
/// When the system refuses a handler.
pub fn install(sigint: Action, sighup: Action) -> anyhow::Result<Signals> {
    Ok(Signals { sigint: catch(SIGINT, sigint)?, sighup: catch(SIGHUP, sighup)? })
}

fn catch(signal: i32, action: Action) -> anyhow::Result<(Arc<AtomicBool>, Action)> {
    let refused = "the system refuses a signal handler";
    let came = Arc::new(AtomicBool::new(false));
    if action == Action::Stop {
        let stopping = Arc::new(AtomicBool::new(false));
        // Handlers run in the order of their registration: this one sees the flag as the signal before left it.
        flag::register_conditional_default(signal, stopping.clone()).context(refused)?;
        flag::register(signal, stopping).context(refused)?;
    }
    flag::register(signal, came.clone()).context(refused)?;
    Ok((came, action))
}

impl Signals {
    /// The action that a signal has requested since the last call. SIGHUP goes first; a SIGINT that came as well is returned
    /// by the next call.
    pub fn poll(&self) -> Action {
        for (came, action) in [&self.sighup, &self.sigint] {
            if came.swap(false, Ordering::Relaxed) {
                return *action;
            }
        }
        Action::None
    }
}

#[cfg(test)]
mod tests {
    use std::env;
    use std::os::unix::process::ExitStatusExt;
    use std::process::Command;

    use super::*;

    const CHILD: &str = "LGM_TEST_SIGNALS_CHILD";

    #[test]
    fn a_second_signal_during_a_stop_ends_the_process() {
        if env::var_os(CHILD).is_some() {
            let signals = install(Action::Stop, Action::Snapshot).unwrap();
            signal_hook::low_level::raise(SIGINT).unwrap();
            println!("asked to {:?}", signals.poll());
            signal_hook::low_level::raise(SIGINT).unwrap();
            println!("still here");
            return;
        }
        // The process that dies is this test run by itself.
        let test = "signals::tests::a_second_signal_during_a_stop_ends_the_process";
        let run =
            Command::new(env::current_exe().unwrap()).args([test, "--exact", "--nocapture"]).env(CHILD, "1").output();
        let (status, text) = run.map(|run| (run.status, String::from_utf8_lossy(&run.stdout).into_owned())).unwrap();
        assert!(text.contains("asked to Stop") && !text.contains("still here"), "{text}");
        assert_eq!(status.signal(), Some(SIGINT), "{text}");
    }

    #[test]
    fn each_signal_is_told_once_and_sighup_first() {
        let signals = install(Action::Snapshot, Action::None).unwrap();
        assert_eq!(signals.poll(), Action::None);
        signal_hook::low_level::raise(SIGINT).unwrap();
        assert_eq!((signals.poll(), signals.poll()), (Action::Snapshot, Action::None));
        signal_hook::low_level::raise(SIGINT).unwrap();
        signal_hook::low_level::raise(SIGHUP).unwrap();
        assert_eq!((signals.poll(), signals.poll(), signals.poll()), (Action::None, Action::Snapshot, Action::None));
    }
}
