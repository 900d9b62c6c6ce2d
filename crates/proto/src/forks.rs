//! What public forks of Caffe have beyond it, and how it is treated here: the tables of `proto/forks`.
//!
//! The Rust types hold what is supported. A text that has more is read by the whole schema; the difference is found here,
//! while the text's message still has it.

use std::collections::{BTreeSet, HashMap};
use std::sync::LazyLock;

use prost_reflect::{DynamicMessage, FieldDescriptor, Kind, ReflectMessage, Value};

/// What becomes of a field or an enum value of forks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Support {
    /// It does what it does there.
    Carried,
    /// It changes no result here.
    Ignored,
    /// It would change results, and a net with it is not built.
    Refused,
}

/// Support and forks, by `Message.field` or `Message.Enum.VALUE`.
static FIELDS: LazyLock<HashMap<&str, (Support, &str)>> = LazyLock::new(|| {
    let parsed = lines(include_str!("../../../proto/forks/fields.txt")).filter_map(|(support, rest)| {
        let support = match support {
            "carried" => Support::Carried,
            "ignored" => Support::Ignored,
            "refused" => Support::Refused,
            _ => return None,
        };
        let (name, forks) = rest.split_once(' ')?;
        Some((name, (support, forks)))
    });
    parsed.collect()
});

/// Forks, by layer type.
static LAYERS: LazyLock<HashMap<&str, &str>> =
    LazyLock::new(|| lines(include_str!("../../../proto/forks/layers.txt")).collect());

/// First word and rest of each line that is no comment.
fn lines(table: &'static str) -> impl Iterator<Item = (&'static str, &'static str)> {
    table.lines().filter(|line| !line.starts_with('#')).filter_map(|line| line.split_once(' '))
}

/// The public forks of Caffe that have a layer type which Caffe itself lacks, as in "weiliu89/caffe, intel/caffe and 8
/// more".
pub fn forks_of_layer(kind: &str) -> Option<&'static str> {
    LAYERS.get(kind).copied()
}

/// Whether a field of a message, or a value of an enum, is supported.
pub(crate) fn carried(scope: &str, name: &str) -> bool {
    let key = format!("{}.{name}", scope.trim_start_matches("caffe."));
    !FIELDS.get(key.as_str()).is_some_and(|(support, _)| *support != Support::Carried)
}

/// What becomes of a message's field, if forks have it and Caffe does not. A second-generation layer has the fields of
/// today's.
fn support(message: &str, field: &str) -> Option<&'static (Support, &'static str)> {
    let message = message.trim_start_matches("caffe.");
    let of = |message: &str| FIELDS.get(format!("{message}.{field}").as_str());
    of(message).or_else(|| (message == "V1LayerParameter").then(|| of("LayerParameter")).flatten())
}

/// What of a text's message the Rust types do not hold.
#[derive(Debug, Default)]
pub(crate) struct Dropped {
    /// Names of what changes no result.
    pub ignored: BTreeSet<String>,
    /// What would change results: its path in the text, and why it is refused.
    pub refused: Vec<(String, String)>,
}

/// Finds what of a message the Rust types do not hold.
pub(crate) fn dropped(message: &DynamicMessage) -> Dropped {
    let mut dropped = Dropped::default();
    enter(message, "", &mut dropped);
    dropped
}

fn enter(message: &DynamicMessage, path: &str, dropped: &mut Dropped) {
    let of = message.descriptor();
    let of = of.full_name().trim_start_matches("caffe.");
    for (field, value) in message.fields() {
        let first = if path.is_empty() { field.name().to_owned() } else { format!("{path}.{}", field.name()) };
        let place = |i: usize| if i == 0 { first.clone() } else { format!("{first}[{i}]") };
        match support(of, field.name()) {
            Some((Support::Ignored, _)) => drop(dropped.ignored.insert(field.name().to_owned())),
            // Its default is what a net without it gets.
            Some((Support::Refused, _)) if is_default(&field, value) => {}
            Some((Support::Refused, forks)) => {
                let what = format!(
                    "'{}' of {of} is a field of forks ({forks}) that is not supported and would change results; \
                     take it out if the net is meant without it",
                    field.name()
                );
                dropped.refused.push((first, what));
            }
            _ => {
                let values = match value {
                    Value::List(values) => values.as_slice(),
                    single => std::slice::from_ref(single),
                };
                for (i, value) in values.iter().enumerate() {
                    match (value, field.kind()) {
                        (Value::Message(inner), _) => enter(inner, &place(i), dropped),
                        (Value::EnumNumber(number), Kind::Enum(known)) => {
                            let Some(value) = known.get_value(*number) else { continue };
                            let scope = known.full_name().trim_start_matches("caffe.");
                            let named = (field.name(), value.name());
                            judge_value(&format!("{scope}.{}", value.name()), named, place(i), dropped);
                        }
                        _ => {}
                    }
                }
            }
        }
    }
}

/// Copies to an upgraded message what of the original the Rust types do not hold.
pub(crate) fn restore(original: &DynamicMessage, upgraded: &mut DynamicMessage) {
    let of = original.descriptor();
    for (field, value) in original.fields() {
        let same = upgraded.descriptor().get_field_by_name(field.name());
        let Some(same) = same.filter(|same| same.kind() == field.kind() && same.is_list() == field.is_list()) else {
            continue;
        };
        if support(of.full_name(), field.name()).is_some_and(|(support, _)| *support != Support::Carried) {
            upgraded.set_field(&same, value.clone());
        } else if upgraded.has_field(&same) {
            match (value, upgraded.get_field_mut(&same)) {
                (Value::Message(original), Value::Message(upgraded)) => restore(original, upgraded),
                (Value::List(original), Value::List(upgraded)) if original.len() == upgraded.len() => {
                    for pair in original.iter().zip(upgraded) {
                        if let (Value::Message(original), Value::Message(upgraded)) = pair {
                            restore(original, upgraded);
                        }
                    }
                }
                _ => {}
            }
        }
    }
}

fn is_default(field: &FieldDescriptor, value: &Value) -> bool {
    !field.is_list() && !matches!(value, Value::Message(_)) && *value == field.default_value()
}

fn judge_value(key: &str, (field, value): (&str, &str), path: String, dropped: &mut Dropped) {
    match FIELDS.get(key) {
        Some((Support::Ignored, _)) => drop(dropped.ignored.insert(format!("{field}: {value}"))),
        Some((Support::Refused, forks)) => {
            let what = format!("'{value}' for {field} is a value of forks ({forks}) that is not supported");
            dropped.refused.push((path, what));
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::WHOLE_POOL;

    #[test]
    fn every_line_of_the_table_names_something_of_the_schema_and_no_line_is_there_twice() {
        let table = include_str!("../../../proto/forks/fields.txt");
        let named = lines(table).filter(|(_, rest)| !rest.is_empty()).count();
        assert_eq!(named, FIELDS.len(), "a line is malformed or there twice");
        for key in FIELDS.keys() {
            let (scope, name) = key.rsplit_once('.').unwrap();
            let scope = format!("caffe.{scope}");
            let field = WHOLE_POOL.get_message_by_name(&scope).map(|m| m.get_field_by_name(name).is_some());
            let value = || WHOLE_POOL.get_enum_by_name(&scope).map(|e| e.values().any(|v| v.name() == name));
            assert_eq!(field.or_else(value), Some(true), "{key}");
        }
    }

    #[test]
    fn layers_of_forks_are_known() {
        assert!(forks_of_layer("PriorBox").unwrap().starts_with("weiliu89/caffe"));
        assert_eq!(forks_of_layer("Convolution"), None);
    }
}
