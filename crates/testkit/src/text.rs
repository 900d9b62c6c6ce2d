//! Checks of texts, and the registry of layers, for the tests of several crates.

use lgm_core::Registry;

/// Checks that a text contains all of `parts`, in order.
///
/// # Panics
/// Where it does not.
pub fn says(text: &str, parts: &[&str]) {
    let mut rest = text;
    for part in parts {
        let Some(at) = rest.find(part) else { panic!("{part:?} is missing, or out of order, in:\n{text}") };
        rest = &rest[at + part.len()..];
    }
}

/// The layers that these functions register.
pub fn registry(register: &[fn(&mut Registry)]) -> Registry {
    let mut registry = Registry::default();
    register.iter().for_each(|register| register(&mut registry));
    registry
}
