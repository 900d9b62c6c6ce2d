//! The transforms of one tile, [`LANES`] channels side by side.

use crate::Float;
use crate::kernel::vectorized;
use crate::parallel::Shared;

/// Channels transformed at once: a 512-bit vector of `f32`.
pub(super) const LANES: usize = 16;

pub(super) type Lanes<T> = [T; LANES];

/// √½, the smaller of the interpolation points; the larger is √2, so their squares are ½ and 2.
const P: f64 = std::f64::consts::FRAC_1_SQRT_2;
const Q: f64 = std::f64::consts::SQRT_2;

#[inline(always)]
fn input<T: Float>(d: [T; 6]) -> [T; 6] {
    let (half, two, middle) = (T::of(0.5), T::of(2.0), T::of(2.5));
    let (p, q) = (T::of(P), T::of(Q));
    let (s, t) = (d[4] - two * d[2], p * (d[3] - two * d[1]));
    let (u, v) = (d[4] - half * d[2], q * (d[3] - half * d[1]));
    [d[0] - middle * d[2] + d[4], s + t, s - t, u + v, u - v, d[1] - middle * d[3] + d[5]]
}

/// The values of the polynomial with coefficients g at the points, each over the product of its distances from the others.
#[inline(always)]
fn taps<T: Float, const N: usize>(g: [T; N]) -> [T; 6] {
    let (half, two) = (T::of(0.5), T::of(2.0));
    let (even, odd) = (N - 1 - (N + 1) % 2, N - 1 - N % 2);
    let (mut s, mut u, mut t, mut v) = (g[even], g[even], g[odd], g[odd]);
    for i in (0..N - 2).rev() {
        if i % 2 == 0 {
            (s, u) = (g[i] + half * s, g[i] + two * u);
        } else {
            (t, v) = (g[i] + half * t, g[i] + two * v);
        }
    }
    let (s, t, u, v) = (T::of(-1.0 / 1.5) * s, T::of(-P / 1.5) * t, T::of(1.0 / 6.0) * u, T::of(Q / 6.0) * v);
    [g[0], s + t, s - t, u + v, u - v, g[N - 1]]
}

/// As [`taps`], the divisors aside: the transpose of [`moments`].
#[inline(always)]
fn values<T: Float>(e: [T; 2]) -> [T; 6] {
    let (t, v) = (T::of(P) * e[1], T::of(Q) * e[1]);
    [e[0], e[0] + t, e[0] - t, e[0] + v, e[0] - v, e[1]]
}

/// The transpose of [`input`].
#[inline(always)]
fn scatter<T: Float>(m: [T; 6]) -> [T; 6] {
    let (half, two, middle) = (T::of(0.5), T::of(2.0), T::of(2.5));
    let (s, t) = (m[1] + m[2], T::of(P) * (m[1] - m[2]));
    let (u, v) = (m[3] + m[4], T::of(Q) * (m[3] - m[4]));
    [
        m[0],
        m[5] - two * t - half * v,
        T::zero() - middle * m[0] - two * s - half * u,
        t + v - middle * m[5],
        m[0] + s + u,
        m[5],
    ]
}

/// The first N moments of m over the points: what [`taps`] is the transpose of, the divisors aside.
#[inline(always)]
fn moments<T: Float, const N: usize>(m: [T; 6]) -> [T; N] {
    let (half, two) = (T::of(0.5), T::of(2.0));
    let (mut s, mut t) = (m[1] + m[2], T::of(P) * (m[1] - m[2]));
    let (mut u, mut v) = (m[3] + m[4], T::of(Q) * (m[3] - m[4]));
    let mut y = [m[0] + s + u; N];
    for i in 1..N {
        if i % 2 == 1 {
            y[i] = t + v;
            (t, v) = (half * t, two * v);
        } else {
            (s, u) = (half * s, two * u);
            y[i] = s + u;
        }
    }
    y[N - 1] += m[5];
    y
}

/// Intermediate values of a tile, kept by the caller so that they are not cleared for each.
pub(super) struct Work<T> {
    columns: [[Lanes<T>; 6]; 6],
    row: [Lanes<T>; 6],
}

impl<T: Float> Work<T> {
    pub(super) fn new() -> Self {
        Work { columns: [[[T::zero(); LANES]; 6]; 6], row: [[T::zero(); LANES]; 6] }
    }
}

/// Applies a one-dimensional transform to every lane.
#[inline(always)]
fn lanes<T: Float, const I: usize, const O: usize>(
    src: [&Lanes<T>; I],
    dst: &mut [Lanes<T>; 6],
    f: impl Fn([T; I]) -> [T; O],
) {
    for l in 0..LANES {
        let out = f(std::array::from_fn(|i| src[i][l]));
        for o in 0..O {
            dst[o][l] = out[o];
        }
    }
}

/// Applies a transform down the columns and then along the rows of an I × I tile.
#[inline(always)]
fn both<'a, T: Float, const I: usize, const O: usize>(
    work: &mut Work<T>,
    at: impl Fn(usize, usize) -> &'a Lanes<T>,
    mut put: impl FnMut(usize, usize, &Lanes<T>),
    f: impl Fn([T; I]) -> [T; O] + Copy,
) {
    for b in 0..I {
        lanes(std::array::from_fn(|a| at(a, b)), &mut work.columns[b], f);
    }
    for a in 0..O {
        lanes(std::array::from_fn(|b| &work.columns[b][a]), &mut work.row, f);
        for b in 0..O {
            put(a, b, &work.row[b]);
        }
    }
}

/// The lanes at an element of a slice.
#[inline(always)]
fn lanes_at<T: Float>(data: &[T], at: usize) -> &Lanes<T> {
    match data[at..].first_chunk() {
        Some(lanes) => lanes,
        None => unreachable!("a tile outside its region"),
    }
}

vectorized! {
    /// The 36 frequencies of an N × N tile whose positions lie at `places` of `region`, to `out[first + f·stride..]`: of
    /// inputs by Bᵀ if N is 6, else of weights by G or of gradients by G̃.
    ///
    /// Nothing else may use those lanes of `out` meanwhile.
    pub(super) fn spread[T: Float, const N: usize](
        work: &mut Work<T>,
        region: &[T],
        places: &[[u32; N]],
        out: &Shared<'_, T>,
        first: usize,
        stride: usize,
    ) {
        let places = &places[..N];
        let at = |a: usize, b: usize| lanes_at(region, places[a][b] as usize);
        let put = |a: usize, b: usize, v: &Lanes<T>| {
            let to = first + (a * 6 + b) * stride;
            // SAFETY: the lanes are the caller's alone.
            unsafe { out.part(to..to + LANES) }.copy_from_slice(v);
        };
        match N {
            6 => both(work, at, put, input),
            _ => both(work, at, put, taps::<T, N>),
        }
    }
}

vectorized! {
    /// The 36 frequencies of a 2 × 2 tile of gradients by A, placed as [`spread`] does.
    pub(super) fn spread_values[T: Float](
        work: &mut Work<T>,
        region: &[T],
        places: &[[u32; 2]],
        out: &Shared<'_, T>,
        first: usize,
        stride: usize,
    ) {
        let places = &places[..2];
        let at = |a: usize, b: usize| lanes_at(region, places[a][b] as usize);
        let put = |a: usize, b: usize, v: &Lanes<T>| {
            let to = first + (a * 6 + b) * stride;
            // SAFETY: the lanes are the caller's alone.
            unsafe { out.part(to..to + LANES) }.copy_from_slice(v);
        };
        both(work, at, put, values);
    }
}

vectorized! {
    /// Adds the 6 × 6 inputs' gradient of a tile whose frequencies lie `stride` apart from `first` on to `places` of
    /// `region`.
    pub(super) fn add_inputs[T: Float](
        work: &mut Work<T>,
        products: &[T],
        first: usize,
        stride: usize,
        region: &mut [T],
        places: &[[u32; 6]],
    ) {
        let put = |a: usize, b: usize, v: &Lanes<T>| {
            let dst = &mut region[places[a][b] as usize..][..LANES];
            for l in 0..LANES {
                dst[l] += v[l];
            }
        };
        both(work, |a, b| lanes_at(products, first + (a * 6 + b) * stride), put, scatter);
    }
}

vectorized! {
    /// The N × N outputs of a tile whose frequencies lie `stride` apart from `first` on, plus `bias`, to `places` of
    /// `region`.
    pub(super) fn gather_outputs[T: Float, const N: usize](
        work: &mut Work<T>,
        products: &[T],
        first: usize,
        stride: usize,
        bias: &Lanes<T>,
        region: &mut [T],
        places: &[[u32; N]],
    ) {
        let put = |a: usize, b: usize, v: &Lanes<T>| {
            let dst = &mut region[places[a][b] as usize..][..LANES];
            for l in 0..LANES {
                dst[l] = v[l] + bias[l];
            }
        };
        both(work, |a, b| lanes_at(products, first + (a * 6 + b) * stride), put, moments::<T, N>);
    }
}

vectorized! {
    /// The N × N weights whose frequencies lie `stride` apart from `first` on, one lane for each channel.
    pub(super) fn gather_kernels[T: Float, const N: usize](
        work: &mut Work<T>,
        products: &[T],
        first: usize,
        stride: usize,
        taps: &mut [[Lanes<T>; N]; N],
    ) {
        let put = |a: usize, b: usize, v: &Lanes<T>| taps[a][b] = *v;
        both(work, |a, b| lanes_at(products, first + (a * 6 + b) * stride), put, moments::<T, N>);
    }
}
