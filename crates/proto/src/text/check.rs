//! What protobuf's C++ parser checks and prost-reflect does not.

use prost_reflect::{Cardinality, DynamicMessage, Kind, ReflectMessage, Value};

use super::diagnose::unknown_enum_value;
use super::positions::Positions;
use crate::{Error, Result};

/// Refuses numbers that no enum value has, and messages without their required fields.
pub(super) fn check(message: &DynamicMessage, positions: &Positions) -> Result<()> {
    check_message(message, "", positions)
}

fn check_message(message: &DynamicMessage, path: &str, positions: &Positions) -> Result<()> {
    let fault = |path: &str, what: String| {
        Err(Error::Text { at: positions.nearest(path).unwrap_or_else(|| positions.start()), what })
    };
    for (field, value) in message.fields() {
        let name = if path.is_empty() { field.name().to_owned() } else { format!("{path}.{}", field.name()) };
        let values = match value {
            Value::List(values) => values.as_slice(),
            single => std::slice::from_ref(single),
        };
        for (i, value) in values.iter().enumerate() {
            let path = || if i == 0 { name.clone() } else { format!("{name}[{i}]") };
            match (value, field.kind()) {
                (Value::Message(inner), _) => check_message(inner, &path(), positions)?,
                (Value::EnumNumber(number), Kind::Enum(known)) if known.get_value(*number).is_none() => {
                    return fault(&path(), unknown_enum_value(&number.to_string(), field.name(), &known));
                }
                _ => {}
            }
        }
    }
    let descriptor = message.descriptor();
    for field in descriptor.fields().filter(|field| field.cardinality() == Cardinality::Required) {
        if !message.has_field(&field) {
            let name = path.rsplit('.').next().unwrap_or_default().split('[').next().unwrap_or_default();
            return fault(path, format!("{name} needs a field '{}', which is missing", field.name()));
        }
    }
    Ok(())
}
