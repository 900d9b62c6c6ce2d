//! Numbers that make no sense, found before anything is built, each with its place in the text.

use prost_reflect::{ReflectMessage, Value};

use crate::text::positions::Positions;
use crate::text::visit::{Visited, visit};
use crate::text::write::general;
use crate::{Fault, Result};

/// Numbers that some fields must be: the message, the field, what holds, and how to say it.
type Rule = (&'static str, &'static str, fn(f64) -> bool, &'static str);

const NOT_NEGATIVE: &str = "must not be negative";
const FRACTION: &str = "must be at least 0 and below 1";

const RULES: [Rule; 27] = [
    ("BatchNormParameter", "eps", |x| x >= 0.0, NOT_NEGATIVE),
    ("BatchNormParameter", "moving_average_fraction", |x| (0.0..=1.0).contains(&x), "must be from 0 to 1"),
    ("MVNParameter", "eps", |x| x >= 0.0, NOT_NEGATIVE),
    ("DropoutParameter", "dropout_ratio", |x| (0.0..1.0).contains(&x), FRACTION),
    ("V0LayerParameter", "dropout_ratio", |x| (0.0..1.0).contains(&x), FRACTION),
    ("ClassDistanceParameter", "center_coef", |x| x >= 0.0, NOT_NEGATIVE),
    ("LGMLossParameter", "center_coef", |x| x >= 0.0, NOT_NEGATIVE),
    ("ParamSpec", "decay_mult", |x| x >= 0.0, NOT_NEGATIVE),
    ("V1LayerParameter", "weight_decay", |x| x >= 0.0, NOT_NEGATIVE),
    ("V0LayerParameter", "weight_decay", |x| x >= 0.0, NOT_NEGATIVE),
    ("SolverParameter", "base_lr", |x| x >= 0.0, NOT_NEGATIVE),
    ("SolverParameter", "weight_decay", |x| x >= 0.0, NOT_NEGATIVE),
    ("SolverParameter", "momentum", |x| (0.0..1.0).contains(&x), FRACTION),
    ("SolverParameter", "momentum2", |x| (0.0..1.0).contains(&x), FRACTION),
    ("SolverParameter", "rms_decay", |x| (0.0..1.0).contains(&x), FRACTION),
    ("SolverParameter", "delta", |x| x >= 0.0, NOT_NEGATIVE),
    ("SolverParameter", "gamma", |x| x >= 0.0, NOT_NEGATIVE),
    ("SolverParameter", "stepsize", |x| x >= 0.0, NOT_NEGATIVE),
    ("SolverParameter", "stepvalue", |x| x >= 0.0, NOT_NEGATIVE),
    ("SolverParameter", "max_iter", |x| x >= 0.0, NOT_NEGATIVE),
    ("SolverParameter", "min_lr", |x| x >= 0.0, NOT_NEGATIVE),
    ("SolverParameter", "warmup_start_lr", |x| x >= 0.0, NOT_NEGATIVE),
    ("SolverParameter", "rampup_lr", |x| x >= 0.0, NOT_NEGATIVE),
    ("SolverParameter", "stagelr", |x| x >= 0.0, NOT_NEGATIVE),
    ("SolverParameter", "larc_eta", |x| x >= 0.0, NOT_NEGATIVE),
    ("SolverParameter", "local_gw_ratio", |x| x >= 0.0, NOT_NEGATIVE),
    ("SolverParameter", "max_momentum", |x| (0.0..1.0).contains(&x), FRACTION),
];

/// Bounds, which an infinite number leaves open.
const OPEN: [(&str, &str); 4] =
    [("ClipParameter", "min"), ("ClipParameter", "max"), ("ParamParameter", "min"), ("ParamParameter", "max")];

/// Refuses numbers of a net or a solver that are not finite or that their field cannot mean.
///
/// # Errors
/// [`crate::Error::Text`] for the first.
pub fn check_numbers(message: &impl ReflectMessage, positions: &Positions) -> Result<()> {
    visit(&message.transcode_to_dynamic(), positions, |visited| {
        let Visited::Value(message, field, value) = visited else { return Ok(()) };
        let (number, real) = match value {
            Value::F32(x) => (f64::from(*x), true),
            Value::F64(x) => (*x, true),
            Value::I32(x) => (f64::from(*x), false),
            _ => return Ok(()),
        };
        let of = |rule: &(&str, &str)| *rule == (message.name(), field.name());
        let open = !number.is_nan() && OPEN.iter().any(of);
        let must = match RULES.iter().find(|rule| of(&(rule.0, rule.1))) {
            _ if !number.is_finite() && !open => "must be a finite number",
            Some((_, _, holds, must)) if !holds(number) => must,
            _ => return Ok(()),
        };
        let found = if real { general(number, 6) } else { number.to_string() };
        Err(Fault::Number { field: field.name().to_owned(), must, found })
    })
}
