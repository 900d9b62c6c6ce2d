//! Host memory that a GPU copies from and to: pinned buffers, and what moves through them.

mod feed;
mod pinned;
mod staging;

pub use feed::Feed;
pub use pinned::PinnedBuffer;
pub(super) use staging::Staging;
