//! Older nets and solvers, brought up to date as Caffe does when it reads them.
//!
//! | found | becomes |
//! | --- | --- |
//! | `layers { layer { … } }`, the first generation | second-generation layers; padding layers vanish into `pad` |
//! | `data_param { scale … }` and its like in `layers` | `transform_param { … }` |
//! | `layers { type: CONVOLUTION … }`, the second generation | `layer { type: "Convolution" … }` |
//! | `input`, `input_shape`, `input_dim` | an Input layer in front |
//! | three `param` on a BatchNorm layer | the same with rates of zero: its statistics are not learned |
//! | `solver_type: ADAM` | `type: "Adam"` |
//! | `snapshot_prefix` unset or a folder | the solver's file name, in that folder |

mod solver;
mod v0;
mod v1;

pub use solver::upgrade_solver;
pub(crate) use v0::layer_type as v0_layer_type;
pub use v1::layer_type as v1_layer_type;

use crate::text::positions::Positions;
use crate::{BlobShape, Error, InputParameter, LayerParameter, NetParameter, Result};

/// Brings a net up to date, and its positions with it. Gives what was done, a sentence each, for the log; a net that
/// is up to date is left alone and gives nothing.
///
/// # Errors
/// [`Error::Text`] for a net that mixes `layer` with `layers`, a first-generation net whose padding makes no sense, a
/// layer type that no generation had, and inputs without enough extents.
pub fn upgrade_net(net: &mut NetParameter, positions: &mut Positions) -> Result<Vec<String>> {
    let file = positions.file().display().to_string();
    let mut notices = Vec::new();
    if !net.layers.is_empty() && !net.layer.is_empty() {
        let at = positions.nearest("layers").unwrap_or_else(|| positions.start());
        let what = "the net has both 'layer' and 'layers'; write all of them as layer { type: \"…\" }".into();
        return Err(Error::Text { at, what });
    }
    if net.layers.iter().any(|layer| layer.layer.is_some()) {
        notices.push(format!("{file}: upgraded layers of the first generation (layers {{ layer {{ … }} }})"));
        v0::upgrade(net, positions, &mut notices)?;
    }
    if v1::move_transformations(net) {
        notices.push(format!("{file}: moved scale, mean_file, crop_size and mirror to transform_param"));
    }
    if !net.layers.is_empty() {
        notices.push(format!("{file}: upgraded layers of the second generation (layers {{ type: NAME }})"));
        v1::upgrade(net, positions)?;
    }
    if !net.input.is_empty() {
        upgrade_input(net, positions)?;
        notices.push(format!("{file}: replaced the fields input, input_shape and input_dim by an Input layer"));
    }
    if freeze_batch_norm(net) {
        notices.push(format!("{file}: set the rates of BatchNorm's three parameters to zero"));
    }
    Ok(notices)
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
        return Err(Error::Text { at, what });
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
