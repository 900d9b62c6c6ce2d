//! NVIDIA's libraries on this machine: which there are, where they lie and how they are loaded.

mod component;
mod library;
mod search;

pub use component::{Component, Version};
pub use library::{Found, Library, Looked, Missing, Outcome, Unusable};
pub(crate) use library::{Loaded, find, load};
pub use search::{Place, SearchPath, Spot};
