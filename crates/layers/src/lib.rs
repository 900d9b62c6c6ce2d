//! The layers of lgm-caffe, one file each: what it computes, its shapes, its host run and its tests.

use lgm_core::Registry;

/// Declares the layer modules and the types each registers: `file { "Type" => Struct, … }`. Every struct has
/// `pub(crate) fn build(&LayerParameter, &BuildCx) -> Result<Node>`.
macro_rules! layers {
    ($($module:ident { $($kind:literal => $layer:ident),+ $(,)? })*) => {
        $(pub mod $module;)*

        /// Adds every layer of this crate to a registry.
        pub fn register(registry: &mut Registry) {
            $($(registry.add($kind, $module::$layer::build);)+)*
        }
    };
}

layers! {
}
