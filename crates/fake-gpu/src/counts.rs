//! What was done.

macro_rules! counts {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {
        /// How often something was done since the process began or a test set the counts back.
        #[derive(Clone, Copy, Debug, Default)]
        pub struct Counts {
            $($(#[$doc])* pub $name: u64,)*
        }

        impl Counts {
            pub fn of(&self, name: &[u8]) -> Option<u64> {
                $(if name == stringify!($name).as_bytes() {
                    return Some(self.$name);
                })*
                None
            }
        }
    };
}

counts! {
    /// Calls that can fail.
    calls,
    /// Blocks of device and of pinned memory that were asked for.
    allocations,
    /// Blocks of either now.
    blocks,
    /// The most bytes of device memory at a time.
    peak,
    /// Kernels put on a stream or recorded.
    launches,
    /// Products.
    products,
    /// Passes of convolutions.
    convolutions,
    /// Those that cuDNN refused when it was to run them.
    refusals,
    /// Copies, within the device and to and from the host.
    copies,
    /// Bytes that copies to and from the host moved.
    bytes,
    /// Memory set to a value.
    fills,
    /// Graphs made.
    graphs,
    /// Nodes of the last.
    nodes,
    /// Graphs put on a stream.
    replays,
    /// Times that the host waited for a stream or an event.
    waits,
    /// Contexts that were opened.
    contexts,
    /// Objects alive now.
    objects,
    /// Mistakes.
    violations,
}
