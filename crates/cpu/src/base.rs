pub use lgm_core::Float;
