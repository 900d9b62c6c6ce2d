//! `lgm/`: LGMLoss and ClassDistance, once.

use lgm_testkit::Recorded;

use super::compare::Worst;
use super::probe::{Probe, TopDiff, blob};
use super::{Outcome, Trial};

pub fn run(trial: &Trial) -> Outcome {
    let c = Recorded::read(&trial.recording);
    let kind = c.text("layer").unwrap();
    let is_loss = kind == "LGMLoss";
    let is_test = c.text("phase") == Some("TEST");
    let flag = |name: &str| c.number(name) != 0.0;
    let top = if is_loss { "loss" } else { "out_0" };
    let (classes, features) = (c.array("centers").unwrap().0[0], blob(&c, "x", "in_0"));
    let mut fields = format!(
        "num_output: {classes} isotropic: {} update_sigma: {} margin_mul {{ policy: CONSTANT value: {} max: 10 }} center_coef: {}",
        flag("isotropic"),
        flag("update_sigma"),
        c.number("margin_mul"),
        c.number("center_coef")
    );
    if !is_loss {
        fields += &format!(" metric: {} block_mul_grad: {}", c.text("metric").unwrap(), flag("block_mul_grad"));
        if flag("margin_add") {
            fields += &format!(" margin_add {{ policy: CONSTANT value: {} max: 10 }}", c.number("margin_add"));
        }
    }
    let mut bottoms = vec![features];
    if is_loss || flag("use_label") {
        bottoms.push(blob(&c, "label", "label_0"));
    }
    let named: String = bottoms.iter().map(|(name, ..)| format!("bottom: '{name}' ")).collect();
    let weight = if is_loss { "loss_weight: 1" } else { "" };
    let phase = c.text("phase").map_or(String::new(), |phase| format!("phase: {phase}"));
    let message = if is_loss { "lgm_loss_param" } else { "class_distance_param" };
    let trained = !is_loss && !is_test;
    let probe = Probe {
        layer: format!(
            "layer {{ name: 'test' type: '{kind}' {weight} {named} top: '{top}' {phase} {message} {{ {fields} }} }}"
        ),
        bottoms,
        gradients: !is_test,
        tops: vec![top],
        top_diffs: if trained { vec![(top, TopDiff::Given(c.array("top_diff").unwrap().1))] } else { Vec::new() },
        params: ["centers", "sigma"].map(|name| blob(&c, name, name)).to_vec(),
    };
    let after = probe.run(trial)?;
    let mut worst = Worst::default();
    worst.compare(top, &probe.top(trial, top)?, c.array(if is_loss { "loss" } else { "logits" }).unwrap().1);
    if !is_test {
        after.compare_bottom_diff(&mut worst, "in_0", "dx", c.array("dx").unwrap().1)?;
        for (i, name) in ["centers", "sigma"].into_iter().enumerate() {
            let (start, diff) = (c.array(name).unwrap().1, c.array(&format!("d{name}")).unwrap().1);
            let want: Vec<f64> = start.iter().zip(diff).map(|(w, dw)| w - dw).collect();
            worst.compare(name, after.param("test", i)?, &want);
        }
    }
    Ok(worst)
}
