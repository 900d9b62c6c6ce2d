//! Older nets and solvers, upgraded as Caffe does when it reads them.
//!
//! | found | becomes |
//! | --- | --- |
//! | `layers { layer { … } }`, the first generation | second-generation layers; padding layers vanish into `pad` |
//! | `data_param { scale … }` and its like in `layers` | `transform_param { … }` |
//! | `layers { type: CONVOLUTION … }`, the second generation | `layer { type: "Convolution" … }` |
//! | `input`, `input_shape`, `input_dim` | an Input layer in front |
//! | three `param` on a BatchNorm layer | the same with rates of zero: its statistics are not learned |
//! | `margin`, `margin_step`, `margin_mult`, `margin_max` of the L-GM fork's ClassDistance | `margin_mul { … }` |
//! | `solver_type: ADAM` | `type: "Adam"` |
//! | `snapshot_prefix` unset or a folder | the solver's file name, in that folder |

mod files;
mod margins;
mod solver;
mod v0;
mod v1;

pub use files::{Upgraded, upgrade_net_binary, upgrade_net_text, upgrade_solver_text};
pub(crate) use solver::upgrade_solver;

use crate::text::positions::Positions;
use crate::{BlobShape, Fault, InputParameter, LayerParameter, NetParameter, Parsed, Result};

/// What an upgrade did.
#[derive(Clone, Debug, Default)]
struct Report {
    /// Each step, in Caffe's words, for the log. Empty if the file was up to date.
    notices: Vec<String>,
    /// Settings without a place in today's format, a sentence each.
    ignored: Vec<String>,
}

impl Report {
    /// Records a step of an upgrade from what the file used, as in "input fields".
    fn step(&mut self, positions: &Positions, used: &str) {
        let file = positions.file().display();
        self.notices.push(format!("Attempting to upgrade input file specified using deprecated {used}: {file}"));
        self.notices.push(format!("Successfully upgraded file specified using deprecated {used}"));
    }
}

impl Parsed<NetParameter> {
    /// Upgrades the net to today's format, and its positions with it. The steps are added to the notices; the warnings
    /// tell that the file is of an older format, and which settings have no place in today's.
    ///
    /// # Errors
    /// [`crate::Error::Text`] for a net that mixes `layer` with `layers`, a first-generation net whose padding makes no
    /// sense, a layer type that no generation had, and inputs without enough extents.
    pub fn upgrade(&mut self) -> Result<()> {
        let report = upgrade_net(&mut self.message, &mut self.positions)?;
        if !report.notices.is_empty() {
            let file = self.positions.file().display();
            self.warnings.push(format!(
                "{file}: in an older format, upgraded as it was read; to upgrade the file, run \
                 'lgm-caffe upgrade_net_proto_text {file} NEW'"
            ));
        }
        self.notices.extend(report.notices);
        self.warnings.extend(report.ignored);
        Ok(())
    }
}

/// Upgrades a net, and its positions with it.
fn upgrade_net(net: &mut NetParameter, positions: &mut Positions) -> Result<Report> {
    let mut report = Report::default();
    if !net.layers.is_empty() && !net.layer.is_empty() {
        let at = positions.nearest("layers").unwrap_or_else(|| positions.start());
        let what = "the net has both 'layer' and 'layers'; write all of them as layer { type: \"…\" }";
        return Err(Fault::Upgrade(what.into()).at(at));
    }
    if net.layers.iter().any(|layer| layer.layer.is_some()) {
        report.step(positions, "V0LayerParameter");
        v0::upgrade(net, positions, &mut report.ignored)?;
    }
    if v1::move_transformations(net) {
        report.step(positions, "transformation parameters");
    }
    if !net.layers.is_empty() {
        report.step(positions, "V1LayerParameter");
        v1::upgrade(net, positions)?;
    }
    if !net.input.is_empty() {
        report.step(positions, "input fields");
        upgrade_input(net, positions)?;
    }
    if margins::upgrade(net, positions)? {
        report.step(positions, "margin fields");
    }
    if freeze_batch_norm(net) {
        let file = positions.file().display();
        report.notices.push(format!("Attempting to upgrade batch norm layers using deprecated params: {file}"));
        report.notices.push("Successfully upgraded batch norm layers using deprecated params.".into());
    }
    Ok(report)
}

/// Inputs with extents become an Input layer in front. Inputs without, as in old caffemodels, are dropped.
fn upgrade_input(net: &mut NetParameter, positions: &mut Positions) -> Result<()> {
    let inputs = std::mem::take(&mut net.input);
    let shapes = std::mem::take(&mut net.input_shape);
    let extents = std::mem::take(&mut net.input_dim);
    if shapes.is_empty() && extents.is_empty() {
        return Ok(());
    }
    let shape: Vec<BlobShape> = if shapes.is_empty() {
        extents.chunks_exact(4).map(|four| BlobShape { dim: four.iter().map(|&dim| dim.into()).collect() }).collect()
    } else {
        shapes
    };
    if shape.len() < inputs.len() {
        let at = positions.get("input").unwrap_or_else(|| positions.start());
        let what = format!(
            "expected one input_shape, or four input_dim, for each of {} inputs, found shapes for {}",
            inputs.len(),
            shape.len()
        );
        return Err(Fault::Upgrade(what).at(at));
    }
    let shape = shape.into_iter().take(inputs.len()).collect();
    net.layer.insert(
        0,
        LayerParameter {
            name: Some("input".into()),
            r#type: Some("Input".into()),
            top: inputs,
            input_param: Some(InputParameter { shape }),
            ..Default::default()
        },
    );
    let path = positions.get("input").map(|_| "input".to_owned());
    positions.layers_mut().insert(0, path);
    Ok(())
}

/// Older nets declare BatchNorm's statistics as parameters and rely on `lr_mult: 0`; left to learn, they would drift.
fn freeze_batch_norm(net: &mut NetParameter) -> bool {
    let mut changed = false;
    for layer in net.layer.iter_mut().filter(|layer| layer.r#type() == "BatchNorm" && layer.param.len() == 3) {
        changed = true;
        for param in &mut layer.param {
            param.lr_mult = Some(0.0);
            param.decay_mult = Some(0.0);
        }
    }
    changed
}
