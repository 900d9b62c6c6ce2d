//! The queue and the memory of a device: each body runs on the simulated device, which proves the body, and on the GPU
//! of this machine (number `LGM_TEST_GPU`, 0 without it), skipped aloud where there is none.

#![allow(clippy::unwrap_used, clippy::panic)]

mod machines;

use lgm_core::{ConvolutionPass, DevicePtr, DeviceQueue, Element, Format, Gemm, Grid, Shape, args};
use lgm_cuda::sim::{Order, Sim};
use lgm_cuda::{Allocator, Cuda, Precision};
use machines::{
    Machine, assert_near, bytes, draw, draw_narrow, everywhere, geometries, get, get_stored, gpu, open, put, put_stored,
};

#[test]
fn what_goes_up_comes_down() {
    everywhere(|machine| {
        // Around the pieces in which long copies go.
        for len in [0usize, 1, 3, 4095, (1 << 18) - 1, 1 << 18, (1 << 18) + 1, 3_000_017] {
            let values = draw(len, len as u32);
            let (a, b) = (put(machine, &values), machine.alloc(4 * len).unwrap());
            machine.copy(a, b, 4 * len).unwrap();
            machine.zero(a, 4 * len).unwrap();
            assert_eq!(get(machine, b, len), values);
            assert!(get(machine, a, len).iter().all(|v| *v == 0.0));
            machine.free(a).unwrap();
            machine.free(b).unwrap();
        }
        let at = put(machine, &[1.0; 4]);
        machine.zero(at.offset(5), 6).unwrap();
        let mut raw = [0; 16];
        machine.download(at, &mut raw).unwrap();
        let mut expected = bytes(&[1.0; 4]);
        expected[5..11].fill(0);
        assert_eq!(raw[..], expected);
        machine.free(at).unwrap();
    });
}

#[test]
fn many_small_uploads_stay_in_order() {
    everywhere(|machine| {
        let at = put(machine, &[0.0; 100]);
        for i in 0..1000 {
            machine.upload(&bytes(&[i as f32]), at.floats(i % 100)).unwrap();
        }
        let expected: Vec<f32> = (900..1000).map(|i| i as f32).collect();
        assert_eq!(get(machine, at, 100), expected);
        machine.free(at).unwrap();
    });
}

#[test]
fn memory_is_aligned_counted_and_its_lack_told() {
    everywhere(|machine| {
        let (_, total) = machine.free_bytes().unwrap();
        let blocks: Vec<DevicePtr> = (0..4).map(|i| machine.alloc(1 + 100 * i).unwrap()).collect();
        assert!(blocks.iter().all(|block| block.0 % 256 == 0));
        let text = machine.alloc(1 << 50).unwrap_err().to_string();
        assert!(text.contains("out of memory") || text.contains("free"), "{text}");
        assert_eq!(machine.free_bytes().unwrap().1, total);
        assert!(machine.free(blocks[0].offset(1)).is_err(), "not a block's first byte");
        blocks.into_iter().for_each(|block| machine.free(block).unwrap());
    });
}

#[test]
fn kernels_run_with_their_arguments() {
    everywhere(|machine| {
        for n in [1usize, 31, 32, 33, 257, 70_000] {
            let x = draw(n, 7);
            let (from, to) = (put(machine, &x), machine.alloc(4 * n).unwrap());
            machine.launch("relu_forward", Grid::elements(n), args![to, from, 0.25f32, n as i64]).unwrap();
            let expected: Vec<f32> = x.iter().map(|v| if *v < 0.0 { 0.25 * v } else { *v }).collect();
            assert_eq!(get(machine, to, n), expected);
            [from, to].into_iter().for_each(|block| machine.free(block).unwrap());
        }
        let text = machine.launch("relu_forwards", Grid::elements(1), args![]).unwrap_err().to_string();
        assert!(text.contains("relu_forward"), "{text}");
    });
}

/// How far a sum in single precision of k products of numbers in -1 to 1 may be off, by √k. Added up one after another by
/// fused multiply-adds, as some of cuBLAS's kernels do, partial sums of about √j/3 are rounded by 2^-24 of themselves: for
/// k = 512, where that is worst here, by 3e-6 as a rule and, of half a million such sums times the 1.5 of the tests, by 5.2e-5
/// at most, which is 2.3e-6 · √k. Twice that, for other orders and factors.
const SUMS: f64 = 5e-6;

/// The same where factors are rounded to TF32: each by up to 2^-11 of itself, so that a product of about 1/3 is off by 2e-4 as
/// a rule, a sum by √k times that, and the worst by five times as much.
const SUMS_OF_TF32: f64 = 3e-3;

/// How far a sum in single precision may be off, by the largest of all. Tensor cores cut off what does not fit, up to 2^-23
/// of a partial sum for every 16 products: 3e-6 for 384, and plain sums are off by 1e-6.
const OF_LARGEST: f64 = 5e-6;

fn products(machine: &dyn Machine, exact: bool, tolerance: f64) {
    let cases = [(1, 1, 1), (3, 5, 7), (33, 17, 65), (128, 100, 384), (1, 64, 500), (257, 1, 33), (512, 512, 512)];
    for (case, &(m, n, k)) in cases.iter().enumerate() {
        for bits in 0..8usize {
            let (trans_a, trans_b, batch) = (bits & 1 != 0, bits & 2 != 0, 1 + 2 * (bits >> 2));
            let (lda, ldb, ldc) = (if trans_a { m } else { k } + case, if trans_b { k } else { n } + case, n + case);
            let strides = [if trans_a { k } else { m } * lda, if trans_b { n } else { k } * ldb, m * ldc];
            let beta = [0.0, 1.0, -0.5][case % 3];
            let [a, b, mut c] = [0, 1, 2].map(|i| draw(batch * strides[i], i as u32 + 1));
            if beta == 0.0 {
                c.fill(f32::NAN);
            }
            let [pa, pb, pc] = [&a, &b, &c].map(|values| put(machine, values));
            let gemm = Gemm {
                trans_a,
                trans_b,
                m,
                n,
                k,
                lda,
                ldb,
                ldc,
                beta,
                exact,
                factors: Element::F32,
                result: Element::F32,
                alpha: 1.5,
                a: pa,
                b: pb,
                c: pc,
                batch: (batch, strides),
            };
            machine.gemm(&gemm).unwrap();
            let got = get(machine, pc, c.len());
            // Of the largest, one in so many is looked at.
            let all = (0..batch).flat_map(|i| (0..m).flat_map(move |r| (0..n).map(move |c| (i, r, c))));
            for (i, row, column) in all.step_by(1 + m * n / 1009 / 13) {
                let at = |trans: bool, ld: usize, row: usize, column: usize| {
                    if trans { column * ld + row } else { row * ld + column }
                };
                let sum: f64 = (0..k)
                    .map(|j| {
                        let (a, b) = (
                            a[i * strides[0] + at(trans_a, lda, row, j)],
                            b[i * strides[1] + at(trans_b, ldb, j, column)],
                        );
                        f64::from(a) * f64::from(b)
                    })
                    .sum();
                let place = i * strides[2] + row * ldc + column;
                let want = 1.5 * sum + if beta == 0.0 { 0.0 } else { f64::from(beta) * f64::from(c[place]) };
                let off = (f64::from(got[place]) - want).abs();
                assert!(off <= tolerance * (k as f64).sqrt().max(1.0), "{gemm:?} at {row}, {column}: off by {off:e}");
            }
            // Between the rows nothing is written.
            for place in (0..c.len()).filter(|p| p % ldc >= n) {
                assert_eq!(got[place].to_bits(), c[place].to_bits(), "{gemm:?}");
            }
            [pa, pb, pc].into_iter().for_each(|block| machine.free(block).unwrap());
        }
    }
}

#[test]
fn products_are_row_major() {
    everywhere(|machine| products(machine, false, SUMS));
}

/// As for the groups of a convolution whose channels are last: rows of A and of C hold group after group, an odd number of
/// elements apart or one that is a multiple of 16 bytes.
#[test]
fn products_of_groups_lie_side_by_side() {
    let body = |machine: &dyn Machine| {
        for (groups, m, n, k) in [(2, 33, 7, 5), (4, 64, 16, 72)] {
            for (element, tolerance) in [(Element::F32, OF_LARGEST), (Element::Bf16, 4e-3)] {
                let format = Format { element, ..Format::PLAIN };
                let (a, b) = (draw_narrow(m * groups * k, 1), draw_narrow(groups * n * k, 2));
                let [pa, pb] = [&a, &b].map(|values| put_stored(machine, format, &[values.len()].into(), values));
                let shape = Shape::from([m * groups * n]);
                let c = put_stored(machine, format, &shape, &vec![f32::NAN; shape.count()]);
                machine
                    .gemm(&Gemm {
                        trans_a: false,
                        trans_b: true,
                        m,
                        n,
                        k,
                        alpha: 1.0,
                        a: pa,
                        lda: groups * k,
                        b: pb,
                        ldb: k,
                        beta: 0.0,
                        c,
                        ldc: groups * n,
                        batch: (groups, [k, n * k, n]),
                        exact: false,
                        factors: element,
                        result: element,
                    })
                    .unwrap();
                let sum = |i: usize, j: usize| -> f64 {
                    let row = i * groups * k + j / n * k;
                    (0..k).map(|l| f64::from(a[row + l]) * f64::from(b[j * k + l])).sum()
                };
                let want: Vec<f64> = (0..shape.count()).map(|at| sum(at / (groups * n), at % (groups * n))).collect();
                let got = get_stored(machine, format, &shape, c);
                assert_near(&got, &want, tolerance, &format!("{groups} groups of {m} x {n} x {k} in {element:?}"));
                [pa, pb, c].into_iter().for_each(|block| machine.free(block).unwrap());
            }
        }
    };
    body(&Sim::new(Order::Forward).unwrap());
    if let Some(gpu) = open(Precision::Bf16) {
        body(&gpu);
    }
}

#[test]
fn products_of_bf16_are_summed_in_single_precision() {
    let body = |machine: &dyn Machine| {
        let format = Format { element: Element::Bf16, ..Format::PLAIN };
        for (m, n, k) in [(3, 5, 7), (33, 17, 65), (128, 96, 384)] {
            let (a, b) = (draw_narrow(m * k, 1), draw_narrow(n * k, 2));
            let (pa, pb) =
                (put_stored(machine, format, &[m * k].into(), &a), put_stored(machine, format, &[n * k].into(), &b));
            let sum = |i: usize, j: usize| (0..k).map(|l| f64::from(a[i * k + l]) * f64::from(b[j * k + l])).sum();
            let want: Vec<f64> = (0..m * n).map(|at| sum(at / n, at % n)).collect();
            for (result, tolerance) in [(Element::F32, OF_LARGEST), (Element::Bf16, 4e-3)] {
                let (format, shape) = (Format { element: result, ..Format::PLAIN }, Shape::from([m * n]));
                let c = put_stored(machine, format, &shape, &vec![f32::NAN; m * n]);
                machine
                    .gemm(&Gemm {
                        trans_a: false,
                        trans_b: true,
                        m,
                        n,
                        k,
                        alpha: 1.0,
                        a: pa,
                        lda: k,
                        b: pb,
                        ldb: k,
                        beta: 0.0,
                        c,
                        ldc: n,
                        batch: (1, [0; 3]),
                        exact: false,
                        factors: Element::Bf16,
                        result,
                    })
                    .unwrap();
                let got = get_stored(machine, format, &shape, c);
                assert_near(&got, &want, tolerance, &format!("{m} x {n} x {k} to {result:?}"));
                machine.free(c).unwrap();
            }
            [pa, pb].into_iter().for_each(|block| machine.free(block).unwrap());
        }
    };
    body(&Sim::new(Order::Forward).unwrap());
    if let Some(gpu) = open(Precision::Bf16) {
        body(&gpu);
    }
}

#[test]
fn tf32_shortens_products_unless_they_are_exact() {
    let body = |machine: &dyn Machine| {
        products(machine, false, SUMS_OF_TF32);
        products(machine, true, SUMS);
    };
    body(&Sim::new(Order::Forward).unwrap().in_precision(Precision::Tf32));
    if let Some(gpu) = open(Precision::Tf32) {
        body(&gpu);
    }
}

#[test]
fn recorded_work_runs_when_replayed_and_not_before() {
    let Some(gpu) = gpu() else { return };
    let (x, sum) = (put(gpu, &[1.0; 1000]), gpu.alloc(8 * 1000).unwrap());
    gpu.zero(sum, 8 * 1000).unwrap();
    let add = || gpu.launch("net_accumulate", Grid::elements(1000), args![sum, x, 1000i64]);
    let read = || {
        let mut raw = [0; 8];
        gpu.download(sum.offset(8 * 999), &mut raw).unwrap();
        f64::from_ne_bytes(raw)
    };
    let other = Cuda::open(gpu.gpu().id, Precision::Fp32).unwrap();
    let (y, total) = (put(&other, &[1.0; 10]), put(&other, &[0.0; 20]));
    let graph = other
        .capture(&mut || {
            other.launch("net_accumulate", Grid::elements(10), args![total, y, 10i64])?;
            other.launch("net_accumulate", Grid::elements(10), args![total, y, 10i64])
        })
        .unwrap();
    assert_eq!(graph.nodes(), 2);
    let value = |at| {
        let mut raw = [0; 8];
        other.download(at, &mut raw).unwrap();
        f64::from_ne_bytes(raw)
    };
    assert_eq!(value(total), 0.0);
    for round in 1..=3 {
        other.replay(&graph).unwrap();
        assert_eq!(value(total.offset(72)), 2.0 * f64::from(round));
    }

    // What waits or copies from the host cannot be recorded, and the device goes on after the refusal.
    let text = other.capture(&mut || other.upload(&[0; 4], y)).map(drop).unwrap_err().to_string();
    assert!(text.contains("recorded"), "{text}");
    other.upload(&bytes(&[5.0]), y).unwrap();
    assert_eq!(get(&other, y, 1), [5.0]);

    add().unwrap();
    assert_eq!(read(), 1.0);
}

#[test]
fn a_product_and_a_convolution_can_be_recorded() {
    let Some(gpu) = open(Precision::Tf32) else { return };
    let c = geometries()[0];
    let (x, w) = (put(&gpu, &draw(2 * 3 * 144, 1)), put(&gpu, &draw(8 * 27, 2)));
    let (y, z) = (put(&gpu, &[0.0; 2 * 8 * 144]), put(&gpu, &[0.0; 144 * 144]));
    let workspace = gpu.convolution_workspace(&c, ConvolutionPass::Forward).unwrap();
    let at = gpu.alloc(workspace.unwrap_or(0)).unwrap();
    let mut work = || {
        if workspace.is_some() {
            gpu.convolution(&c, ConvolutionPass::Forward, y, [x, w], at)?;
        }
        gpu.gemm(&Gemm {
            trans_a: true,
            trans_b: false,
            m: 144,
            n: 144,
            k: 8,
            lda: 144,
            ldb: 144,
            ldc: 144,
            alpha: 1.0,
            beta: 0.0,
            a: y,
            b: y,
            c: z,
            batch: (1, [0; 3]),
            exact: false,
            factors: Element::F32,
            result: Element::F32,
        })
    };
    work().unwrap();
    let first = get(&gpu, z, 144 * 144);
    let graph = gpu.capture(&mut work).unwrap();
    gpu.zero(z, 4 * 144 * 144).unwrap();
    gpu.replay(&graph).unwrap();
    let again = get(&gpu, z, 144 * 144);
    assert!(first.iter().zip(&again).all(|(a, b)| a.to_bits() == b.to_bits()));
    assert!(workspace.is_none() || first.iter().any(|v| *v != 0.0));
}

#[test]
fn a_feed_brings_every_batch_in_turn() {
    let Some(gpu) = gpu() else { return };
    const FLOATS: usize = 100_000;
    let mut feed = gpu.feed(4 * FLOATS, 2).unwrap();
    let (input, sum) = (gpu.alloc(4 * FLOATS).unwrap(), gpu.alloc(8 * FLOATS).unwrap());
    gpu.zero(sum, 8 * FLOATS).unwrap();
    let fill = |feed: &mut lgm_cuda::Feed, batch: usize| {
        feed.host(batch % 2).unwrap().floats_mut().fill(batch as f32);
        feed.send(batch % 2, 4 * FLOATS).unwrap();
    };
    fill(&mut feed, 0);
    for batch in 0..50 {
        if batch + 1 < 50 {
            fill(&mut feed, batch + 1);
        }
        // In two parts, as for data and labels.
        let half = 2 * FLOATS;
        feed.deliver(batch % 2, &[(0, input, half), (half, input.offset(half), half)]).unwrap();
        gpu.launch("net_accumulate", Grid::elements(FLOATS), args![sum, input, FLOATS as i64]).unwrap();
    }
    let mut raw = vec![0; 8 * FLOATS];
    gpu.download(sum, &mut raw).unwrap();
    let want = f64::from(49 * 50 / 2);
    assert!(raw.chunks_exact(8).all(|c| f64::from_ne_bytes(c.try_into().unwrap()) == want));
}

#[test]
fn marks_measure_time() {
    let Some(gpu) = gpu() else { return };
    let x = put(gpu, &vec![1.0; 1 << 22]);
    let before = gpu.mark().unwrap();
    for _ in 0..10 {
        gpu.launch("relu_forward", Grid::elements(1 << 22), args![x, x, 0.5f32, 1i64 << 22]).unwrap();
    }
    let after = gpu.mark().unwrap();
    let time = before.milliseconds_to(&after).unwrap();
    assert!(after.reached().unwrap() && time > 0.0 && time < 1000.0, "{time} ms");
}
