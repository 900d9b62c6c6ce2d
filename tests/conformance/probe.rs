//! One iteration of one layer, at a learning rate of 1, with what a net of ordinary layers can tell of it.

use lgm_testkit::Recorded;

use super::Trial;
use super::compare::{Params, Worst, dataset, params, write_h5};

/// Name, shape and values of a blob.
pub type Blob<'a> = (&'a str, &'a [usize], &'a [f64]);

/// An array of a recording under a name.
pub fn blob<'a>(recorded: &'a Recorded, array: &str, name: &'a str) -> Blob<'a> {
    let (shape, values) = recorded.array(array).unwrap_or_else(|| panic!("{array} is not recorded"));
    (name, shape, values)
}

/// What is put on a top.
pub enum TopDiff<'a> {
    /// A gradient: the loss is the sum of top · gradient.
    Given(&'a [f64]),
    /// The top itself.
    Itself,
}

/// A layer named `test` between its bottoms and tops.
#[derive(Default)]
pub struct Probe<'a> {
    pub layer: String,
    pub bottoms: Vec<Blob<'a>>,
    /// Whether the gradients of the bottoms `in_…` are wanted.
    pub gradients: bool,
    pub tops: Vec<&'a str>,
    pub top_diffs: Vec<(&'a str, TopDiff<'a>)>,
    pub params: Vec<Blob<'a>>,
}

/// What an iteration leaves.
pub struct After {
    params: Params,
}

impl After {
    /// A parameter, or minus the gradient of a bottom (`probe_in_0`, 0).
    pub fn param(&self, layer: &str, index: usize) -> Result<&[f64], String> {
        let found = self.params.get(&(layer.to_string(), index));
        found.map(Vec::as_slice).ok_or_else(|| format!("the snapshot has no parameter {index} of layer '{layer}'"))
    }

    /// Compares the gradient of a bottom.
    pub fn compare_bottom_diff(&self, worst: &mut Worst, bottom: &str, what: &str, want: &[f64]) -> Result<(), String> {
        let got: Vec<f64> = self.param(&format!("probe_{bottom}"), 0)?.iter().map(|x| -x).collect();
        worst.compare(what, &got, want);
        Ok(())
    }
}

impl Probe<'_> {
    fn is_probed(&self, bottom: &str) -> bool {
        self.gradients && bottom.starts_with("in_")
    }

    /// A bottom passes a Bias of its whole shape, whose zeros become minus the gradient; a top is saved by HDF5Output.
    fn net(&self) -> String {
        let mut net = String::from("name: 'case'\n");
        for (name, shape, _) in &self.bottoms {
            let raw = if self.is_probed(name) { format!("{name}_raw") } else { name.to_string() };
            let batch = shape[0];
            net += &format!(
                "layer {{ name: '{raw}' type: 'HDF5Data' top: '{raw}' hdf5_data_param {{ source: '{name}.txt' batch_size: {batch} }} }}\n"
            );
            if self.is_probed(name) {
                net += &format!(
                    "layer {{ name: 'probe_{name}' type: 'Bias' bottom: '{raw}' top: '{name}' bias_param {{ axis: 0 num_axes: -1 }} }}\n"
                );
            }
        }
        net += &self.layer;
        net.push('\n');
        for top in &self.tops {
            net += &format!(
                "layer {{ name: 'flat_{top}' type: 'Reshape' bottom: '{top}' top: 'flat_{top}' propagate_down: false reshape_param {{ shape {{ dim: 1 dim: -1 }} }} }}\n\
                 layer {{ name: 'save_{top}' type: 'HDF5Output' bottom: 'flat_{top}' bottom: 'flat_{top}' hdf5_output_param {{ file_name: '{top}.h5' }} }}\n"
            );
        }
        for (top, diff) in &self.top_diffs {
            net += &match diff {
                TopDiff::Itself => format!(
                    "layer {{ name: 'sum_{top}' type: 'Reduction' bottom: '{top}' top: 'sum_{top}' loss_weight: 1 reduction_param {{ operation: SUMSQ coeff: 0.5 }} }}\n"
                ),
                TopDiff::Given(_) => format!(
                    "layer {{ name: 'g_{top}' type: 'HDF5Data' top: 'g_{top}' hdf5_data_param {{ source: 'g_{top}.txt' batch_size: 1 }} }}\n\
                     layer {{ name: 'row_{top}' type: 'Reshape' bottom: '{top}' top: 'row_{top}' reshape_param {{ shape {{ dim: 1 dim: -1 }} }} }}\n\
                     layer {{ name: 'mul_{top}' type: 'Eltwise' bottom: 'row_{top}' bottom: 'g_{top}' top: 'mul_{top}' eltwise_param {{ operation: PROD }} }}\n\
                     layer {{ name: 'sum_{top}' type: 'Reduction' bottom: 'mul_{top}' top: 'sum_{top}' loss_weight: 1 }}\n"
                ),
            };
        }
        net
    }

    /// Runs the iteration.
    pub fn run(&self, trial: &Trial) -> Result<After, String> {
        for (name, shape, values) in &self.bottoms {
            let raw = if self.is_probed(name) { format!("{name}_raw") } else { name.to_string() };
            write_h5(&trial.at(&format!("{name}.h5")), &[(&raw, shape, values)]);
            trial.write(&format!("{name}.txt"), &format!("{name}.h5\n"));
        }
        for (top, diff) in &self.top_diffs {
            if let TopDiff::Given(values) = diff {
                write_h5(&trial.at(&format!("g_{top}.h5")), &[(&format!("g_{top}"), &[1, values.len()], values)]);
                trial.write(&format!("g_{top}.txt"), &format!("g_{top}.h5\n"));
            }
        }
        trial.write("net.prototxt", &self.net());
        trial.write("solver.prototxt", &solver(trial));
        let names: Vec<String> = (0..self.params.len()).map(|i| format!("data/test/{i}")).collect();
        let sets = self.params.iter().zip(&names).map(|(&(_, shape, values), name)| (name.as_str(), shape, values));
        let weights = "init.caffemodel.h5";
        write_h5(&trial.at(weights), &sets.collect::<Vec<_>>());
        let flags = ["-weights", weights];
        trial.train(if self.params.is_empty() { &[] } else { &flags })?;
        Ok(After { params: params(&trial.at("out_iter_1.caffemodel.h5"))? })
    }

    /// The values of a top.
    pub fn top(&self, trial: &Trial, name: &str) -> Result<Vec<f64>, String> {
        Ok(dataset(&trial.at(&format!("{name}.h5")), "data")?.1)
    }
}

/// A solver of one iteration after which a parameter is itself less its gradient.
pub fn solver(trial: &Trial) -> String {
    format!(
        "net: 'net.prototxt' base_lr: 1 lr_policy: 'fixed' momentum: 0 weight_decay: 0 max_iter: 1 display: 0\n\
         snapshot_prefix: 'out' snapshot_format: HDF5 solver_mode: {}\n",
        trial.mode()
    )
}
