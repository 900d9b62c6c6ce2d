//! What a processor can do, measured: the ceilings that `time` compares layers with, and the floor of an iteration.

use std::hint::black_box;
use std::rc::Rc;
use std::time::Instant;

use lgm_core::{Format, Gemm, Result, Shape};
use lgm_cpu::{MatMut, MatRef, elementwise};
use lgm_cuda::{Block, Gpu};
use lgm_net::Net;

/// The ceilings of a machine over all threads, or of a GPU.
#[derive(Clone, Copy, Debug)]
pub struct Peaks {
    /// Operations a second of a large matrix product, in units of 10⁹.
    pub gflops: f64,
    /// Bytes read and written a second by a large copy, in units of 10⁹.
    pub gbytes: f64,
}

/// The work of an iteration, and what it takes at the least.
#[derive(Clone, Copy, Debug, Default)]
pub struct Floor {
    /// Milliseconds: layer by layer and pass by pass those of its operations or of its bytes, whichever are more.
    pub ms: f64,
    /// Operations, in units of 10⁹.
    pub gflop: f64,
    /// Bytes read and written, in units of 10⁹.
    pub gbyte: f64,
}

impl Floor {
    /// That of so many forward and backward passes of a net, without conversions, which the net does not ask for, and of an
    /// update with so many histories.
    pub fn of(net: &Net, passes: usize, histories: usize, peaks: &Peaks) -> Floor {
        let mut floor = Floor::default();
        for layer in (0..net.layers().len()).map(|i| net.layer_report(i)).filter(|layer| !layer.internal) {
            for _ in 0..passes {
                floor.add(peaks, layer.flops as f64, layer.forward_bytes as f64);
                floor.add(peaks, layer.backward_flops as f64, layer.backward_bytes as f64);
            }
        }
        // Gradients are cleared, and then these, the parameters and their histories read and written.
        let params: usize = net.learnables().map(|l| l.spec.bytes()).sum();
        floor.add(peaks, 0.0, ((5 + 2 * histories) * params) as f64);
        floor
    }

    fn add(&mut self, peaks: &Peaks, flop: f64, bytes: f64) {
        let (gflop, gbyte) = (flop / 1e9, bytes / 1e9);
        self.ms += 1e3 * (gflop / peaks.gflops).max(gbyte / peaks.gbytes);
        self.gflop += gflop;
        self.gbyte += gbyte;
    }
}

/// The least and the most rows of the matrices, and bytes of the copy, that a GPU is measured with.
const ROWS: [usize; 2] = [512, 8192];
const BYTES: [usize; 2] = [1 << 20, 256 << 20];
/// Seconds of a run that are enough to measure it by.
const ENOUGH: f64 = 1.5e-3;

/// Measures a GPU, in the precision that nets have there: with matrices and copies as large as it takes for a run to last
/// a millisecond or two, as there is room.
///
/// # Errors
/// When there is no room for the smallest, or the GPU fails.
pub fn on(gpu: &Rc<dyn Gpu>) -> Result<Peaks> {
    let gflops = largest(ROWS, 2, |n| {
        let element = gpu.storage().element;
        let matrix = || filled(gpu, n * n * element.bytes());
        let (a, b, c) = (matrix()?, matrix()?, matrix()?);
        let product = Gemm::dense([n; 3], [false; 2], [&a, &b, &c].map(Block::at), element);
        let seconds = best_on(gpu, || gpu.gemm(&product))?;
        Ok((2.0 * (n as f64).powi(3) / 1e9, seconds))
    })?;
    let gbytes = largest(BYTES, 4, |bytes| {
        let (from, to) = (filled(gpu, bytes)?, Block::new(gpu, bytes)?);
        let seconds = best_on(gpu, || gpu.copy(from.at(), to.at(), bytes))?;
        Ok((2.0 * bytes as f64 / 1e9, seconds))
    })?;
    Ok(Peaks { gflops, gbytes })
}

/// The best rate over sizes from the first to the last, each so many times the one before, up to one that takes long enough
/// or that there is no room for. `run` gives the work done and the seconds it took.
fn largest([first, last]: [usize; 2], times: usize, mut run: impl FnMut(usize) -> Result<(f64, f64)>) -> Result<f64> {
    let (mut size, mut best) = (first, 0.0f64);
    while size <= last {
        let (work, seconds) = match run(size) {
            Err(_) if best > 0.0 => break,
            result => result?,
        };
        best = best.max(work / seconds);
        if seconds >= ENOUGH {
            break;
        }
        size *= times;
    }
    Ok(best)
}

/// Memory filled with different numbers between -1 and 1: zeros may be faster than data.
fn filled(gpu: &Rc<dyn Gpu>, bytes: usize) -> Result<Block> {
    let block = Block::new(gpu, bytes)?;
    let format = Format { element: gpu.storage().element, ..Format::PLAIN };
    let mut state = 1u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    let mut done = bytes.min(BYTES[0]);
    let values: Vec<f32> = (0..done / format.element.bytes()).map(|_| next()).collect();
    block.upload(&format.encode(&Shape::from([values.len()]), &values))?;
    while done < bytes {
        let more = done.min(bytes - done);
        gpu.copy(block.at(), block.at().offset(done), more)?;
        done += more;
    }
    Ok(block)
}

/// Seconds of the quickest of a few runs on a GPU after one to warm up.
fn best_on(gpu: &Rc<dyn Gpu>, run: impl Fn() -> Result<()>) -> Result<f64> {
    let timed = || -> Result<f64> {
        let start = Instant::now();
        run()?;
        gpu.finish()?;
        Ok(start.elapsed().as_secs_f64())
    };
    gpu.finish()?;
    timed()?;
    (0..5).try_fold(f64::INFINITY, |best, _| Ok(timed()?.min(best)))
}

/// Measures both, in about a second.
pub fn measure() -> Peaks {
    let n = 1536;
    let (a, b, mut c) = (vec![0.5f32; n * n], vec![0.25f32; n * n], vec![0.0f32; n * n]);
    let (left, right) = (MatRef::new(&a, n, n), MatRef::new(&b, n, n));
    let product = best(|| {
        lgm_cpu::Gemm { alpha: 1.0, a: left, b: right, beta: 0.0, c: MatMut::new(&mut c, n, n) }.run();
    });
    let (from, mut to) = (vec![1.0f32; 1 << 25], vec![0.0f32; 1 << 25]);
    let copy = best(|| elementwise::copy(&from, &mut to));
    black_box((&c, &to));
    Peaks { gflops: 2.0 * (n as f64).powi(3) / product / 1e9, gbytes: 8.0 * from.len() as f64 / copy / 1e9 }
}

/// Seconds of the quickest of a few runs after one to warm up.
fn best(mut run: impl FnMut()) -> f64 {
    run();
    let timed = |_| {
        let start = Instant::now();
        run();
        start.elapsed().as_secs_f64()
    };
    (0..5).map(timed).fold(f64::INFINITY, f64::min)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longer_of_operations_and_bytes_counts() {
        let peaks = Peaks { gflops: 1000.0, gbytes: 100.0 };
        let mut floor = Floor::default();
        floor.add(&peaks, 4e9, 1e8);
        floor.add(&peaks, 1e9, 2e8);
        assert!((floor.ms - 6.0).abs() < 1e-9 && floor.gflop == 5.0 && (floor.gbyte - 0.3).abs() < 1e-9, "{floor:?}");
    }

    #[test]
    fn sizes_grow_until_a_run_takes_long_enough_or_there_is_no_room() {
        let no_room = || Err(lgm_core::Error::config("no room"));
        let mut sizes = Vec::new();
        let mut run = |size: usize| {
            sizes.push(size);
            Ok((100.0 * size as f64, if size < 40 { 1e-3 } else { ENOUGH }))
        };
        assert_eq!(largest([10, 1000], 2, &mut run).unwrap(), 4000.0 / ENOUGH);
        assert_eq!(sizes, [10, 20, 40]);
        let run = |size: usize| if size > 20 { no_room() } else { Ok((size as f64, 1e-4)) };
        assert_eq!(largest([10, 1000], 2, run).unwrap(), 20.0 / 1e-4);
        assert!(largest([10, 1000], 2, |_| no_room()).is_err());
    }
}
