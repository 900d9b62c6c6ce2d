//! lgm-solver
