//! The host numerics at the shapes of the nets they serve: `cargo bench -p lgm-cpu -- conv/96x96`.
//!
//! Throughput counts multiply-adds (two operations each) as elements, so `Gelem/s` reads as GFLOP/s; Winograd's is that of
//! the direct convolution it replaces. `peak/fma` is what one core reaches in registers alone. The rest is in bytes of the
//! blobs read and written. Set `LGM_NUM_THREADS=1` to compare with that peak.

use std::hint::black_box;
use std::time::Duration;

use criterion::{BenchmarkGroup, Criterion, Throughput, measurement::WallTime};
use lgm_core::Axes3;
use lgm_core::Window;
use lgm_cpu::batchnorm::{self, Affine, Normalization, Normalized};
use lgm_cpu::conv::{Algorithm, Epilogue};
use lgm_cpu::pool::{PoolGeometry, Round};
use lgm_cpu::{ConvGeometry, Gemm, Kernel, MatMut, MatRef, elementwise, lrn, math, softmax};

fn noise(len: usize) -> Vec<f32> {
    (0..len).map(|i| ((i * 2_654_435_761) % 1000) as f32 / 500.0 - 1.0).collect()
}

fn group<'a>(c: &'a mut Criterion, name: &str) -> BenchmarkGroup<'a, WallTime> {
    let mut g = c.benchmark_group(name);
    g.sample_size(10).warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_secs(1));
    g
}

/// Fused multiply-adds on registers: the most that a core can do.
fn peak(c: &mut Criterion) {
    #[cfg(target_arch = "x86_64")]
    {
        const STEPS: u64 = 100_000;
        let mut g = group(c, "peak");
        g.throughput(Throughput::Elements(STEPS * 24 * 16 * 2));
        if Kernel::Avx512.is_available() {
            // SAFETY: the processor was just asked.
            g.bench_function("fma", |b| b.iter(|| unsafe { fma_avx512(black_box(STEPS)) }));
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = c;
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
fn fma_avx512(steps: u64) -> f32 {
    use std::arch::x86_64::*;
    let (a, b) = (_mm512_set1_ps(black_box(0.999)), _mm512_set1_ps(black_box(0.001)));
    let mut acc = [_mm512_set1_ps(1.0); 24];
    for _ in 0..steps {
        for v in &mut acc {
            *v = _mm512_fmadd_ps(*v, a, b);
        }
    }
    let mut sum = 0.0;
    for v in acc {
        sum += _mm512_reduce_add_ps(v);
    }
    sum
}

fn products(c: &mut Criterion) {
    let mut g = group(c, "gemm");
    for (m, n, k) in [(384, 4096, 864), (96, 16384, 864), (1024, 1024, 1024), (50, 4096, 500), (64, 500, 800)] {
        g.throughput(Throughput::Elements(2 * (m * n * k) as u64));
        let (a, b, mut out) = (noise(m * k), noise(k * n), vec![0.0; m * n]);
        let views = |data, rows, columns| (MatRef::new(data, rows, columns), MatRef::new(data, columns, rows).t());
        let ((a, a_transposed), (b, b_transposed)) = (views(&a, m, k), views(&b, k, n));
        for (a, b, name) in [(a, b, "nn"), (a, b_transposed, "nt"), (a_transposed, b, "tn")] {
            g.bench_function(format!("{m}x{n}x{k}/{name}"), |bench| {
                bench.iter(|| Gemm { alpha: 1.0, a, b, beta: 0.0, c: MatMut::new(&mut out, m, n) }.run());
            });
        }
    }
}

/// Name, batch, geometry.
fn convolutions() -> Vec<(&'static str, usize, ConvGeometry)> {
    let square = |c, o, group, size, kernel, stride, pad| {
        ConvGeometry::new(c, o, group, vec![Window::new(size, kernel, stride, pad, 1)?; 2])
    };
    [
        ("96x96_32", 16, square(96, 96, 1, 32, 3, 1, 1)),
        ("192x192_16", 16, square(192, 192, 1, 16, 3, 1, 1)),
        ("384x384_8", 16, square(384, 384, 1, 8, 3, 1, 1)),
        ("3x96_32", 16, square(3, 96, 1, 32, 3, 1, 1)),
        ("lenet1", 64, square(1, 20, 1, 28, 5, 1, 0)),
        ("lenet2", 64, square(20, 50, 1, 12, 5, 1, 0)),
        ("alexnet1", 8, square(3, 96, 1, 227, 11, 4, 0)),
        ("alexnet2", 8, square(96, 256, 2, 27, 5, 1, 2)),
        ("resnet1", 8, square(3, 64, 1, 224, 7, 2, 3)),
        ("resnet_down", 8, square(64, 128, 1, 56, 3, 2, 1)),
        ("pointwise", 8, square(256, 64, 1, 56, 1, 1, 0)),
        ("depthwise", 8, square(64, 64, 64, 56, 3, 1, 1)),
    ]
    .into_iter()
    .filter_map(|(name, batch, g)| Some((name, batch, g.ok()?)))
    .collect()
}

fn convolution(c: &mut Criterion) {
    let mut g = group(c, "conv");
    for (name, batch, geometry) in convolutions() {
        g.throughput(Throughput::Elements(2 * geometry.multiply_adds(batch) as u64));
        let (x, w) = (noise(batch * geometry.input_len()), noise(geometry.weights_len()));
        let dy = noise(batch * geometry.output_len());
        let (mut y, mut dx, mut dw) = (dy.clone(), x.clone(), w.clone());
        let square = [3, 5].map(|kernel| geometry.windows.iter().all(|w| (w.kernel, w.stride) == (kernel, 1)));
        let dense = square.contains(&true) && geometry.group == 1;
        for winograd in [true, false] {
            let algorithm = Algorithm { winograd, ..Algorithm::active() };
            if winograd && !(dense && geometry.in_channels >= 16) {
                continue;
            }
            let how = if winograd { "winograd" } else { "direct" };
            g.bench_function(format!("{name}/{how}/forward"), |b| {
                b.iter(|| geometry.forward_with(algorithm, batch, &x, &w, Epilogue::default(), &mut y));
            });
            g.bench_function(format!("{name}/{how}/backward_data"), |b| {
                b.iter(|| geometry.backward_data_with(algorithm, batch, &w, &dy, &mut dx));
            });
            g.bench_function(format!("{name}/{how}/backward_weights"), |b| {
                b.iter(|| geometry.backward_weights_with(algorithm, batch, &x, &dy, &mut dw));
            });
        }
    }
}

/// Everything that memory bounds, on the activations of the paper's first stage at batch 16.
fn bandwidth(c: &mut Criterion) {
    let e = Axes3::new(16, 96, 1024);
    let Axes3 { outer: n, channels, inner: spatial } = e;
    let (x, dy) = (noise(e.count()), noise(e.count()));
    let (mut y, mut z) = (x.clone(), x.clone());
    let (mut mean, mut variance) = (vec![0.0; channels], vec![1.0; channels]);
    let (mut a, mut b) = (mean.clone(), mean.clone());
    let ones = vec![1.0; channels];
    let mut g = group(c, "memory");
    let blob = 4 * e.count() as u64;
    let mut run = |name: &str, quarters: u64, f: &mut dyn FnMut()| {
        g.throughput(Throughput::Bytes(blob * quarters / 4));
        g.bench_function(name, |bench| bench.iter(&mut *f));
    };
    run("copy", 8, &mut || elementwise::copy(&x, &mut y));
    run("relu", 8, &mut || elementwise::map_into(Some(&x), &mut y, |v: f32| v.max(0.0)));
    run("exp", 8, &mut || elementwise::map_into(Some(&x), &mut y, math::exp));
    run("tanh", 8, &mut || elementwise::map_into(Some(&x), &mut y, math::tanh));
    run("batchnorm/statistics", 4, &mut || batchnorm::mean_variance(&x, e, &mut mean, &mut variance));
    run("batchnorm/normalize", 8, &mut || {
        let affine = Affine { scale: &ones, shift: Some(&ones) };
        Normalization { mean: &mean, inv_std: &ones, affine: Some(affine), relu: true }.apply(Some(&x), e, &mut y);
    });
    let xhat = Normalized::From { x: &x, mean: &ones, inv_std: &ones };
    run("batchnorm/backward_sums", 8, &mut || batchnorm::backward_sums(xhat, &dy, e, &mut a, &mut b));
    run("batchnorm/backward_data", 12, &mut || {
        batchnorm::backward_data(xhat, Some(&dy), e, &ones, &ones, &ones, &mut z);
    });
    run("softmax/channels", 8, &mut || softmax::softmax(Some(&x), &mut y, e));
    run("softmax/rows", 8, &mut || softmax::softmax(Some(&x), &mut y, Axes3::new(n * spatial, channels, 1)));
    let l = lrn::Lrn { size: 5, alpha: 1e-4, beta: 0.75, k: 1.0 };
    run("lrn/forward", 12, &mut || l.across_forward(&x, e, &mut z, &mut y));
    for (name, kernel) in [("2x2", 2), ("3x3", 3)] {
        let Ok(p) = PoolGeometry::new([32; 2], [kernel; 2], [2; 2], [0; 2], Round::Ceil) else { continue };
        let mut top = vec![0.0; n * channels * p.output_area()];
        let mut index = top.clone();
        run(&format!("pool/max_{name}"), 6, &mut || p.max_forward(&x, &mut top, Some(&mut index)));
        run(&format!("pool/max_{name}_backward"), 6, &mut || p.max_backward(&top, &index, &mut z));
        run(&format!("pool/average_{name}"), 5, &mut || p.average_forward(&x, &mut top));
    }
}

fn main() {
    let mut c = Criterion::default().configure_from_args();
    [peak, products, convolution, bandwidth].iter().for_each(|bench| bench(&mut c));
    c.final_summary();
}
