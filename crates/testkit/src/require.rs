//! What a machine may lack that tests want.

use std::fmt::Display;
use std::process::{Command, Stdio};

/// Says that a test is skipped for want of something, which has a name in `LGM_REQUIRE`; gives `None`, for tests that return
/// what they want.
///
/// `LGM_REQUIRE` holds names separated by commas: `simulator` (a C++ compiler), `nvrtc`, `fake-gpu` (`scripts/fake-gpu`
/// runs the test), `gpu`, `data` (files beside the repository), or what a test names.
///
/// # Panics
/// Where `LGM_REQUIRE` names it: nothing that is asked for is skipped.
pub fn skip<T>(what: &str, why: impl Display) -> Option<T> {
    let required = std::env::var("LGM_REQUIRE").unwrap_or_default();
    let is_required = required.split(',').any(|name| name.trim() == what);
    assert!(!is_required, "LGM_REQUIRE asks for what the test needs ({what}): {why}");
    println!("skipped: {why}");
    None
}

/// Whether the simulated device can be made here; where it cannot, that is said.
///
/// # Panics
/// Where `LGM_REQUIRE` names `simulator` and it cannot.
pub fn has_simulator() -> bool {
    let compiler = std::env::var("CXX").unwrap_or("g++".into());
    let run = Command::new(&compiler).arg("--version").stdout(Stdio::null()).status();
    run.is_ok()
        || skip::<()>("simulator", format!("the simulated GPU needs a C++ compiler: {compiler} does not run")).is_some()
}
