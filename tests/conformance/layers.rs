//! `layers/`: one layer, forward and backward once.

use std::fs;

use lgm_testkit::Recorded;

use super::compare::Worst;
use super::probe::{Probe, TopDiff, blob};
use super::{Outcome, Trial};

pub fn run(trial: &Trial) -> Outcome {
    let c = Recorded::read(&trial.recording);
    let numbered = |name: &str, stem: &str| name.strip_prefix(stem).is_some_and(|n| n.parse::<usize>().is_ok());
    let all = |stem: &str| c.names().filter(|name| numbered(name, stem)).collect::<Vec<_>>();
    let is_loss = c.number("loss") != 0.0;
    let mut layer = c.text("layer").unwrap().to_string();
    let mut add = |field: &str| layer = layer.replacen("name: \"test\"", &format!("name: \"test\" {field}"), 1);
    if is_loss && !c.text("layer").unwrap().contains("loss_weight") {
        add("loss_weight: 1");
    }
    if c.text("phase") == Some("TEST") {
        add("phase: TEST");
    }
    for file in c.names().filter(|name| name.starts_with("file_")) {
        let bytes: Vec<u8> = c.array(file).unwrap().1.iter().map(|&byte| byte as u8).collect();
        fs::write(trial.at(&file["file_".len()..]), bytes).unwrap();
    }
    let tops = all("out_");
    let top_diffs = match (is_loss, c.array("sumsq")) {
        (true, _) => Vec::new(),
        (false, Some(_)) => tops.iter().map(|top| (*top, TopDiff::Itself)).collect(),
        (false, None) => {
            let given = |top: &&str| Some(TopDiff::Given(c.array(&top.replace("out_", "top_diff_"))?.1));
            tops.iter().filter_map(|top| Some((*top, given(top)?))).collect()
        }
    };
    let bottoms = [all("in_"), all("label_"), c.names().filter(|name| *name == "cont").collect()].concat();
    let params = all("param_");
    let probe = Probe {
        layer,
        bottoms: bottoms.iter().map(|name| blob(&c, name, name)).collect(),
        gradients: c.number("grad") != 0.0,
        tops: tops.clone(),
        top_diffs,
        params: params.iter().map(|name| blob(&c, name, name)).collect(),
    };
    let after = probe.run(trial)?;
    let mut worst = Worst::default();
    for top in tops {
        worst.compare(top, &probe.top(trial, top)?, c.array(top).unwrap().1);
    }
    for diff in all("bottom_diff_").into_iter().filter(|_| probe.gradients) {
        after.compare_bottom_diff(&mut worst, &diff.replace("bottom_diff_", "in_"), diff, c.array(diff).unwrap().1)?;
    }
    for (i, param) in params.iter().enumerate() {
        let (start, moved) = (c.array(param).unwrap().1, c.array(&format!("param_after_{i}")));
        let want: Vec<f64> = match (moved, c.array(&format!("param_diff_{i}"))) {
            (Some((_, values)), _) => values.to_vec(),
            (None, Some((_, diff))) => start.iter().zip(diff).map(|(w, dw)| w - dw).collect(),
            (None, None) => start.to_vec(),
        };
        worst.compare(*param, after.param("test", i)?, &want);
    }
    if params.is_empty() {
        for name in all("param_after_") {
            let i = name["param_after_".len()..].parse().unwrap();
            worst.compare(name, after.param("test", i)?, c.array(name).unwrap().1);
        }
    }
    Ok(worst)
}
