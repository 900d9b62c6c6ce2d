//! The simulator runs what is right and finds what is wrong.

use super::*;
use crate::kernels::Source;
use lgm_core::rng::Philox;
use lgm_core::{Element, Format, args};

const SOURCE: &str = r#"
KERNEL(test_sum)(float* y, const float* x, int n) {
    __shared__ float exchange[32];
    float sum = 0;
    for (int i = threadIdx.x; i < n; i += blockDim.x) sum += x[(i64)blockIdx.x * n + i];
    sum = block_reduce<Sum>(sum, exchange);
    if (threadIdx.x == blockDim.x - 1) y[blockIdx.x] = sum;
}
KERNEL(test_lanes)(int* y) {
    const int i = threadIdx.x;
    y[i] = __shfl_down_sync(ALL_LANES, i, 3);
    y[blockDim.x + i] = __shfl_up_sync(ALL_LANES, i, 3);
    y[2 * blockDim.x + i] = __shfl_sync(ALL_LANES, i, 5);
    y[3 * blockDim.x + i] = (int)__ballot_sync(ALL_LANES, i % 3 == 0);
}
KERNEL(test_philox)(u32* y, u64 seed, u64 stream, u64 counter) {
    const Words words = philox(seed, stream, counter + threadIdx.x);
    for (int k = 0; k < 4; ++k) y[4 * threadIdx.x + k] = words.w[k];
}
KERNEL(test_uninitialized)(float* y) {
    __shared__ float value[2];
    if (threadIdx.x == 0) value[0] = 1;
    __syncthreads();
    y[blockIdx.x] = value[0] + value[1];
    __syncthreads();
    value[1] = 2;
}
KERNEL(test_divergent)(float* y) {
    if (threadIdx.x != 7) __syncthreads();
    y[threadIdx.x] = 1;
}
KERNEL(test_two_barriers)(float* y) {
    if (threadIdx.x < 8) __syncthreads();
    else
        __syncthreads();
    y[threadIdx.x] = 1;
}
KERNEL(test_lost_lane)(float* y) {
    if (threadIdx.x == 9) return;
    y[threadIdx.x] = __shfl_xor_sync(ALL_LANES, 1.0f, 1);
}
KERNEL(test_race)(int* y) {
    *y = (int)threadIdx.x;
}
KERNEL(test_past_the_end)(float* y, int at) {
    y[at] = 0;
}
"#;

/// A device with the kernels above, where there is a compiler.
pub(super) fn sim(order: Order) -> Option<Sim> {
    let kernels = match build::load(&[Source { name: "selftest", text: SOURCE, headers: &[] }]) {
        Ok(kernels) => Box::leak(Box::new(kernels)),
        Err(Error::Config(why)) => return lgm_testkit::skip("simulator", why),
        Err(e) => panic!("{e}"),
    };
    Some(Sim::of(kernels, order, 1 << 22))
}

fn both() -> impl Iterator<Item = Sim> {
    [Order::Forward, Order::Reversed].into_iter().filter_map(sim)
}

fn read<const N: usize>(sim: &Sim, at: DevicePtr) -> [[u8; 4]; N] {
    let mut bytes = vec![0; 4 * N];
    sim.download(at, &mut bytes).unwrap();
    std::array::from_fn(|i| bytes[4 * i..4 * i + 4].try_into().unwrap())
}

#[test]
fn blocks_and_warps_compute() {
    for sim in both() {
        for (threads, n) in [(32u32, 5usize), (96, 1000), (256, 257), (1024, 3000)] {
            let x: Vec<u8> = (0..3 * n).flat_map(|i| ((i % 7) as f32).to_le_bytes()).collect();
            let (from, to) = (sim.alloc(x.len()).unwrap(), sim.alloc(12).unwrap());
            sim.upload(&x, from).unwrap();
            sim.launch("test_sum", Grid::rows(3, threads), args![to, from, n as i32]).unwrap();
            let want = |row: usize| (row * n..(row + 1) * n).map(|i| (i % 7) as f32).sum::<f32>();
            assert_eq!(read::<3>(&sim, to).map(f32::from_le_bytes), [want(0), want(1), want(2)]);
            sim.free(from).unwrap();
            sim.free(to).unwrap();
        }
        let y = sim.alloc(4 * 4 * 40).unwrap();
        sim.launch("test_lanes", Grid::rows(1, 40), args![y]).unwrap();
        let y = read::<160>(&sim, y).map(i32::from_le_bytes);
        // Lane 29 and beyond, and those whose neighbour would be past the last thread, keep their own.
        assert_eq!([y[0], y[28], y[29], y[36], y[37]], [3, 31, 29, 39, 37]);
        assert_eq!([y[40], y[43], y[72], y[75]], [0, 0, 32, 32]);
        assert_eq!([y[80], y[119]], [5, 37]);
        assert_eq!(y[120] as u32, (0..32).filter(|i| i % 3 == 0).map(|i| 1u32 << i).sum::<u32>());
        assert_eq!(y[159] as u32, (32..40).filter(|i| i % 3 == 0).map(|i| 1u32 << (i - 32)).sum::<u32>());
    }
}

#[test]
fn random_words_are_those_of_the_host() {
    for sim in both() {
        let y = sim.alloc(16 * 32).unwrap();
        let (seed, stream, counter) = (0x0123_4567_89ab_cdef_u64, u64::MAX - 5, (7u64 << 32) - 3);
        sim.launch("test_philox", Grid::rows(1, 32), args![y, seed, stream, counter]).unwrap();
        let words = read::<128>(&sim, y).map(u32::from_le_bytes);
        for i in 0..32 {
            assert_eq!(words[4 * i..4 * i + 4], Philox::new(seed, stream).at(counter + i as u64));
        }
    }
}

#[test]
fn threads_run_in_the_order_asked_for() {
    for sim in both() {
        let y = sim.alloc(4).unwrap();
        sim.launch("test_race", Grid::rows(1, 64), args![y]).unwrap();
        let last = if sim.order == Order::Forward { 63 } else { 0 };
        assert_eq!(read::<1>(&sim, y).map(i32::from_le_bytes), [last]);
    }
}

#[test]
fn memory_never_written_is_not_a_number() {
    for sim in both() {
        let y = sim.alloc(8).unwrap();
        assert!(read::<2>(&sim, y).into_iter().all(|b| f32::from_le_bytes(b).is_nan()));
        sim.launch("test_uninitialized", Grid::rows(2, 32), args![y]).unwrap();
        assert!(read::<2>(&sim, y).into_iter().all(|b| f32::from_le_bytes(b).is_nan()));
    }
}

#[test]
fn mistakes_are_found() {
    for sim in both() {
        let y = sim.alloc(4 * 32).unwrap();
        let fails = |kernel: &'static str, args: &[Arg], needles: &[&str]| {
            let text = sim.launch(kernel, Grid::rows(1, 32), args).unwrap_err().to_string();
            for needle in needles {
                assert!(text.contains(needle), "'{text}' lacks '{needle}'");
            }
        };
        fails("test_divergent", args![y], &["test_divergent", "__syncthreads", "thread 7"]);
        fails("test_two_barriers", args![y], &["__syncthreads", "does not reach"]);
        fails("test_lost_lane", args![y], &["a warp operation", "thread 9"]);
        fails("test_race", args![y, 1], &["types p, found pi"]);
        fails("test_philox", args![y, 1u64, 1i64, 1u64], &["pmmm", "pmlm"]);
        fails("test_none", args![y], &["no kernel 'test_none'"]);
        fails("test_race", args![DevicePtr(4096)], &["argument 0", "not an address"]);
        // After a kernel that hung, others run.
        sim.launch("test_race", Grid::rows(1, 32), args![y]).unwrap();
        fails("test_past_the_end", args![y, 33], &["4 bytes past the end of a block of 128"]);
    }
    for sim in both() {
        let y = sim.alloc(4 * 32).unwrap();
        let text = sim.launch("test_past_the_end", Grid::rows(1, 1), args![y, -1]).unwrap_err().to_string();
        assert!(text.contains("wrote 4 bytes before a block of 128"), "{text}");
        assert!(sim.alloc(1 << 22).unwrap_err().to_string().contains("out of memory"));
        assert!(sim.free(DevicePtr(8)).is_err());
        assert!(sim.copy(y, y.offset(4), 8).is_err());
        assert!(sim.zero(y, 129).is_err());
    }
}

#[test]
fn products_are_batched_and_checked() {
    for sim in both() {
        let (a, b, c) = (sim.alloc(4 * 12).unwrap(), sim.alloc(4 * 6).unwrap(), sim.alloc(4 * 8).unwrap());
        let bytes = |n: usize| (0..n).flat_map(|i| (i as f32).to_le_bytes()).collect::<Vec<u8>>();
        sim.upload(&bytes(12), a).unwrap();
        sim.upload(&bytes(6), b).unwrap();
        let product = Gemm {
            trans_a: false,
            trans_b: true,
            m: 2,
            n: 2,
            k: 3,
            alpha: 2.0,
            a,
            lda: 3,
            b,
            ldb: 3,
            beta: 0.0,
            c,
            ldc: 2,
            batch: (2, [6, 0, 4]),
            exact: true,
            factors: Element::F32,
            result: Element::F32,
        };
        sim.gemm(&product).unwrap();
        let found = read::<8>(&sim, c).map(f32::from_le_bytes);
        assert_eq!(found, [10.0, 28.0, 28.0, 100.0, 46.0, 172.0, 64.0, 244.0]);
        let narrow = Gemm { factors: Element::Bf16, result: Element::Bf16, batch: (1, [0; 3]), ..product };
        let format = Format { element: Element::Bf16, ..Format::PLAIN };
        let shape = [6].into();
        sim.upload(&format.encode(&shape, &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]), a).unwrap();
        sim.upload(&format.encode(&shape, &[0.5, 0.25, 1.0, 1.0, 1.0, 100.0]), b).unwrap();
        sim.gemm(&narrow).unwrap();
        let mut bytes = [0; 8];
        sim.download(c, &mut bytes).unwrap();
        // 606 and 1218 have more bits than eight; of 604 and 608 the even one is taken.
        assert_eq!(format.decode(&[4].into(), &bytes), [8.0, 608.0, 18.5, 1216.0]);
        sim.gemm(&Gemm { result: Element::F32, ..narrow }).unwrap();
        assert_eq!(read::<4>(&sim, c).map(f32::from_le_bytes), [8.0, 606.0, 18.5, 1218.0]);
        assert!(sim.gemm(&Gemm { batch: (3, [6, 0, 4]), ..product }).is_err());
        assert!(sim.gemm(&Gemm { ldb: 2, ..product }).is_err());
    }
}

#[test]
fn factors_of_products_are_shortened_to_tf32() {
    // Both lie halfway between two numbers of TF32, and all sums are exact in single precision.
    let (x, w) = (1.0 + 2f32.powi(-11), -(3.0 + 2f32.powi(-10)));
    let full = -2.0 * (1.0 + 2f64.powi(-11)) * (3.0 + 2f64.powi(-10));
    let short = -2.0 * (1.0 + 2f64.powi(-10)) * (3.0 + 2f64.powi(-9));
    // Two terms of each sum; the others are 0 and make the product worth it.
    let n = 1 << 9;
    let of_rows = |m: usize, precision: Precision, exact: bool| {
        let sim = sim(Order::Forward)?.in_precision(precision);
        let [a, b, c] = [m * n, n * n, m * n].map(|len| sim.alloc(4 * len).unwrap());
        let row = [[x.to_le_bytes(); 2].concat(), vec![0; 4 * (n - 2)]].concat();
        sim.upload(&row.repeat(m), a).unwrap();
        sim.upload(&w.to_le_bytes().repeat(n * n), b).unwrap();
        sim.gemm(&Gemm {
            trans_a: false,
            trans_b: false,
            m,
            n,
            k: n,
            alpha: 1.0,
            a,
            lda: n,
            b,
            ldb: n,
            beta: 0.0,
            c,
            ldc: n,
            batch: (1, [0; 3]),
            exact,
            factors: Element::F32,
            result: Element::F32,
        })
        .unwrap();
        Some(f64::from(read::<1>(&sim, c).map(f32::from_le_bytes)[0]))
    };
    let product = |precision, exact| of_rows(n, precision, exact);
    let Some(plain) = product(Precision::Fp32, false) else { return };
    assert_eq!(of_rows(n - 1, Precision::Tf32, false).unwrap(), full, "a small product");
    assert_eq!([plain, product(Precision::Tf32, true).unwrap()], [full; 2]);
    assert_eq!([Precision::Tf32, Precision::Bf16].map(|precision| product(precision, false).unwrap()), [short; 2]);
    // A factor is off by 2^-11 of itself at most.
    assert!(short != full && (short / full - 1.0).abs() <= (1.0 + 2f64.powi(-11)).powi(2) - 1.0);
}
