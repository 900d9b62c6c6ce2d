//! `data/`: the first batch of a layer that reads data.

use lgm_testkit::Recorded;

use super::compare::{Worst, dataset};
use super::probe::solver;
use super::{Outcome, Trial};

pub fn run(trial: &Trial) -> Outcome {
    trial.copy();
    let c = Recorded::read(&trial.recording.join("tops.npz"));
    let tops: Vec<(&str, &str)> = c
        .names()
        .filter(|name| !["atol", "shuffled"].contains(name))
        .map(|name| (name.split("__").next().unwrap_or(name), name))
        .collect();
    let mut net = trial.read("layer.prototxt")?;
    let is_v1 = net.contains("layers {");
    for (top, _) in &tops {
        let (field, kind) = if is_v1 { ("layers", "HDF5_OUTPUT") } else { ("layer", "'HDF5Output'") };
        net += &format!(
            "{field} {{ name: 'save_{top}' type: {kind} bottom: '{top}' bottom: '{top}' hdf5_output_param {{ file_name: 'out_{top}.h5' }} }}\n"
        );
    }
    trial.write("net.prototxt", &net);
    trial.write("solver.prototxt", &solver(trial));
    trial.train(&[])?;
    let mut worst = Worst::default();
    let order = if c.array("shuffled").is_some() { Some(by_label(trial)?) } else { None };
    for (top, name) in tops {
        let (want_shape, want) = c.array(name).unwrap();
        let (shape, got) = dataset(&trial.at(&format!("out_{top}.h5")), "data")?;
        let items = got.len() / shape[0].max(1);
        let got: Vec<f64> = match &order {
            Some(order) => order.iter().flat_map(|&i| got[i * items..][..items].iter().copied()).collect(),
            None => got,
        };
        let is_choice = name.ends_with("__choices");
        let want_shape = &want_shape[usize::from(is_choice)..];
        // HDF5Output writes four axes.
        let same = (0..shape.len().max(4)).all(|i| shape.get(i).unwrap_or(&1) == want_shape.get(i).unwrap_or(&1));
        if !same {
            return Err(format!("{top} has shape {shape:?}, not {want_shape:?}"));
        }
        let largest = want.iter().fold(0.0, |most: f64, x| most.max(x.abs()));
        let allowed = c.number("atol") + 1e-5 * largest;
        let error = if is_choice { nearest(&got, want, items)? } else { farthest(&got, want) };
        worst.take(top, if error > allowed { error } else { 0.0 });
    }
    Ok(worst)
}

/// The items' places in the order of their labels.
fn by_label(trial: &Trial) -> Result<Vec<usize>, String> {
    let labels = dataset(&trial.at("out_label.h5"), "data")?.1;
    let mut order: Vec<usize> = (0..labels.len()).collect();
    order.sort_by(|&a, &b| labels[a].total_cmp(&labels[b]));
    Ok(order)
}

fn farthest(got: &[f64], want: &[f64]) -> f64 {
    got.iter().zip(want).fold(0.0, |most: f64, (g, w)| most.max((g - w).abs()))
}

/// How far the items are from the nearest of their choices, which must differ from item to item.
fn nearest(got: &[f64], choices: &[f64], item: usize) -> Result<f64, String> {
    let mut picked = std::collections::BTreeSet::new();
    let mut error: f64 = 0.0;
    for (i, values) in got.chunks(item).enumerate() {
        let far = choices.chunks(got.len()).map(|choice| farthest(values, &choice[i * item..][..item]));
        let (pick, far) = far.enumerate().min_by(|a, b| a.1.total_cmp(&b.1)).ok_or("there is no choice")?;
        picked.insert(pick);
        error = error.max(far);
    }
    if picked.len() < 2 { Err("what is drawn at random never varies".into()) } else { Ok(error) }
}
