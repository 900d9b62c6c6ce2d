//! Counter-based random numbers: Philox4x32-10 (Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3", 2011).
//!
//! Every number is a pure function of (seed, stream, counter). A stream is named after what draws from it (a layer, a
//! parameter), the counter after when (iteration, element), so the CPU, the GPU, any number of threads and a resumed
//! run all draw the same numbers.

/// Names a stream of random numbers: FNV-1a over `name` and `purpose`.
pub fn stream_id(name: &str, purpose: &str) -> u64 {
    fnv1a(name.bytes().chain([0]).chain(purpose.bytes()))
}

/// The 64-bit FNV-1a hash: for names of things, where nobody gains by a collision.
pub fn fnv1a(bytes: impl IntoIterator<Item = u8>) -> u64 {
    bytes.into_iter().fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3))
}

/// A keyed generator. Cheap to copy; holds no position.
#[derive(Clone, Copy, Debug)]
pub struct Philox {
    key: [u32; 2],
    stream: u64,
}

impl Philox {
    /// The generator of a run's `seed` for one `stream` (see [`stream_id`]).
    pub fn new(seed: u64, stream: u64) -> Self {
        Philox { key: [seed as u32, (seed >> 32) as u32], stream }
    }

    /// Four random words for `counter`.
    #[inline]
    pub fn at(&self, counter: u64) -> [u32; 4] {
        self.at_each::<1>(counter)[0]
    }

    /// The words of `N` counters from `first` on, side by side so that the compiler makes vectors of them: lanes hold 32
    /// bits of 64, as the products need them.
    #[inline(always)]
    pub fn at_each<const N: usize>(&self, first: u64) -> [[u32; 4]; N] {
        const LOW: u64 = u32::MAX as u64;
        let counters: [u64; N] = std::array::from_fn(|l| first.wrapping_add(l as u64));
        let (mut c0, mut c1) = (counters.map(|c| c & LOW), counters.map(|c| c >> 32));
        let (mut c2, mut c3) = ([self.stream & LOW; N], [self.stream >> 32; N]);
        let mut k = self.key;
        for _ in 0..10 {
            let [k0, k1] = k.map(u64::from);
            for l in 0..N {
                let (p0, p1) = (0xD251_1F53 * (c0[l] & LOW), 0xCD9E_8D57 * (c2[l] & LOW));
                (c0[l], c1[l], c2[l], c3[l]) = ((p1 >> 32) ^ c1[l] ^ k0, p1 & LOW, (p0 >> 32) ^ c3[l] ^ k1, p0 & LOW);
            }
            k = [k[0].wrapping_add(0x9E37_79B9), k[1].wrapping_add(0xBB67_AE85)];
        }
        std::array::from_fn(|l| [c0[l] as u32, c1[l] as u32, c2[l] as u32, c3[l] as u32])
    }

    /// The numbers from counter `start` on, one after another.
    pub fn from(&self, start: u64) -> Sequence {
        Sequence { philox: *self, counter: start, words: [0; 4], left: 0 }
    }
}

/// Maps a random word to [0, 1) with 24 bits.
#[inline]
pub fn unit(word: u32) -> f64 {
    (word >> 8) as f64 / (1u32 << 24) as f64
}

/// A position in a Philox stream.
#[derive(Clone, Debug)]
pub struct Sequence {
    philox: Philox,
    counter: u64,
    words: [u32; 4],
    left: u8,
}

impl Sequence {
    /// The next random word.
    #[inline]
    pub fn word(&mut self) -> u32 {
        if self.left == 0 {
            self.words = self.philox.at(self.counter);
            self.counter += 1;
            self.left = 4;
        }
        self.left -= 1;
        self.words[3 - self.left as usize]
    }

    /// Uniform in [0, 1), 53 bits.
    pub fn unit(&mut self) -> f64 {
        let hi = (self.word() >> 5) as u64;
        let lo = (self.word() >> 6) as u64;
        ((hi << 26) | lo) as f64 / (1u64 << 53) as f64
    }

    /// Uniform in [lo, hi).
    pub fn uniform(&mut self, lo: f64, hi: f64) -> f64 {
        lo + (hi - lo) * self.unit()
    }

    /// Normal with the given mean and standard deviation (Box–Muller; two uniforms a draw).
    pub fn gaussian(&mut self, mean: f64, std: f64) -> f64 {
        let (u, v) = (1.0 - self.unit(), self.unit());
        mean + std * (-2.0 * u.ln()).sqrt() * (2.0 * std::f64::consts::PI * v).cos()
    }

    /// Uniform in 0..n, without modulo bias. `n` must be positive.
    pub fn below(&mut self, n: usize) -> usize {
        debug_assert!(n > 0);
        let n = n as u64;
        if n <= u32::MAX as u64 {
            loop {
                let m = self.word() as u64 * n;
                if (m as u32) as u64 >= (1u64 << 32) % n {
                    return (m >> 32) as usize;
                }
            }
        }
        let word = (self.word() as u64) << 32 | self.word() as u64;
        ((word as u128 * n as u128) >> 64) as usize
    }

    /// Shuffles in place (Fisher–Yates).
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            items.swap(i, self.below(i + 1));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn matches_the_published_vectors() {
        // Known-answer vectors of the Random123 distribution.
        assert_eq!(Philox::new(0, 0).at(0), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        assert_eq!(Philox::new(u64::MAX, u64::MAX).at(u64::MAX), [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]);
    }

    #[test]
    fn counters_side_by_side_give_what_each_gives() {
        let philox = Philox::new(0x1234_5678_9abc_def0, 0xfedc_ba98_7654_3210);
        for first in [0, 7, (1 << 32) - 3, u64::MAX - 4] {
            let each: Vec<_> = (0..16).map(|l| philox.at(first.wrapping_add(l))).collect();
            assert_eq!(philox.at_each::<16>(first).to_vec(), each);
        }
    }

    #[test]
    fn draws_have_the_moments_asked_for() {
        let mut s = Philox::new(7, stream_id("x", "test")).from(0);
        let n = 200_000;
        let xs: Vec<f64> = (0..n).map(|_| s.gaussian(2.0, 3.0)).collect();
        let mean = xs.iter().sum::<f64>() / n as f64;
        let var = xs.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n as f64;
        assert!((mean - 2.0).abs() < 0.03 && (var - 9.0).abs() < 0.15, "{mean} {var}");
        let mut hist = [0usize; 7];
        (0..70_000).for_each(|_| hist[s.below(7)] += 1);
        assert!(hist.iter().all(|&h| (9_500..10_500).contains(&h)), "{hist:?}");
        let mut p: Vec<u32> = (0..100).collect();
        s.shuffle(&mut p);
        assert!(p.iter().enumerate().any(|(i, &v)| i as u32 != v));
        p.sort_unstable();
        assert_eq!(p, (0..100).collect::<Vec<_>>());
    }
}
