//! Devices that fail, and snapshots that cannot be written.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../common/mod.rs"]
mod common;
mod failing;

use std::cell::RefCell;
use std::rc::Rc;

use common::{Folder, HELD, logged, params, registry};
use failing::{Failing, Fails};
use lgm_core::{Shape, Storage};
use lgm_cuda::Gpu;
use lgm_cuda::sim::Order;
use lgm_solver::{Solver, Watch};
use lgm_testkit::{device, says};

const NET: &str = "
    layer { name: 'data' type: 'HDF5Data' top: 'data' top: 'label' hdf5_data_param { source: 'DIR/train.txt' batch_size: 4 } }
    layer { name: 'bn' type: 'BatchNorm' bottom: 'data' top: 'bn' }
    layer { name: 'scale' type: 'Scale' bottom: 'bn' top: 'bn' scale_param { bias_term: true } }
    layer { name: 'drop' type: 'Dropout' bottom: 'bn' top: 'bn' }
    layer { name: 'ip' type: 'InnerProduct' bottom: 'bn' top: 'ip' inner_product_param { num_output: 3 weight_filler { type: 'xavier' } } }
    layer { name: 'loss' type: 'SoftmaxWithLoss' bottom: 'ip' bottom: 'label' top: 'loss' }";

/// Rows of the file of images: more than a run of 9 iterations sees.
const ROWS: usize = 44;

/// The file of images, with one label of its own.
fn images(folder: &Folder, odd: Option<(usize, f32)>) {
    images_with(folder, odd, None);
}

/// The same with one pixel of its own too.
fn images_with(folder: &Folder, odd: Option<(usize, f32)>, pixel: Option<(usize, f32)>) {
    let mut pixels: Vec<f32> = (0..ROWS * 5).map(|i| ((i * 7919) % 255) as f32 / 255.0 - 0.5).collect();
    pixel.iter().for_each(|&(i, value)| pixels[i] = value);
    let label = |i: usize| odd.filter(|odd| odd.0 == i).map_or((i * 5 % 3) as f32, |odd| odd.1);
    let labels: Vec<f32> = (0..ROWS).map(label).collect();
    let (file, shapes) = (folder.path("train.h5"), (Shape::from([ROWS, 5]), Shape::from([ROWS])));
    let _ = std::fs::remove_file(&file);
    lgm_data::hdf5::write_f32(&file, &[("data", &shapes.0, &pixels), ("label", &shapes.1, &labels)]).unwrap();
    folder.write("train.txt", &format!("{}\n", file.display()));
}

fn solver(prefix: &str, more: &str) -> String {
    format!(
        "net_param {{ {NET} }} momentum: 0.9 base_lr: 0.05 lr_policy: 'multistep' gamma: 0.5 stepvalue: [2, 6] \
         weight_decay: 0.01 average_loss: 4 random_seed: 3 snapshot_prefix: 'DIR/{prefix}' {more}"
    )
}

/// The error of a run on a device that fails, and the log.
fn fails(folder: &Folder, text: &str, gpu: &Rc<dyn Gpu>) -> (String, Vec<String>) {
    let mut solver = Solver::new_on(&folder.parse(text), &registry(), Some(gpu)).unwrap();
    let (result, log) = logged(|| solver.solve(&mut ()));
    (result.expect_err("the run was meant to fail").to_string(), log)
}

/// Checks that what a failing run saved is what a run that ends with iteration `iter` saves, and goes on as one.
fn saved_whole(folder: &Folder, iter: i32, error: &str) {
    let state = format!("failed_iter_{iter}.solverstate");
    let last = format!("iteration {iter}, the last whole one, is saved: resume with -snapshot {}", folder.at(&state));
    assert!(error.ends_with(&last), "{error}");
    common::on_a_device(|| goes_on_whole(folder, iter, error));
}

/// Checks what was saved after `iter` iterations against a run that ends then, and that it goes on as one.
fn goes_on_whole(folder: &Folder, iter: i32, error: &str) {
    let state = format!("failed_iter_{iter}.solverstate");
    images(folder, None);
    folder.train(&solver("short", &format!("max_iter: {iter}")));
    let read = |prefix: &str, end: &str| std::fs::read(folder.path(&format!("{prefix}_iter_{iter}{end}"))).unwrap();
    for end in [".caffemodel", ".solverstate.lgm"] {
        assert!(read("short", end) == read("failed", end), "{end} differs after: {error}");
    }
    let (whole, _) = folder.train(&solver("whole", "max_iter: 10"));
    let (resumed, _) = folder.resume(&solver("whole", "max_iter: 10"), &state);
    assert!(params(&whole) == params(&resumed), "resumed after: {error}");
}

/// A kernel finds a label without a class in the sixth iteration, which the host hears of later, or at once.
#[test]
fn a_fault_found_by_a_kernel_leaves_the_last_whole_iteration() {
    for (display, order) in [(0, Order::Forward), (1, Order::Reversed), (4, Order::Forward), (5, Order::Reversed)] {
        let Some(gpu) = device(order, None, Storage::default()) else { return };
        let folder = Folder::new();
        images(&folder, Some((21, 8.0)));
        let (error, log) = fails(&folder, &solver("failed", &format!("max_iter: 10 display: {display}")), &gpu);
        says(&error, &["layer 'loss' (SoftmaxWithLoss)", "8", "; iteration 5, the last whole one"]);
        says(&log.join("\n"), &["Snapshotting to binary proto file ", "Snapshotting solver state to "]);
        saved_whole(&folder, 5, &error);
    }
}

/// The same on the host, where a layer finds the label before the update; BatchNorm's statistics have changed by then.
#[test]
fn a_fault_found_on_the_host_leaves_the_last_whole_iteration() {
    for display in [0, 1, 5] {
        let folder = Folder::new();
        images(&folder, Some((21, 8.0)));
        let text = solver("failed", &format!("max_iter: 10 display: {display}"));
        let error = Solver::new(&folder.parse(&text), &registry()).unwrap().solve(&mut ()).unwrap_err();
        assert!(!error.is_device_lost(), "{error}");
        let error = error.to_string();
        says(&error, &["layer 'loss' (SoftmaxWithLoss)", "8", "; iteration 5, the last whole one"]);
        goes_on_whole(&folder, 5, &error);
    }
}

/// A pixel that is not a number in the sixth iteration: the updates stop there, whenever the host hears of it.
#[test]
fn a_loss_that_is_not_finite_leaves_the_last_whole_iteration() {
    for (display, order) in [(0, Order::Forward), (1, Order::Reversed), (4, Order::Forward), (5, Order::Reversed)] {
        let Some(gpu) = device(order, None, Storage::default()) else { return };
        let folder = Folder::new();
        images_with(&folder, None, Some((21 * 5 + 2, f32::NAN)));
        let (error, _) = fails(&folder, &solver("failed", &format!("max_iter: 10 display: {display}")), &gpu);
        let first = "the first that is not finite is blob 'data' of layer 'data' (HDF5Data)";
        says(&error, &["iteration 5: the loss is nan; ", first, "; iteration 5, the last whole one"]);
        saved_whole(&folder, 5, &error);
    }
    // Told to keep going, the run ends, and writes nothing.
    let Some(gpu) = device(Order::Forward, None, Storage::default()) else { return };
    let folder = Folder::new();
    images_with(&folder, None, Some((21 * 5 + 2, f32::NAN)));
    let parsed = folder.parse(&solver("on", "max_iter: 10"));
    let mut solver = Solver::new_on(&parsed, &registry(), Some(&gpu)).unwrap();
    solver.keep_going(true);
    let (_, log) = logged(|| solver.solve(&mut ()).unwrap());
    says(
        &log.join("\n"),
        &["iteration 5: the loss is nan; going on", "iteration 10: parameter 0 of layer 'bn' is not finite, so"],
    );
    assert!(folder.files("on_iter").is_empty());
}

/// A label without a class among the test net's: training was whole up to the test, which a resumed run repeats.
#[test]
fn a_fault_in_a_test_leaves_the_iteration_before() {
    let folder = Folder::new();
    let data = |phase: &str, list: &str| {
        let line = NET.lines().nth(1).unwrap().replace("train.txt", list);
        line.replace("top: 'data'", &format!("include {{ phase: {phase} }} top: 'data'"))
    };
    let rest: Vec<&str> = NET.lines().skip(2).collect();
    let text = |prefix: &str, list: &str| {
        let net = [data("TRAIN", "train.txt"), data("TEST", list), rest.join("\n")].concat();
        let testing = "max_iter: 10 test_iter: 2 test_interval: 4 test_initialization: false";
        solver(prefix, testing).replace(NET, &net)
    };
    for (name, odd) in [("good", None), ("bad", Some((6, -1.0))), ("train", None)] {
        images(&folder, odd);
        std::fs::copy(folder.path("train.h5"), folder.path(&format!("{name}_rows.h5"))).unwrap();
        folder.write(&format!("{name}.txt"), &folder.at(&format!("{name}_rows.h5")));
    }
    let Some(gpu) = device(Order::Forward, None, Storage::default()) else { return };
    let (error, _) = fails(&folder, &text("failed", "bad.txt"), &gpu);
    says(&error, &["layer 'loss' (SoftmaxWithLoss)", "-1", "; iteration 4, the last whole one, is saved"]);
    common::on_a_device(|| {
        let (whole, log) = folder.train(&text("whole", "good.txt"));
        let (resumed, again) = folder.resume(&text("again", "good.txt"), "failed_iter_4.solverstate");
        assert!(params(&whole) == params(&resumed));
        let (want, got) = (common::results(&log, 4), common::results(&again, 4));
        assert!(want.len() >= 4, "{want:?}");
        assert_eq!(want, got);
    });
}

/// Refusals that the host hears of at once: of a layer's kernel, of the update, of a whole recording.
#[test]
fn a_refused_launch_leaves_the_last_whole_iteration() {
    for (fails_at, parts, iter) in [
        (Fails::Launch("loss_finish", 7), &["layer 'loss' (SoftmaxWithLoss)", "cuLaunchKernel failed"][..], 7),
        (Fails::Launch("solver_sgd", 6), &["kernel solver_sgd: cuLaunchKernel failed"], 6),
        (Fails::Launch("solver_keep_loss", 4), &["solver_keep_loss"], 4),
        // The first iteration is not recorded.
        (Fails::Replay(3), &["clear, forward, backward, update", "cuGraphLaunch failed"], 4),
    ] {
        let Some(gpu) = Failing::gpu(fails_at) else { return };
        let folder = Folder::new();
        images(&folder, None);
        let (error, _) = fails(&folder, &solver("failed", "max_iter: 10"), &gpu);
        says(&error, parts);
        saved_whole(&folder, iter, &error);
    }
}

#[test]
fn a_failure_that_leaves_nothing_new_saves_nothing() {
    let files = |more: &str, fails_at: Fails| -> Option<(String, Vec<String>)> {
        let gpu = Failing::gpu(fails_at)?;
        let folder = Folder::new();
        images(&folder, None);
        let error = fails(&folder, &solver("failed", more), &gpu).0;
        let here = folder.0.path().display().to_string() + "/";
        Some((error.replace(&here, ""), folder.files("failed")))
    };
    let Some((error, left)) = files("max_iter: 10", Fails::Launch("loss_finish", 0)) else { return };
    assert!(error.ends_with("cuLaunchKernel failed") && left.is_empty(), "{error}, {left:?}");
    // The snapshot of that very iteration is there already.
    let (error, left) = files("max_iter: 10 snapshot: 3", Fails::Launch("loss_finish", 6)).unwrap();
    assert!(error.ends_with("resume with -snapshot failed_iter_6.solverstate"), "{error}");
    assert_eq!(left.len(), 6, "{left:?}");
    // Nobody wants any.
    let none = "max_iter: 10 snapshot_after_train: false";
    let (error, left) = files(none, Fails::Launch("loss_finish", 6)).unwrap();
    assert!(error.ends_with("cuLaunchKernel failed") && left.is_empty(), "{error}, {left:?}");
}

#[test]
fn a_lost_device_names_the_newest_snapshot() {
    for (more, last) in
        [("snapshot: 2", Some(4)), ("snapshot: 2 snapshot_format: HDF5", Some(4)), ("snapshot: 9", None)]
    {
        let Some(gpu) = Failing::gpu(Fails::Lost(4)) else { return };
        let folder = Folder::new();
        images(&folder, None);
        let (error, log) = fails(&folder, &solver("failed", &format!("max_iter: 10 {more}")), &gpu);
        let said = "the device is lost: replay failed";
        let does_not = "the device does not answer, and what it held is gone; ";
        match last {
            Some(iter) => {
                let end = if more.contains("HDF5") { ".h5" } else { "" };
                let state = folder.at(&format!("failed_iter_{iter}.solverstate{end}"));
                says(&error, &[said, does_not, &format!("resume with -snapshot {state}")]);
            }
            None => says(&error, &[said, does_not, "there is no snapshot yet"]),
        }
        assert!(log.iter().any(|l| l.starts_with("nothing can be read from the device: ")), "{log:#?}");
        assert_eq!(folder.files("failed").len(), last.map_or(0, |_| 6));
    }
}

/// Does something after some iteration.
struct After<'a>(i32, &'a dyn Fn());

impl Watch for After<'_> {
    fn progress(&mut self, iter: i32, _loss: f64) {
        if iter == self.0 {
            (self.1)();
        }
    }
}

/// A file takes the folder's place while the run lasts: the error is that of the next step, or of the end.
#[test]
fn a_snapshot_that_cannot_be_written_ends_the_run() {
    let trains = |more: &str, gone_after: i32| {
        let folder = Folder::new();
        images(&folder, None);
        let text = solver("new/out", &format!("max_iter: 10 {more}"));
        let mut solver = folder.solver(&text).unwrap();
        let gone = || {
            std::fs::remove_dir_all(folder.path("new")).unwrap();
            folder.write("new", "");
        };
        let iter = RefCell::new(0);
        struct Last<'a>(After<'a>, &'a RefCell<i32>);
        impl Watch for Last<'_> {
            fn progress(&mut self, iter: i32, loss: f64) {
                *self.1.borrow_mut() = iter;
                self.0.progress(iter, loss);
            }
        }
        let error =
            solver.solve(&mut Last(After(gone_after, &gone), &iter)).expect_err("it cannot be written").to_string();
        (error.replace(&(folder.0.path().display().to_string() + "/"), ""), iter.take())
    };
    let (error, iter) = trains("snapshot: 3", 3);
    says(&error, &["the snapshot new/out_iter_3.solverstate was not written: ", "cannot create"]);
    assert!((3..=6).contains(&iter), "the next snapshot at the latest waits for it, found {iter}");
    let (error, iter) = trains("", 10);
    says(&error, &["the snapshot new/out_iter_10.solverstate was not written: ", "cannot create"]);
    assert_eq!(iter, 10);
}

/// A snapshot whose writing takes long holds up the next snapshot, not the iterations before it.
#[test]
fn training_goes_on_while_a_snapshot_is_written() {
    let folder = Folder::new();
    images(&folder, None);
    let wide = solver("out", "max_iter: 9 snapshot: 4");
    let (model, state) = (folder.path("out_iter_4.caffemodel"), folder.path("out_iter_4.solverstate"));
    *HELD.lock().unwrap() = Some(format!("Writing {}", model.display()));
    let release = || {
        assert!(!model.exists() && !state.exists(), "the thread that writes was held");
        std::thread::spawn(|| {
            std::thread::sleep(std::time::Duration::from_millis(100));
            *HELD.lock().unwrap() = None;
        });
    };
    let (_, log) = logged(|| folder.solver(&wide).unwrap().solve(&mut After(7, &release)).unwrap());
    assert!(state.exists() && folder.path("out_iter_8.solverstate").exists());
    let at = |iter: i32| {
        log.iter()
            .position(|l| l.contains(&format!("proto file {}", folder.at(&format!("out_iter_{iter}.caffemodel")))))
    };
    assert!(at(4).unwrap() < at(8).unwrap() && at(8).unwrap() < at(9).unwrap(), "{log:#?}");
    let (whole, _) = folder.train(&wide.replace("DIR/out", "DIR/whole"));
    let (resumed, _) = folder.resume(&wide.replace("DIR/out", "DIR/again"), "out_iter_4.solverstate");
    assert!(params(&whole) == params(&resumed), "what was written late is of the iteration it was taken at");
}
