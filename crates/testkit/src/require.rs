//! Requirements of tests that a machine may lack.

use std::fmt::Display;
use std::process::{Command, Stdio};

/// Reports that a test is skipped because the machine lacks `what`.
///
/// # Panics
/// Where `LGM_REQUIRE` has that name, one of those separated by commas: nothing that is asked for is skipped. Names are
/// `simulator` (a C++ compiler, for the simulated device), `nvrtc`, `fake-gpu` (`scripts/fake-gpu` runs the test) and `gpu`.
pub fn skipped(what: &str, why: impl Display) {
    let required = std::env::var("LGM_REQUIRE").unwrap_or_default();
    let is_required = required.split(',').any(|name| name.trim() == what);
    assert!(!is_required, "LGM_REQUIRE asks for what this test lacks ({what}): {why}");
    println!("skipped: {why}");
}

/// The same, giving nothing in place of what the test wants.
///
/// # Panics
/// As [`skipped`] does.
pub fn skip<T>(what: &str, why: impl Display) -> Option<T> {
    skipped(what, why);
    None
}

/// Whether the simulated device can be built here; where it cannot, the test reports that it is skipped.
///
/// # Panics
/// Where `LGM_REQUIRE` names `simulator` and it cannot.
pub fn has_simulator() -> bool {
    let compiler = std::env::var("CXX").unwrap_or("g++".into());
    let runs = Command::new(&compiler).arg("--version").stdout(Stdio::null()).status().is_ok();
    if !runs {
        skipped("simulator", format!("the simulated device needs a C++ compiler, and {compiler} does not run"));
    }
    runs
}
