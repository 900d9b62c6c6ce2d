//! NVIDIA's libraries on this machine: which there are, where they lie, how they are loaded, and the GPUs that the driver
//! lists.

mod component;
mod devices;
mod library;
mod search;

pub use component::{Component, Version};
pub(crate) use devices::devices;
pub use devices::{Device, NoDevice};
pub use library::{Found, Library, Looked, Missing, Outcome};
pub(crate) use library::{Loaded, find, load};
pub use search::{Place, SearchPath, Spot};
