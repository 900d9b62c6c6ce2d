//! A progress bar below the log, on a terminal only.

use std::cell::Cell;
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressState, ProgressStyle};

/// All bars; drawn on stderr, and not at all where that is no terminal.
static BARS: LazyLock<MultiProgress> = LazyLock::new(MultiProgress::new);

/// Time between two drawings.
const REDRAW: Duration = Duration::from_millis(100);

/// Runs `write`, which prints to stderr, with the progress bars hidden.
pub fn above<R>(write: impl FnOnce() -> R) -> R {
    if BARS.is_hidden() { write() } else { BARS.suspend(write) }
}

/// The bar of one task. Dropping it takes it off the screen.
#[derive(Debug)]
pub struct Progress {
    bar: Option<ProgressBar>,
    drawn: Cell<Option<Instant>>,
}

impl Progress {
    /// A training run of `total` iterations that begins at `start` (not 0 for a resumed one).
    pub fn new(total: u64, start: u64) -> Self {
        Self::with("{wide_bar} {pos}/{len} {rate} it/s, {eta_precise} left{msg}", total, start)
    }

    /// A conversion of `total` items, `what` in the plural.
    pub fn items(what: &str, total: u64) -> Self {
        // Braces would be read as a template's.
        let what = what.replace(['{', '}'], "");
        Self::with(&format!("{{wide_bar}} {{pos}}/{{len}} {what}, {{eta_precise}} left"), total, 0)
    }

    fn with(template: &str, total: u64, start: u64) -> Self {
        let bar = (!BARS.is_hidden()).then(|| {
            let rate = |state: &ProgressState, out: &mut dyn std::fmt::Write| {
                let _ = write!(out, "{:.3}", Significant(state.per_sec()));
            };
            let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
            let bar = BARS.add(ProgressBar::new(total));
            bar.set_style(style.with_key("rate", rate));
            // The rate counts from here, so that what a resumed run did before does not make it look fast.
            bar.set_position(start);
            bar.reset_eta();
            bar.enable_steady_tick(Duration::from_secs(1));
            bar
        });
        Progress { bar, drawn: Cell::new(None) }
    }

    /// `iter` iterations are done, and the last one's loss was `loss`.
    pub fn update(&self, iter: u64, loss: f64) {
        self.draw(iter, |bar| bar.set_message(format!(", loss {}", short(loss))));
    }

    /// `done` items are done.
    pub fn at(&self, done: u64) {
        self.draw(done, |_| ());
    }

    fn draw(&self, position: u64, message: impl FnOnce(&ProgressBar)) {
        let Some(bar) = &self.bar else { return };
        let now = Instant::now();
        if self.drawn.get().is_none_or(|last| now - last >= REDRAW) {
            self.drawn.set(Some(now));
            message(bar);
            bar.set_position(position);
        }
    }

    /// Takes the bar off the screen.
    pub fn finish(self) {}
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
            BARS.remove(bar);
        }
    }
}

/// The numbers below `count`, with a bar of how many have been worked off; `what` they are in the plural.
pub fn each(what: &str, count: u64) -> impl Iterator<Item = u64> {
    let bar = Progress::items(what, count);
    (0..count).inspect(move |&number| bar.at(number))
}

/// A callback that shows counts as a bar, with a new bar whenever the count starts again.
pub fn counter(what: &'static str) -> impl FnMut(usize, usize) {
    let mut bar: Option<Progress> = None;
    let mut last = 0;
    move |done, total| {
        if done < last {
            bar = None;
        }
        last = done;
        bar.get_or_insert_with(|| Progress::items(what, total as u64)).at(done as u64);
    }
}

/// A loss that stays readable when it is small.
fn short(loss: f64) -> String {
    if loss != 0.0 && loss.abs() < 1e-3 { format!("{loss:.3e}") } else { format!("{loss:.5}") }
}

/// A rate with about three digits: `0.123`, `12.3`, `1234`.
struct Significant(f64);

impl std::fmt::Display for Significant {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let whole = if self.0 >= 1.0 { self.0.log10() as usize + 1 } else { 0 };
        write!(f, "{:.*}", f.precision().unwrap_or(3).saturating_sub(whole), self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_keep_three_digits() {
        for (rate, text) in [(0.0, "0.000"), (0.1234, "0.123"), (1.234, "1.23"), (12.34, "12.3"), (1234.5, "1234")] {
            assert_eq!(format!("{:.3}", Significant(rate)), text);
        }
    }

    #[test]
    fn small_losses_stay_readable() {
        for (loss, text) in [(0.0, "0.00000"), (2.3456789, "2.34568"), (1.234e-5, "1.234e-5"), (f64::NAN, "NaN")] {
            assert_eq!(short(loss), text);
        }
    }

    #[test]
    fn without_a_terminal_a_bar_does_nothing() {
        let bar = Progress::new(10, 3);
        bar.update(4, 0.5);
        bar.at(5);
        assert_eq!(each("items", 4).collect::<Vec<_>>(), [0, 1, 2, 3]);
        assert_eq!(above(|| 7), 7);
        bar.finish();
    }
}
