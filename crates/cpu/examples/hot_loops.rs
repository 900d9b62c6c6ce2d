//! The hot loops one at a time, for counting their instructions: `hot_loops NAME REPEATS` runs one so many times and says how
//! many units of work a time is; without arguments it lists the names. `scripts/instructions` does the counting.
//!
//! A unit is a multiply-add of the direct algorithm, or an element of the larger blob.

use std::process::ExitCode;

use lgm_core::Axes3;
use lgm_core::Window;
use lgm_cpu::batchnorm::{self, Affine, Normalization, Normalized};
use lgm_cpu::conv::{Algorithm, Epilogue};
use lgm_cpu::lrn::Lrn;
use lgm_cpu::pool::{PoolGeometry, Round};
use lgm_cpu::{ConvGeometry, Gemm, MatMut, MatRef, elementwise, math, prelu, softmax};

fn noise(len: usize) -> Vec<f32> {
    (0..len).map(|i| ((i * 2_654_435_761) % 1000) as f32 / 500.0 - 1.0).collect()
}

/// A loop, and the units of work in one go.
type HotLoop = (Box<dyn FnMut()>, usize);

fn product(trans_b: bool) -> HotLoop {
    let (m, n, k) = (64, 256, 256);
    let (a, b, mut c) = (noise(m * k), noise(k * n), vec![0.0; m * n]);
    let run = move || {
        let b = if trans_b { MatRef::new(&b, n, k).t() } else { MatRef::new(&b, k, n) };
        Gemm { alpha: 1.0, a: MatRef::new(&a, m, k), b, beta: 0.0, c: MatMut::new(&mut c, m, n) }.run();
    };
    (Box::new(run), m * n * k)
}

#[derive(Clone, Copy)]
enum Pass {
    Forward,
    /// Forward, with a bias and a ReLU at its end.
    Rectified,
    Data,
    Weights,
}

/// A pass of a convolution of `size` × `size` inputs with a kernel of `kernel` × `kernel`.
fn convolution(batch: usize, [c, o, size, kernel, pad]: [usize; 5], winograd: bool, pass: Pass) -> Option<HotLoop> {
    let g = ConvGeometry::new(c, o, 1, vec![Window::new(size, kernel, 1, pad, 1).ok()?; 2]).ok()?;
    let algorithm = Algorithm { winograd, ..Algorithm::active() };
    let units = g.multiply_adds(batch);
    let (mut x, mut w, mut y) = (noise(batch * g.input_len()), noise(g.weights_len()), noise(batch * g.output_len()));
    let bias = noise(g.out_channels);
    let run: Box<dyn FnMut()> = match pass {
        Pass::Forward => Box::new(move || g.forward_with(algorithm, batch, &x, &w, Epilogue::default(), &mut y)),
        Pass::Rectified => Box::new(move || {
            let epilogue = Epilogue { bias: Some(&bias), relu: true };
            g.forward_with(algorithm, batch, &x, &w, epilogue, &mut y);
        }),
        Pass::Data => Box::new(move || g.backward_data_with(algorithm, batch, &w, &y, &mut x)),
        Pass::Weights => Box::new(move || g.backward_weights_with(algorithm, batch, &x, &y, &mut w)),
    };
    Some((run, units))
}

/// A pooling of 32 × 32 planes, or one of its gradients.
fn pooling(kernel: usize, stride: usize, average: bool, forward: bool) -> Option<HotLoop> {
    let planes = 64;
    let g = PoolGeometry::new([32; 2], [kernel; 2], [stride; 2], [0; 2], Round::Ceil).ok()?;
    let (mut x, mut y) = (noise(planes * g.input_area()), noise(planes * g.output_area()));
    let (mut index, units) = (vec![0.0; y.len()], x.len());
    g.max_forward(&x, &mut y, Some(&mut index));
    let run: Box<dyn FnMut()> = match (average, forward) {
        (false, true) => Box::new(move || g.max_forward(&x, &mut y, Some(&mut index))),
        (false, false) => Box::new(move || g.max_backward(&y, &index, &mut x)),
        (true, true) => Box::new(move || g.average_forward(&x, &mut y)),
        (true, false) => Box::new(move || g.average_backward(&y, &mut x)),
    };
    Some((run, units))
}

/// Something over a blob of 4 × 32 × 16 × 16.
fn blob(name: &str) -> Option<HotLoop> {
    let e = Axes3::new(4, 32, 256);
    let (x, dy, mut y, mut z) = (noise(e.count()), noise(e.count()), noise(e.count()), noise(e.count()));
    let ones = vec![1.0; e.channels];
    let (mut a, mut b) = (ones.clone(), ones.clone());
    let lrn = Lrn { size: 5, alpha: 1e-4, beta: 0.75, k: 1.0 };
    let run: Box<dyn FnMut()> = match name {
        "relu" => Box::new(move || elementwise::map_into(Some(&x), &mut y, |v: f32| v.max(0.0))),
        "relu_gradient" => {
            let slope = std::hint::black_box(0.1);
            Box::new(move || elementwise::zip2_into(&x, &dy, &mut y, |s, d| elementwise::leaky_gradient(s, d, slope)))
        }
        "exp" => Box::new(move || elementwise::map_into(Some(&x), &mut y, math::exp)),
        "ln" => Box::new(move || elementwise::map_into(Some(&x), &mut y, math::ln)),
        "softplus" => Box::new(move || elementwise::map_into(Some(&x), &mut y, math::softplus)),
        "power" => {
            let exponent = math::Exponent::new(std::hint::black_box(0.75));
            Box::new(move || elementwise::map_into(Some(&x), &mut y, |v| exponent.raise(v)))
        }
        "prelu_gradient" => Box::new(move || prelu::backward(&x, Some(&dy), &ones, e, Some(&mut y), &mut a)),
        "prelu_gradient_rows" => {
            let rows = Axes3::new(e.outer * e.inner, e.channels, 1);
            Box::new(move || prelu::backward(&x, Some(&dy), &ones, rows, Some(&mut y), &mut a))
        }
        "lrn" => Box::new(move || lrn.across_forward(&x, e, &mut z, &mut y)),
        "softmax" => Box::new(move || softmax::softmax(Some(&x), &mut y, Axes3::new(e.outer * e.inner, e.channels, 1))),
        "statistics" => Box::new(move || batchnorm::mean_variance(&x, e, &mut a, &mut b)),
        "normalize" => Box::new(move || {
            let affine = Affine { scale: &ones, shift: Some(&ones) };
            Normalization { mean: &a, inv_std: &ones, affine: Some(affine), relu: true }.apply(Some(&x), e, &mut y);
        }),
        "batchnorm_sums" => Box::new(move || {
            let xhat = Normalized::From { x: &x, mean: &ones, inv_std: &ones };
            batchnorm::backward_sums(xhat, &dy, e, &mut a, &mut b);
        }),
        "batchnorm_data" => Box::new(move || {
            let xhat = Normalized::From { x: &x, mean: &ones, inv_std: &ones };
            batchnorm::backward_data(xhat, Some(&dy), e, &ones, &ones, &ones, &mut y);
        }),
        _ => return None,
    };
    Some((run, e.count()))
}

const NAMES: [&str; 35] = [
    "gemm_nn",
    "gemm_nt",
    "direct_1x20_forward",
    "direct_1x20_weights",
    "direct_32x32_forward",
    "direct_32x32_rectified",
    "direct_32x32_data",
    "direct_32x32_weights",
    "winograd_3x3_forward",
    "winograd_3x3_rectified",
    "winograd_3x3_data",
    "winograd_3x3_weights",
    "winograd_5x5_forward",
    "winograd_5x5_data",
    "winograd_5x5_weights",
    "max_pool",
    "max_pool_gradient",
    "average_pool",
    "average_pool_gradient",
    "global_average",
    "global_average_gradient",
    "relu",
    "relu_gradient",
    "exp",
    "ln",
    "softplus",
    "power",
    "prelu_gradient",
    "prelu_gradient_rows",
    "lrn",
    "softmax",
    "statistics",
    "normalize",
    "batchnorm_sums",
    "batchnorm_data",
];

fn hot_loop(name: &str) -> Option<HotLoop> {
    let pass = |name: &str| match name {
        "forward" => Some(Pass::Forward),
        "rectified" => Some(Pass::Rectified),
        "data" => Some(Pass::Data),
        "weights" => Some(Pass::Weights),
        _ => None,
    };
    let sizes = |name: &str| match name {
        "direct_1x20" => Some((2, [1, 20, 28, 5, 0])),
        "direct_32x32" => Some((1, [32, 32, 16, 3, 1])),
        "winograd_3x3" => Some((2, [48, 48, 16, 3, 1])),
        "winograd_5x5" => Some((64, [20, 50, 12, 5, 0])),
        _ => None,
    };
    let parts = name.rsplit_once('_').and_then(|(which, last)| Some((sizes(which)?, pass(last)?)));
    if let Some(((batch, sizes), pass)) = parts {
        return convolution(batch, sizes, name.starts_with("winograd"), pass);
    }
    match name {
        "gemm_nn" => Some(product(false)),
        "gemm_nt" => Some(product(true)),
        "max_pool" => pooling(3, 2, false, true),
        "max_pool_gradient" => pooling(3, 2, false, false),
        "average_pool" => pooling(3, 2, true, true),
        "average_pool_gradient" => pooling(3, 2, true, false),
        "global_average" => pooling(32, 1, true, true),
        "global_average_gradient" => pooling(32, 1, true, false),
        _ => blob(name),
    }
}

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let Some(name) = args.first() else {
        NAMES.iter().for_each(|name| println!("{name}"));
        return ExitCode::SUCCESS;
    };
    let repeats = args.get(1).and_then(|r| r.parse().ok());
    let (Some((mut run, units)), Some(repeats)) = (hot_loop(name), repeats) else {
        eprintln!("usage: hot_loops [NAME REPEATS]; without arguments it lists the names");
        return ExitCode::FAILURE;
    };
    (0..repeats).for_each(|_: usize| run());
    println!("{units}");
    ExitCode::SUCCESS
}
