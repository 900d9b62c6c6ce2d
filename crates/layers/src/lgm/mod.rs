//! Classes as Gaussians: the distances of features to centers as logits, and the large-margin Gaussian Mixture loss.

use lgm_core::{BlobSpec, Result, Shape, ensure};

mod class_distance;
mod device_pairs;
mod loss;
mod pairs;

pub use class_distance::{ClassDistance, DIAGONAL_FLOOR, ISOTROPIC_EPSILON};
pub use loss::LgmLoss;

/// M items of K features against N classes.
#[derive(Clone, Copy, Debug, Default)]
struct Extents {
    /// M.
    items: usize,
    /// N.
    classes: usize,
    /// K.
    width: usize,
}

/// Says that fields the fork has but never uses do nothing here either.
fn warn_unused(bias_term: bool, dropout_ratio: f32) {
    if bias_term {
        tracing::warn!("bias_term has no effect: the second parameter holds the variances");
    }
    if dropout_ratio != 0.0 {
        tracing::warn!("dropout_ratio has no effect; put a Dropout layer before this one");
    }
}

/// The number of classes, and the shapes of centers and variances for `features`.
fn mixture_shapes(num_output: u32, isotropic: bool, features: &BlobSpec) -> Result<(usize, usize, [Shape; 2])> {
    ensure!(num_output > 0, "num_output, the number of classes, must be given and positive");
    let shape = &features.shape;
    ensure!(!shape.is_empty(), "the features must have a batch axis, found a scalar");
    let (classes, width) = (num_output as usize, shape.count_from(1));
    ensure!(width > 0, "the features must not be empty, found shape {shape}");
    let centers = Shape::from([classes, width]);
    let sigma = if isotropic { Shape::from([classes]) } else { centers.clone() };
    Ok((classes, width, [centers, sigma]))
}
