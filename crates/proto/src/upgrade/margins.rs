//! The margins of ClassDistance as older nets of the L-GM fork set them, to `margin_mul`.

use crate::param_parameter::Policy;
use crate::text::positions::Positions;
use crate::{Fault, NetParameter, ParamParameter, Result};

/// Moves `margin`, `margin_step`, `margin_mult` and `margin_max` to `margin_mul`: a margin that is multiplied by
/// `margin_mult` every `margin_step` iterations up to `margin_max`, or a constant one without the first two. Returns
/// whether there was any. Fails where a margin is set in both ways.
pub(super) fn upgrade(net: &mut NetParameter, positions: &Positions) -> Result<bool> {
    let mut changed = false;
    for (i, layer) in net.layer.iter_mut().enumerate() {
        let Some(param) = &mut layer.class_distance_param else { continue };
        let (margin, step) = (param.margin.take(), param.margin_step.take());
        let (mult, max) = (param.margin_mult.take(), param.margin_max.take());
        if margin.is_none() && step.is_none() && mult.is_none() && max.is_none() {
            continue;
        }
        changed = true;
        let fault = |field: &str, what: &str| {
            let at = positions.nearest(&format!("layer[{i}].class_distance_param.{field}"));
            Fault::Upgrade(what.into()).at(at.unwrap_or_else(|| positions.start()))
        };
        let plain = |mul: &ParamParameter| *mul == ParamParameter { value: mul.value, ..ParamParameter::default() };
        if margin.is_some() && param.margin_mul.is_some() {
            return Err(fault("margin", "both margin_mul and the older 'margin' are given; remove margin"));
        }
        if param.margin_mul.as_ref().is_some_and(|mul| !plain(mul)) {
            let what = "margin_mul has a schedule of its own; remove margin_step, margin_mult and margin_max";
            return Err(fault("margin_mul", what));
        }
        let value = margin.or(param.margin_mul.as_ref().and_then(|mul| mul.value)).unwrap_or_default();
        let mut mul = ParamParameter { value: Some(value), ..ParamParameter::default() };
        mul.max = max;
        if step.is_some() || mult.is_some() {
            mul.set_policy(Policy::Stepup);
            (mul.step, mul.gamma) = (step, Some(mult.unwrap_or(1.0)));
        }
        param.margin_mul = Some(mul);
    }
    Ok(changed)
}
