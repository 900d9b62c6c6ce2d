//! A graph's parameters: which layer owns which, who shares them, and how fast they learn.

use std::collections::HashMap;

use lgm_core::{BlobSpec, DType, Error, ParamSpec as PlannedParam, Result, Shape, ensure};
use lgm_proto::LayerParameter;
use lgm_proto::param_spec::DimCheckMode;
use tracing::{info, warn};

use super::{Graph, Learnable, NetParam};

impl Graph {
    pub(super) fn add_params(
        &mut self,
        layer: usize,
        param: &mut LayerParameter,
        planned: &[PlannedParam],
        dtype: DType,
        names: &mut HashMap<String, usize>,
    ) -> Result<Vec<usize>> {
        let shown = planned.iter().filter(|p| !p.carried).count();
        ensure!(
            param.param.len() <= shown,
            "too many param entries: the layer has {shown} parameters, found {} entries",
            param.param.len()
        );
        let mut given_values = std::mem::take(&mut param.blobs);
        ensure!(
            given_values.is_empty() || given_values.len() == shown,
            "blobs must be given never or once a parameter: expected {shown}, found {}",
            given_values.len()
        );
        given_values.reverse();
        if planned.iter().any(|p| p.state && !p.carried) {
            // As Caffe does, so that saved nets say what holds: the solver leaves these alone.
            param.param.resize_with(shown, Default::default);
        }
        let mut ids = Vec::with_capacity(planned.len());
        let mut rated = Vec::new();
        for (index, planned) in planned.iter().enumerate() {
            let default = lgm_proto::ParamSpec::default();
            let given = match param.param.get_mut(index) {
                Some(spec) => {
                    if planned.state {
                        if spec.lr_mult.is_some_and(|m| m != 0.0) {
                            ensure!(
                                planned.fixed,
                                "parameter {index} holds statistics that the layer keeps itself: its lr_mult must be 0"
                            );
                            rated.push(index.to_string());
                        }
                        (spec.lr_mult, spec.decay_mult) = (Some(0.0), Some(0.0));
                    }
                    &*spec
                }
                None => &default,
            };
            let (lr_mult, decay_mult) = match planned.fixed || planned.carried {
                true => (Some(0.0), Some(0.0)),
                false => (given.lr_mult, given.decay_mult),
            };
            let spec = BlobSpec { shape: planned.shape.clone(), dtype };
            let values = given_values.pop();
            if let Some(values) = &values {
                let shape = values.extents()?;
                ensure!(
                    values.fits(&spec.shape),
                    "blobs: parameter {index} has the shape {}, found values of shape {}",
                    spec.shape,
                    Shape::from(shape.as_slice())
                );
                values.check_values()?;
            }
            let name = given.name().to_string();
            let id = self.params.len();
            let owner = names.get(&name).copied().filter(|_| !name.is_empty());
            let learnable = match owner {
                Some(owner) => {
                    info!(
                        "Sharing parameters '{name}' owned by layer '{}', param index {}",
                        self.layers
                            .get(self.params[owner].layer)
                            .map_or(param.r#name.as_deref().unwrap_or_default(), |l| l.name()),
                        self.params[owner].index
                    );
                    let theirs = &self.params[owner].spec;
                    let agree = match given.share_mode() {
                        DimCheckMode::Permissive => theirs.shape.count() == spec.shape.count(),
                        DimCheckMode::Strict => theirs.shape == spec.shape,
                    };
                    if !agree {
                        return Err(Error::Shape {
                            what: format!(
                                "cannot share parameter '{name}' (share_mode: PERMISSIVE compares counts only)"
                            ),
                            expected: theirs.shape.clone(),
                            found: spec.shape,
                        });
                    }
                    let learnable = self.params[owner].learnable;
                    let target = &mut self.learnables[learnable];
                    merge(&mut target.lr_mult, lr_mult, &name, "lr_mult")?;
                    merge(&mut target.decay_mult, decay_mult, &name, "decay_mult")?;
                    learnable
                }
                None => {
                    if !name.is_empty() {
                        names.insert(name.clone(), id);
                    }
                    self.learnables.push(Learnable {
                        owner: id,
                        lr_mult: (lr_mult.unwrap_or(default.lr_mult()), lr_mult.is_some()),
                        decay_mult: (decay_mult.unwrap_or(default.decay_mult()), decay_mult.is_some()),
                        filler: planned.filler.clone(),
                        given: values,
                    });
                    self.learnables.len() - 1
                }
            };
            let display = if name.is_empty() { index.to_string() } else { name };
            let backward = lr_mult.unwrap_or(default.lr_mult()) != 0.0;
            let PlannedParam { state, carried, .. } = *planned;
            self.params.push(NetParam { layer, index, spec, owner, learnable, display, backward, state, carried });
            ids.push(id);
        }
        if !rated.is_empty() {
            let (layer, which) = (param.name(), rated.join(", "));
            warn!(
                "layer '{layer}': the lr_mult of parameters {which} counts as 0: the layer keeps these statistics itself"
            );
        }
        Ok(ids)
    }
}

fn merge(target: &mut (f32, bool), given: Option<f32>, name: &str, field: &str) -> Result<()> {
    if let Some(value) = given {
        ensure!(
            !target.1 || target.0 == value,
            "shared parameter '{name}' has mismatched {field}: {} where it was first named, {value} here; give it once, or \
             the same",
            target.0
        );
        *target = (value, true);
    }
    Ok(())
}
