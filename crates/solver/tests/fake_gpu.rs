//! Training where calls of NVIDIA's libraries fail, the device is lost or memory runs out, at every place: on the fake GPU, so
//! `scripts/fake-gpu cargo test -p lgm-solver --test fake_gpu` (with `FAKE_GPU_ALL=1` at every place indeed, and without at
//! enough of them).

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;

use common::{Folder, logged, registry};
use lgm_core::{Result, Shape};
use lgm_cuda::Gpu;
use lgm_cuda::{Cuda, Precision};
use lgm_solver::Solver;
use lgm_testkit::{Fails, FakeGpu, says};

/// What is on the way of a net to the libraries: images by the feed, convolutions by cuDNN, some of them large enough for
/// NHWC, pooling, normalisation, a product, and a test net.
const NET: &str = "
    layer { name: 'data' type: 'HDF5Data' top: 'data' top: 'label' hdf5_data_param { source: 'DIR/train.txt' batch_size: 2 } }
    layer { name: 'conv' type: 'Convolution' bottom: 'data' top: 'conv' convolution_param { num_output: 8 kernel_size: 3 pad: 1 weight_filler { type: 'xavier' } } }
    layer { name: 'bn' type: 'BatchNorm' bottom: 'conv' top: 'conv' }
    layer { name: 'scale' type: 'Scale' bottom: 'conv' top: 'conv' scale_param { bias_term: true } }
    layer { name: 'relu' type: 'ReLU' bottom: 'conv' top: 'conv' }
    layer { name: 'pool' type: 'Pooling' bottom: 'conv' top: 'pool' pooling_param { pool: MAX kernel_size: 2 stride: 2 } }
    layer { name: 'drop' type: 'Dropout' bottom: 'pool' top: 'pool' }
    layer { name: 'ip' type: 'InnerProduct' bottom: 'pool' top: 'ip' inner_product_param { num_output: 3 weight_filler { type: 'xavier' } } }
    layer { name: 'loss' type: 'SoftmaxWithLoss' bottom: 'ip' bottom: 'label' top: 'loss' }";

/// Iterations of a run: the first is not recorded, the second is, and others are replayed.
const ITERATIONS: i32 = 5;

fn images(folder: &Folder) {
    const ROWS: usize = 8;
    let pixels: Vec<f32> = (0..ROWS * 3 * 16).map(|i| ((i * 7919) % 255) as f32 / 255.0 - 0.5).collect();
    let labels: Vec<f32> = (0..ROWS).map(|i| (i * 5 % 3) as f32).collect();
    let (file, shapes) = (folder.path("train.h5"), (Shape::from([ROWS, 3, 4, 4]), Shape::from([ROWS])));
    lgm_data::hdf5::write_f32(&file, &[("data", &shapes.0, &pixels), ("label", &shapes.1, &labels)]).unwrap();
    folder.write("train.txt", &format!("{}\n", file.display()));
}

fn solver() -> String {
    format!(
        "net_param {{ {NET} }} momentum: 0.9 base_lr: 0.05 lr_policy: 'fixed' random_seed: 3 max_iter: {ITERATIONS} \
         test_iter: 1 test_interval: 2 snapshot: 3 snapshot_prefix: 'DIR/fake' display: 1"
    )
}

/// What a run saves, and how many calls it has made when it is done but for giving everything back.
struct Done {
    weights: Vec<u8>,
    calls: usize,
}

/// A whole run, from the opening of the device to the end of everything.
fn train(fake: &FakeGpu, folder: &Folder, precision: Precision) -> Result<Done> {
    let gpu: Rc<dyn Gpu> = Rc::new(Cuda::open(0, precision)?);
    let mut solver = Solver::new_on(&folder.parse(&solver()), &registry(), Some(&gpu))?;
    solver.solve(&mut ())?;
    let weights = std::fs::read(folder.path(&format!("fake_iter_{ITERATIONS}.caffemodel"))).unwrap();
    Ok(Done { weights, calls: fake.count("calls") as usize })
}

/// A run on which something fails: it does not panic, makes no mistake and leaves nothing.
fn run(fake: &FakeGpu, fails: Fails, what: &str, precision: Precision) -> Result<Done> {
    // One for all runs: its name is in what they save.
    thread_local! { static FOLDER: Folder = Folder::new(); }
    let (result, log) = FOLDER.with(|folder| {
        folder.files("fake").into_iter().for_each(|file| std::fs::remove_file(folder.path(&file)).unwrap());
        if !folder.path("train.h5").exists() {
            images(folder);
        }
        fake.set(fails);
        logged(|| catch_unwind(AssertUnwindSafe(|| train(fake, folder, precision))))
    });
    let result = result.unwrap_or_else(|_| panic!("{what}: a panic"));
    assert_eq!(fake.count("violations"), 0, "{what}: {log:#?}");
    // What a lost device holds is gone with the process.
    if !matches!(fails, Fails::EveryCallFrom(_)) {
        let left = ["blocks", "objects"].map(|kind| fake.count(kind));
        assert_eq!(left, [0, 0], "{what}: blocks and objects that are left");
    }
    result
}

/// The calls of a run on which nothing fails, and what it gives.
fn whole(fake: &FakeGpu, precision: Precision) -> (Vec<String>, Done) {
    // Once before: kernels may have to be compiled.
    run(fake, Fails::Nothing, "first", precision).unwrap();
    let done = run(fake, Fails::Nothing, "again", precision).unwrap();
    (fake.calls(), done)
}

/// Places to try among calls: all, or of each name the first few, the last, and some between.
fn places(calls: &[String]) -> Vec<usize> {
    if std::env::var_os("FAKE_GPU_ALL").is_some_and(|v| v == "1") {
        return (0..calls.len()).collect();
    }
    let mut of_name: HashMap<&str, Vec<usize>> = HashMap::new();
    calls.iter().enumerate().for_each(|(i, name)| of_name.entry(name).or_default().push(i));
    let taken = |i: usize, len: usize| i < 2 || i + 1 == len || i.is_multiple_of(1 + len / 4);
    let some = |of: Vec<usize>| {
        of.iter().enumerate().filter(|(i, _)| taken(*i, of.len())).map(|(_, at)| *at).collect::<Vec<_>>()
    };
    let mut all: Vec<usize> = of_name.into_values().flat_map(some).collect();
    all.sort_unstable();
    all
}

/// Where a run is when it makes a call.
#[derive(PartialEq)]
enum Stage {
    /// Before the first kernel: libraries are opened, ways to run convolutions tried, memory taken.
    Preparing,
    /// Launching kernels one by one.
    Loose,
    /// Recording, which a run does without when it fails.
    Recording,
    /// After a whole iteration.
    Under,
    /// Giving everything back.
    Done,
}

fn stages(calls: &[String], done: usize) -> Vec<Stage> {
    let first = |name: &str| calls.iter().position(|call| call == name).unwrap();
    let (launch, replay) = (first("cuLaunchKernel"), first("cuGraphLaunch"));
    let mut recording = false;
    let each = calls.iter().enumerate().map(|(i, call)| {
        recording |= call == "cuStreamBeginCapture_v2";
        let stage = match () {
            () if i >= done => Stage::Done,
            () if recording => Stage::Recording,
            () if i >= replay => Stage::Under,
            () if i >= launch => Stage::Loose,
            () => Stage::Preparing,
        };
        recording &= call != "cuGraphUpload";
        stage
    });
    each.collect()
}

/// The error names the call, and what is saved once there is something. What a run can do without it does without: cuDNN,
/// whose passes are then the layer's own, blobs to try convolutions on, recordings.
#[test]
fn every_failing_call_ends_the_run_with_an_error() {
    let Some(fake) = FakeGpu::get() else { return };
    for precision in [Precision::Tf32, Precision::Bf16] {
        let (calls, done) = whole(&fake, precision);
        let stages = stages(&calls, done.calls);
        for i in places(&calls) {
            let (call, what) = (calls[i].as_str(), format!("{precision}: call {}, {}", i + 1, calls[i]));
            let result = run(&fake, Fails::Call(i as u64 + 1, 0), &what, precision);
            let optional = match call {
                "cuDeviceGetAttribute" => true,
                _ if matches!(stages[i], Stage::Recording | Stage::Done) => true,
                "cuMemAlloc_v2" | "cuStreamSynchronize" => stages[i] == Stage::Preparing,
                _ => call.starts_with("cudnn") && stages[i] == Stage::Preparing,
            };
            match result {
                Ok(got) => {
                    assert!(optional, "{what}: the run went on");
                    assert!(call.starts_with("cudnn") || got.weights == done.weights, "{what}: other weights");
                }
                Err(error) if call == "cuDeviceGetAttribute" => says(&error.to_string(), &["compute capability 0.0"]),
                Err(error) => {
                    let error = error.to_string();
                    let named = call.trim_end_matches("_v2").trim_end_matches("_64");
                    let named = if call.starts_with("cudnnConvolution") { "cudnnConvolution…" } else { named };
                    assert!(error.contains(&format!("{named} failed")), "{what}: {error}");
                    if stages[i] == Stage::Under {
                        says(&error, &["the last whole one, is saved: resume with -snapshot"]);
                    }
                }
            }
        }
    }
}

#[test]
fn a_device_that_is_lost_at_any_call_ends_the_run_with_an_error() {
    let Some(fake) = FakeGpu::get() else { return };
    let precision = Precision::Tf32;
    let (calls, done) = whole(&fake, precision);
    // One is taken after the third iteration of five.
    let (stages, snapshot) = (stages(&calls, done.calls), done.calls * 9 / 10);
    for i in places(&calls).into_iter().filter(|i| stages[*i] != Stage::Done) {
        let what = format!("lost at call {}, {}", i + 1, calls[i]);
        let Err(error) = run(&fake, Fails::EveryCallFrom(i as u64 + 1), &what, precision) else {
            panic!("{what}: the run went on")
        };
        let error = error.to_string();
        // What a library answers says less than what the driver does.
        assert!(error.contains("is lost") || error.contains("EXECUTION_FAILED"), "{what}: {error}");
        if stages[i] == Stage::Under {
            says(&error, &["what it held is gone"]);
        }
        if i > snapshot {
            says(&error, &["resume with -snapshot"]);
        }
    }
}

#[test]
fn memory_that_runs_out_at_any_allocation_ends_the_run_with_an_error() {
    let Some(fake) = FakeGpu::get() else { return };
    let precision = Precision::Bf16;
    let (_, done) = whole(&fake, precision);
    let (mut ended, all) = (0, fake.count("allocations"));
    for i in 1..=all {
        let what = format!("allocation {i} of {all}");
        match run(&fake, Fails::Allocation(i), &what, precision) {
            // Of blobs to try convolutions on.
            Ok(got) => assert!(got.weights == done.weights, "{what}: other weights"),
            Err(error) => {
                let error = error.to_string();
                assert!(error.contains("out of memory") || error.contains("cannot pin"), "{what}: {error}");
                ended += 1;
            }
        }
    }
    assert!(ended * 2 > all, "{ended} of {all} allocations that failed ended the run");
}
