//! What a net is warned of: settings that count for nothing here, and weights that are left over.

use crate::common::{Folder, params};

fn text(fields: &str, bias: bool, more: &str) -> String {
    let data = |top: &str, dims: &str| {
        format!(
            "layer {{ name: '{top}' type: 'DummyData' top: '{top}' dummy_data_param {{ shape {{ {dims} }} \
             data_filler {{ type: 'gaussian' }} }} }}"
        )
    };
    let (x, t) = (data("x", "dim: 2 dim: 3 dim: 2"), data("t", "dim: 2 dim: 1"));
    format!(
        "net_param {{ {x} {t}
           layer {{ name: 'norm' type: 'BatchNorm' bottom: 'x' top: 'n' {fields} }}
           layer {{ name: 'ip' type: 'InnerProduct' bottom: 'n' top: 'y'
             inner_product_param {{ num_output: 1 bias_term: {bias} weight_filler {{ type: 'gaussian' }} }} }}
           layer {{ name: 'loss' type: 'EuclideanLoss' bottom: 'y' bottom: 't' top: 'loss' {more} }} }}
         base_lr: 0 lr_policy: 'fixed' random_seed: 1 max_iter: 1 snapshot_prefix: 'DIR/out'"
    )
}

fn count(log: &[String], line: &str) -> usize {
    log.iter().filter(|l| l.contains(line)).count()
}

#[test]
fn settings_without_effect_are_named_once() {
    let folder = Folder::new();
    // Three entries alone are those of Caffe's first BatchNorm, and upgraded.
    let rates = "param { lr_mult: 1 } param { lr_mult: 0 } param { lr_mult: 2 } param { lr_mult: 3 }
                 batch_norm_param { scale_bias: true }";
    let (_, log) = folder.train(&text(rates, true, "loss_param { normalization: NONE }"));
    let statistics = "layer 'norm': the lr_mult of parameters 0, 2 counts as 0";
    let divisor = "layer 'loss': normalization: NONE has no effect on EuclideanLoss";
    assert_eq!([count(&log, statistics), count(&log, divisor)], [1, 1], "{log:#?}");
    let (_, log) = folder.train(&text("", true, "loss_param { ignore_label: 1 }"));
    assert_eq!([count(&log, "counts as 0"), count(&log, "no effect")], [0, 0], "{log:#?}");
}

#[test]
fn weights_left_over_are_named_once_a_file() {
    for (name, format) in [("caffemodel", "BINARYPROTO"), ("caffemodel.h5", "HDF5")] {
        let folder = Folder::new();
        let format = format!(" snapshot_format: {format}");
        let (solver, _) = folder.train(&(text("batch_norm_param { scale_bias: true }", true, "") + &format));
        let of = |file: &str| format!(" weights: 'DIR/{file}'");
        let file = format!("out_iter_1.{name}");
        let (shorter, log) = folder.train(&(text("", false, "") + &of(&file) + " snapshot_after_train: false"));
        let told = format!("{file}: has more parameters than layers of the net, which take the first: ");
        let found: Vec<_> = log.iter().filter(|line| line.contains(&told)).collect();
        assert!(
            matches!(found[..], [line] if line.contains("'ip' (1 of 2)") && line.contains("'norm' (3 of 5)")),
            "{log:#?}"
        );
        for ((name, all), (_, taken)) in params(&solver).iter().zip(params(&shorter)) {
            assert!(name == "norm" || taken == all[..1], "the weights of {name}");
        }
        let (_, log) = folder.train(&(text("batch_norm_param { scale_bias: true }", true, "") + &of(&file)));
        assert_eq!(count(&log, "more parameters"), 0, "{log:#?}");
    }
}
