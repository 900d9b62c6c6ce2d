//! The transforms of one tile, [`LANES`] channels side by side.

use crate::Float;
use crate::elementwise::rectified;
use crate::kernel::vectorized;
use crate::parallel::Shared;

/// Channels transformed at once: a 512-bit vector of `f32`.
pub(super) const LANES: usize = 16;

pub(super) type Lanes<T> = [T; LANES];

/// The finite interpolation points other than 0, one of each pair ±p, for tiles of N inputs. 0 is one where N is even.
struct Points<const N: usize>;

impl<const N: usize> Points<N> {
    /// How many points come before the pairs: 0 or nothing.
    const FIRST: usize = 1 - N % 2;
    const PAIRS: usize = (N - 1) / 2;
    const ALL: [f64; 3] = match N {
        5 | 6 => [std::f64::consts::FRAC_1_SQRT_2, std::f64::consts::SQRT_2, 0.0],
        8 => [0.5, 1.0, 2.0],
        _ => panic!("no points for tiles of this extent"),
    };
    /// Coefficients of x^2k in ∏(x² − p²), over all pairs.
    const PRODUCT: [f64; 4] = Self::product(3);
    /// The same without pair i.
    const WITHOUT: [[f64; 4]; 3] = [Self::product(0), Self::product(1), Self::product(2)];

    const fn product(without: usize) -> [f64; 4] {
        let mut c = [1.0, 0.0, 0.0, 0.0];
        let mut i = 0;
        while i < Self::PAIRS {
            if i != without {
                let square = Self::square(i);
                c = [-square * c[0], c[0] - square * c[1], c[1] - square * c[2], c[2] - square * c[3]];
            }
            i += 1;
        }
        c
    }

    /// p², without the rounding of √½ and √2.
    const fn square(i: usize) -> f64 {
        match N {
            5 | 6 => [0.5, 2.0, 0.0][i],
            _ => Self::ALL[i] * Self::ALL[i],
        }
    }

    /// The product of the distances of point pᵢ from the other finite ones; that of −pᵢ too, but for its sign where 0 is none.
    const fn distances(i: usize) -> f64 {
        let (s, c) = (Self::square(i), Self::WITHOUT[i]);
        let of_zero = if Self::FIRST == 1 { s } else { Self::ALL[i] };
        2.0 * of_zero * (c[0] + s * (c[1] + s * c[2]))
    }
}

/// Σ cₖ·d[first + 2k], from the highest index down.
#[inline(always)]
fn combine<T: Float, const N: usize>(c: &[f64; 4], d: &[T; N], first: usize, terms: usize) -> T {
    let mut sum = d[first + 2 * (terms - 1)];
    for k in (0..terms - 1).rev() {
        sum += T::of(c[k]) * d[first + 2 * k];
    }
    sum
}

#[inline(always)]
fn input<T: Float, const N: usize>(d: [T; N]) -> [T; N] {
    let (pairs, first) = (Points::<N>::PAIRS, Points::<N>::FIRST);
    let mut out = [combine(&Points::<N>::PRODUCT, &d, 0, pairs + 1); N];
    for i in 0..pairs {
        let even = combine(&Points::<N>::WITHOUT[i], &d, first + 1, pairs);
        let odd = T::of(Points::<N>::ALL[i]) * combine(&Points::<N>::WITHOUT[i], &d, first, pairs);
        // The sign that the distances of −p want.
        let less = if first == 1 { even - odd } else { odd - even };
        (out[first + 2 * i], out[first + 1 + 2 * i]) = (even + odd, less);
    }
    out[N - 1] = combine(&Points::<N>::PRODUCT, &d, first, pairs + 1);
    out
}

/// The values at the points, each times `factor(pair)`, of the polynomial with coefficients g; at ∞, its last coefficient.
#[inline(always)]
fn values<T: Float, const M: usize, const N: usize>(g: [T; M], at_zero: f64, factor: impl Fn(usize) -> f64) -> [T; N] {
    let first = Points::<N>::FIRST;
    let mut out = [T::of(at_zero) * g[0]; N];
    for i in 0..Points::<N>::PAIRS {
        let square = T::of(Points::<N>::square(i));
        let (mut even, mut odd) = (g[(M - 1) / 2 * 2], g[(M - 2) / 2 * 2 + 1]);
        for k in (0..(M - 1) / 2).rev() {
            even = g[2 * k] + square * even;
        }
        for k in (0..(M - 2) / 2).rev() {
            odd = g[2 * k + 1] + square * odd;
        }
        let (even, odd) = (T::of(factor(i)) * even, T::of(Points::<N>::ALL[i] * factor(i)) * odd);
        (out[first + 2 * i], out[first + 1 + 2 * i]) = (even + odd, even - odd);
    }
    out[N - 1] = g[M - 1];
    out
}

/// [`values`], each over the product of its point's distances from the other finite ones.
#[inline(always)]
fn taps<T: Float, const M: usize, const N: usize>(g: [T; M]) -> [T; N] {
    values(g, 1.0 / Points::<N>::PRODUCT[0], |i| 1.0 / Points::<N>::distances(i))
}

/// The transpose of [`input`], where 0 is a point.
#[inline(always)]
fn scatter<T: Float, const N: usize>(m: [T; N]) -> [T; N] {
    const { assert!(Points::<N>::FIRST == 1) }
    let (mut sums, mut odds) = ([T::zero(); 3], [T::zero(); 3]);
    for i in 0..Points::<N>::PAIRS {
        sums[i] = m[1 + 2 * i] + m[2 + 2 * i];
        odds[i] = T::of(Points::<N>::ALL[i]) * (m[1 + 2 * i] - m[2 + 2 * i]);
    }
    let mut d = [m[0]; N];
    for (j, d) in d.iter_mut().enumerate() {
        let (end, parts, first) = if j % 2 == 0 { (m[0], &sums, 2) } else { (m[N - 1], &odds, 1) };
        *d = T::of(Points::<N>::PRODUCT[j / 2]) * end;
        if j >= first && j < N - 1 {
            for i in 0..Points::<N>::PAIRS {
                *d += T::of(Points::<N>::WITHOUT[i][(j - first) / 2]) * parts[i];
            }
        }
    }
    d
}

/// The first M moments of m over the points: the transpose of [`values`] without factors.
#[inline(always)]
fn moments<T: Float, const M: usize, const N: usize>(m: [T; N]) -> [T; M] {
    let first = Points::<N>::FIRST;
    let mut y = [T::zero(); M];
    if first == 1 {
        y[0] = m[0];
    }
    for i in 0..Points::<N>::PAIRS {
        let square = T::of(Points::<N>::square(i));
        let (plus, minus) = (m[first + 2 * i], m[first + 1 + 2 * i]);
        let (mut even, mut odd) = (plus + minus, T::of(Points::<N>::ALL[i]) * (plus - minus));
        for k in 0..M {
            if k % 2 == 0 {
                y[k] += even;
                even = square * even;
            } else {
                y[k] += odd;
                odd = square * odd;
            }
        }
    }
    y[M - 1] += m[N - 1];
    y
}

/// Intermediate values of a tile, kept by the caller so that they are not cleared for each.
pub(super) struct Work<T, const N: usize> {
    columns: [[Lanes<T>; N]; N],
    row: [Lanes<T>; N],
}

impl<T: Float, const N: usize> Work<T, N> {
    pub(super) fn new() -> Self {
        Work { columns: [[[T::zero(); LANES]; N]; N], row: [[T::zero(); LANES]; N] }
    }
}

/// `std::array::from_fn`, which the compiler does not always inline.
#[inline(always)]
fn each<R: Copy, const I: usize>(f: impl Fn(usize) -> R) -> [R; I] {
    let mut all = [f(0); I];
    for i in 1..I {
        all[i] = f(i);
    }
    all
}

/// Applies a one-dimensional transform to every lane.
#[inline(always)]
fn lanes<T: Float, const I: usize, const O: usize, const N: usize>(
    src: [&Lanes<T>; I],
    dst: &mut [Lanes<T>; N],
    f: impl Fn([T; I]) -> [T; O],
) {
    for l in 0..LANES {
        let out = f(each(|i| src[i][l]));
        for o in 0..O {
            dst[o][l] = out[o];
        }
    }
}

/// Applies a transform down the columns and then along the rows of an I × I tile.
#[inline(always)]
fn both<'a, T: Float, const I: usize, const O: usize, const N: usize>(
    work: &mut Work<T, N>,
    at: impl Fn(usize, usize) -> &'a Lanes<T>,
    mut put: impl FnMut(usize, usize, &Lanes<T>),
    f: impl Fn([T; I]) -> [T; O] + Copy,
) {
    for b in 0..I {
        lanes(each(|a| at(a, b)), &mut work.columns[b], f);
    }
    for a in 0..O {
        lanes(each(|b| &work.columns[b][a]), &mut work.row, f);
        for b in 0..O {
            put(a, b, &work.row[b]);
        }
    }
}

/// The frequencies of a tile, `stride` elements apart in `data` from `first` on.
#[derive(Clone, Copy)]
pub(super) struct Frequencies<'a, T> {
    pub data: &'a [T],
    pub first: usize,
    pub stride: usize,
}

impl<'a, T: Float> Frequencies<'a, T> {
    /// Those of the tile so many [`LANES`] on.
    pub fn tile(self, t: usize) -> Self {
        Frequencies { first: self.first + t * LANES, ..self }
    }

    /// The lanes of each frequency (a, b) of N × N.
    #[inline(always)]
    fn lanes<const N: usize>(&self) -> impl Fn(usize, usize) -> &'a Lanes<T> {
        let (data, stride) = (&self.data[self.first..][..(N * N - 1) * self.stride + LANES], self.stride);
        // SAFETY: a and b are below N, so the lanes are within what was just cut out.
        move |a, b| unsafe { &*data.as_ptr().add((a * N + b) * stride).cast() }
    }
}

/// Writes the lanes of frequency (a, b) of N × N to `out[first + (a·N + b)·stride..]`.
///
/// # Safety
/// The lanes are the caller's alone, and a and b below N.
#[inline(always)]
unsafe fn writer<T: Float, const N: usize>(
    out: &Shared<'_, T>,
    first: usize,
    stride: usize,
) -> impl FnMut(usize, usize, &Lanes<T>) {
    let to = out.at(first, (N * N - 1) * stride + LANES);
    // SAFETY: within what was just checked, and the caller's.
    move |a, b, v| unsafe { to.add((a * N + b) * stride).cast::<Lanes<T>>().write(*v) }
}

vectorized! {
    /// The N² frequencies of an M × M tile whose positions are at `places` of `region`, counted in vectors, to
    /// `out[first + f·stride..]`: of inputs by Bᵀ if M is N, else of weights by G or of gradients by G̃.
    ///
    /// Nothing else may use those lanes of `out` meanwhile.
    pub(super) fn spread[T: Float, const M: usize, const N: usize](
        work: &mut Work<T, N>,
        region: &[T],
        places: &[[u32; M]],
        out: &Shared<'_, T>,
        first: usize,
        stride: usize,
    ) {
        let (places, region) = (&places[..M], region.as_chunks::<LANES>().0);
        let at = |a: usize, b: usize| &region[places[a][b] as usize];
        // SAFETY: the lanes are the caller's alone.
        let put = unsafe { writer::<T, N>(out, first, stride) };
        if M == N {
            both(work, at, put, input::<T, N>);
        } else {
            both(work, at, put, taps::<T, M, N>);
        }
    }
}

vectorized! {
    /// The frequencies of a tile of gradients by A, placed as [`spread`] does.
    pub(super) fn spread_values[T: Float, const M: usize, const N: usize](
        work: &mut Work<T, N>,
        region: &[T],
        places: &[[u32; M]],
        out: &Shared<'_, T>,
        first: usize,
        stride: usize,
    ) {
        let (places, region) = (&places[..M], region.as_chunks::<LANES>().0);
        let at = |a: usize, b: usize| &region[places[a][b] as usize];
        // SAFETY: the lanes are the caller's alone.
        let put = unsafe { writer::<T, N>(out, first, stride) };
        both(work, at, put, |e: [T; M]| -> [T; N] { values(e, 1.0, |_| 1.0) });
    }
}

vectorized! {
    /// Adds the N × N inputs' gradient of a tile to `places` of `region`.
    pub(super) fn add_inputs[T: Float, const N: usize](
        work: &mut Work<T, N>,
        frequencies: Frequencies<'_, T>,
        region: &mut [T],
        places: &[[u32; N]],
    ) {
        let (places, region) = (&places[..N], region.as_chunks_mut::<LANES>().0);
        let put = |a: usize, b: usize, v: &Lanes<T>| {
            let dst = &mut region[places[a][b] as usize];
            for l in 0..LANES {
                dst[l] += v[l];
            }
        };
        both(work, frequencies.lanes::<N>(), put, scatter::<T, N>);
    }
}

/// A function like [`gather_outputs`].
pub(super) type GatherTile<T, const M: usize, const N: usize> =
    fn(&mut Work<T, N>, Frequencies<'_, T>, &Lanes<T>, &mut [T], &[[u32; M]]);

/// [`gather_outputs`] with a ReLU at its end or without.
pub(super) fn gather_by<T: Float, const M: usize, const N: usize>(relu: bool) -> GatherTile<T, M, N> {
    if relu {
        |work, frequencies, bias, region, places| gather_outputs(work, frequencies, bias, region, places, rectified)
    } else {
        |work, frequencies, bias, region, places| gather_outputs(work, frequencies, bias, region, places, |y| y)
    }
}

vectorized! {
    /// The outputs of a tile, plus `bias` and through `finish`, to `places` of `region`.
    fn gather_outputs[T: Float, const M: usize, const N: usize, F: Fn(T) -> T](
        work: &mut Work<T, N>,
        frequencies: Frequencies<'_, T>,
        bias: &Lanes<T>,
        region: &mut [T],
        places: &[[u32; M]],
        finish: F,
    ) {
        let (places, region) = (&places[..M], region.as_chunks_mut::<LANES>().0);
        let put = |a: usize, b: usize, v: &Lanes<T>| {
            let mut y = [T::zero(); LANES];
            for l in 0..LANES {
                y[l] = finish(v[l] + bias[l]);
            }
            region[places[a][b] as usize] = y;
        };
        both(work, frequencies.lanes::<N>(), put, moments::<T, M, N>);
    }
}

vectorized! {
    /// The K × K weights of these frequencies, one lane for each channel.
    pub(super) fn gather_kernels[T: Float, const K: usize, const N: usize](
        work: &mut Work<T, N>,
        frequencies: Frequencies<'_, T>,
        taps: &mut [[Lanes<T>; K]; K],
    ) {
        let put = |a: usize, b: usize, v: &Lanes<T>| taps[a][b] = *v;
        both(work, frequencies.lanes::<N>(), put, moments::<T, K, N>);
    }
}
