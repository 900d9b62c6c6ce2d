//! Where a position of the top looks in the image, by the kinds of transformation.

use lgm_core::{Error, Float, Result};

/// A kind of transformation, as the kernels number it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Transform {
    Affine = 0,
    Translation = 1,
    TranslationScaling = 2,
    Projective = 3,
    Grid = 4,
    Similarity = 5,
    SimilarityPlus = 6,
}

/// Most numbers of theta that an item has, but for a grid.
pub(super) const MOST: usize = 8;

const NAMES: [(&str, Transform); 7] = [
    ("affine", Transform::Affine),
    ("translation", Transform::Translation),
    ("translation_scaling", Transform::TranslationScaling),
    ("projective", Transform::Projective),
    ("grid", Transform::Grid),
    ("similarity", Transform::Similarity),
    ("similarity+", Transform::SimilarityPlus),
];

impl Transform {
    /// By `transform_type`.
    pub fn named(name: &str) -> Result<Transform> {
        let found = NAMES.iter().find(|(known, _)| *known == name);
        found.map(|(_, transform)| *transform).ok_or_else(|| Error::Unknown {
            what: "unknown transform_type".into(),
            found: name.into(),
            hint: lgm_core::nearest(name, NAMES.map(|(known, _)| known)).map(str::to_string),
            among: format!(" (known types: {})", NAMES.map(|(known, _)| known).join(", ")),
        })
    }

    /// Numbers of theta for an item with `positions` positions.
    pub fn size(self, positions: usize) -> usize {
        match self {
            Transform::Affine => 6,
            Transform::Translation => 2,
            Transform::TranslationScaling | Transform::Similarity => 4,
            Transform::Projective => MOST,
            Transform::Grid => 2 * positions,
            Transform::SimilarityPlus => 5,
        }
    }

    /// Whether places beyond the image are brought to its border; else they see zeros there.
    pub fn is_bounded(self) -> bool {
        !matches!(self, Transform::Grid | Transform::Similarity | Transform::SimilarityPlus)
    }

    /// Where a target at (u, v) looks, all from −1 to 1. Of a grid nothing is asked.
    pub fn look<T: Float>(self, t: &[T], (u, v): (T, T), scales: [T; 2]) -> (T, T) {
        match self {
            Transform::Affine | Transform::Grid => (t[0] * u + t[1] * v + t[2], t[3] * u + t[4] * v + t[5]),
            Transform::Translation => (scales[0] * u + t[0], scales[1] * v + t[1]),
            Transform::TranslationScaling => (t[0] * u + t[1], t[2] * v + t[3]),
            Transform::Projective => {
                let z = (t[6] * u + t[7] * v + T::one()).recip();
                ((t[0] * u + t[1] * v + t[2]) * z, (t[3] * u + t[4] * v + t[5]) * z)
            }
            Transform::Similarity => {
                let (s, c) = t[0].sin_cos();
                (t[1] * (u * c - v * s) + t[2], t[1] * (u * s + v * c) + t[3])
            }
            Transform::SimilarityPlus => {
                let (s, c) = t[0].sin_cos();
                (t[1] * u * c - t[2] * v * s + t[3], t[1] * u * s + t[2] * v * c + t[4])
            }
        }
    }

    /// The gradient of theta from that of the place, (gx, gy).
    pub fn pull<T: Float>(self, t: &[T], (u, v): (T, T), scales: [T; 2], (gx, gy): (T, T)) -> [T; MOST] {
        let o = T::zero();
        let (x, y) = self.look(t, (u, v), scales);
        match self {
            Transform::Affine | Transform::Grid => [gx * u, gx * v, gx, gy * u, gy * v, gy, o, o],
            Transform::Translation => [gx, gy, o, o, o, o, o, o],
            Transform::TranslationScaling => [gx * u, gx, gy * v, gy, o, o, o, o],
            Transform::Projective => {
                let z = (t[6] * u + t[7] * v + T::one()).recip();
                let (gx, gy, pull) = (gx * z, gy * z, -z * (gx * x + gy * y));
                [gx * u, gx * v, gx, gy * u, gy * v, gy, pull * u, pull * v]
            }
            Transform::Similarity | Transform::SimilarityPlus => {
                let (s, c) = t[0].sin_cos();
                let (by_u, by_v) = ((gx * c + gy * s) * u, (gy * c - gx * s) * v);
                let turn = |at: usize| gy * (x - t[at]) - gx * (y - t[at + 1]);
                match self {
                    Transform::Similarity => [turn(2), by_u + by_v, gx, gy, o, o, o, o],
                    _ => [turn(3), by_u, by_v, gx, gy, o, o, o],
                }
            }
        }
    }
}
