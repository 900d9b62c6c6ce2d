//! lgm-net
