//! `train/`, `resume/` and `nets/`: iterations of whole nets.

use lgm_testkit::Recorded;
use regex::Regex;

use super::compare::{Worst, dataset, params};
use super::{Outcome, Trial};
use crate::util;

/// The recorded run, its files copied and its solver rewritten.
fn prepare(trial: &Trial, rewrite: impl Fn(&str) -> String) -> Result<(Recorded, String), String> {
    trial.copy();
    let solver = trial.read("solver.prototxt")?;
    trial.write(
        "solver.prototxt",
        &rewrite(&solver).replace("solver_mode: CPU", &format!("solver_mode: {}", trial.mode())),
    );
    Ok((Recorded::read(&trial.recording.join("run.npz")), solver))
}

/// 30 iterations. A learning rate of policy `poly` depends on `max_iter`: such a solver goes on to its end.
pub fn train(trial: &Trial) -> Outcome {
    let (recorded, _) = prepare(trial, |solver| {
        let format = "\nsnapshot: 30\nsnapshot_format: HDF5\n";
        if solver.contains("poly") {
            return format!("{solver}{format}");
        }
        Regex::new(r"max_iter: \d+").unwrap().replace(solver, "max_iter: 30").into_owned() + format
    })?;
    let log = trial.train(&["-weights", "init.caffemodel"])?;
    let mut worst = Worst::default();
    worst.compare_params(&params(&trial.at("out_iter_30.caffemodel.h5"))?, &recorded);
    if let Some((_, smoothed)) = recorded.array("smoothed") {
        let shown = Regex::new(r"Iteration (\d+) .*, loss = (\S+)").unwrap();
        let shown: Vec<(usize, f64)> =
            shown.captures_iter(&log).map(|c| (c[1].parse().unwrap(), c[2].parse().unwrap_or(f64::NAN))).collect();
        for (i, want) in smoothed.iter().enumerate() {
            let got: Vec<f64> = shown.iter().filter(|(at, _)| *at == i).map(|(_, loss)| *loss).collect();
            worst.compare(format!("the logged loss of iteration {i}"), &got, &[*want]);
        }
    }
    Ok(worst)
}

/// From Caffe's own snapshot at iteration 15 to 30.
pub fn resume(trial: &Trial) -> Outcome {
    let (recorded, solver) =
        prepare(trial, |solver| solver.replace("snapshot_format: BINARYPROTO", "snapshot_format: HDF5"))?;
    let end = if solver.contains("BINARYPROTO") { "" } else { ".h5" };
    let log = trial.train(&["-snapshot", &format!("out_iter_15.solverstate{end}")])?;
    if !log.lines().any(|line| util::text(line).starts_with("There is no ")) {
        return Err(format!("nothing is said of the file that Caffe does not write:\n{log}"));
    }
    let mut worst = Worst::default();
    worst.compare_params(&params(&trial.at("out_iter_30.caffemodel.h5"))?, &recorded);
    Ok(worst)
}

/// One test pass, whose blobs the net saves itself, and one iteration.
pub fn net(trial: &Trial) -> Outcome {
    let (recorded, _) = prepare(trial, str::to_string)?;
    trial.train(&["-weights", recorded.text("weights").unwrap()])?;
    let mut worst = Worst::default();
    worst.compare_params(&params(&trial.at("out_iter_1.caffemodel.h5"))?, &recorded);
    for name in recorded.names().filter(|name| name.starts_with("test_")) {
        worst.compare(name, &dataset(&trial.at(&format!("{name}.h5")), "data")?.1, recorded.array(name).unwrap().1);
    }
    Ok(worst)
}
