//! The random choices of a data source: orders, crops and mirrors.
//!
//! Each is a pure function of the run's seed, the layer's name and phase, and small counters (the epoch, the number of
//! images seen). So a position is a few numbers, and a resumed run sees the images of the run that never stopped, in
//! the same order and cut the same way, however far ahead anything was read.

use lgm_core::Phase;
use lgm_core::rng::{Philox, Sequence, stream_id};

/// Draws of one data layer.
#[derive(Clone, Debug)]
pub(crate) struct Draws {
    seed: u64,
    name: String,
    images: Philox,
}

/// What was drawn for one image, as 32-bit fractions.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ImageDraw {
    words: [u32; 4],
}

impl Draws {
    /// The draws of layer `layer` in `phase`.
    pub fn new(seed: u64, layer: &str, phase: Phase) -> Self {
        let name = format!("{layer} {}", if phase == Phase::Train { "TRAIN" } else { "TEST" });
        let images = Philox::new(seed, stream_id(&name, "images"));
        Draws { seed, name, images }
    }

    /// A random order of `0..n`, its own for each `what` and `counters`.
    pub fn permutation(&self, what: &str, counters: &[u64], n: usize) -> Vec<u32> {
        let purpose = counters.iter().fold(what.to_string(), |s, c| format!("{s} {c}"));
        let mut order: Vec<u32> = (0..n as u32).collect();
        Philox::new(self.seed, stream_id(&self.name, &purpose)).from(0).shuffle(&mut order);
        order
    }

    /// A number in `0..n`, drawn once for `what`.
    pub fn once(&self, what: &str, n: usize) -> usize {
        Philox::new(self.seed, stream_id(&self.name, what)).from(0).below(n.max(1))
    }

    /// A sequence of draws, its own for each `what` and `counter`.
    pub fn sequence(&self, what: &str, counter: u64) -> Sequence {
        Philox::new(self.seed, stream_id(&self.name, &format!("{what} {counter}"))).from(0)
    }

    /// The draws for the image that is number `image` since training began.
    pub fn image(&self, image: u64) -> ImageDraw {
        ImageDraw { words: self.images.at(image) }
    }
}

impl ImageDraw {
    /// A corner for a window of a height and width in an image of `height` by `width`: (top, left).
    pub fn corner(&self, window: [usize; 2], height: usize, width: usize) -> (usize, usize) {
        (below(self.words[0], height - window[0] + 1), below(self.words[1], width - window[1] + 1))
    }

    /// A number in `0..n`, independent of the corner and of mirroring.
    pub fn among(&self, n: usize) -> usize {
        below(self.words[3], n)
    }

    /// Whether to mirror: one time in two.
    pub fn mirror(&self) -> bool {
        self.words[2] >> 31 == 1
    }
}

// The bias is n / 2^32: nothing, for the extents of images.
fn below(word: u32, n: usize) -> usize {
    ((word as u64 * n as u64) >> 32) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn permutations_are_complete_and_differ_by_counter_layer_phase_and_seed() {
        let order = |seed, layer, phase, epoch| Draws::new(seed, layer, phase).permutation("rows", &[epoch], 50);
        let base = order(1, "data", Phase::Train, 0);
        let mut sorted = base.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, (0..50).collect::<Vec<_>>());
        assert_eq!(base, order(1, "data", Phase::Train, 0));
        for other in [
            order(1, "data", Phase::Train, 1),
            order(1, "other", Phase::Train, 0),
            order(1, "data", Phase::Test, 0),
            order(2, "data", Phase::Train, 0),
        ] {
            assert_ne!(base, other);
        }
    }

    #[test]
    fn corners_and_mirrors_are_even() {
        let draws = Draws::new(3, "data", Phase::Train);
        let (mut corners, mut mirrors) = ([[0usize; 3]; 2], 0);
        for image in 0..6000 {
            let d = draws.image(image);
            let (h, w) = d.corner([4; 2], 5, 6);
            corners[h][w] += 1;
            mirrors += usize::from(d.mirror());
        }
        assert!(corners.iter().flatten().all(|&n| (850..1150).contains(&n)), "{corners:?}");
        assert!((2850..3150).contains(&mirrors), "{mirrors}");
    }
}
