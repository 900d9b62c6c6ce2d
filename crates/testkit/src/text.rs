//! What tests of several crates look for in texts, and the layers they know.

use lgm_core::Registry;

/// Checks that a text says all of `parts`, in order.
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
