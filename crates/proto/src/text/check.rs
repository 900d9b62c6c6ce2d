//! What protobuf's C++ parser checks and prost-reflect does not.

use prost_reflect::{Cardinality, DynamicMessage, FieldDescriptor, Kind, ReflectMessage, Value};

use super::diagnose::unknown_enum_value;
use super::positions::Positions;
use super::visit::{Visited, visit};
use crate::{Fault, Result};

/// Refuses numbers that no enum value has, and messages without their required fields.
pub(super) fn check(message: &DynamicMessage, positions: &Positions) -> Result<()> {
    visit(message, positions, |visited| match visited {
        Visited::Value(_, field, Value::EnumNumber(number)) => match field.kind() {
            Kind::Enum(known) if known.get_value(*number).is_none() => {
                Err(unknown_enum_value(&number.to_string(), field.name(), &known))
            }
            _ => Ok(()),
        },
        Visited::Value(..) => Ok(()),
        Visited::Message(name, message) => {
            let of = message.descriptor();
            let missing = of.fields().find(|f| f.cardinality() == Cardinality::Required && !message.has_field(f));
            let fault = |field: FieldDescriptor| Fault::MissingField {
                message: name.to_owned(),
                field: field.name().to_owned(),
            };
            missing.map_or(Ok(()), |field| Err(fault(field)))
        }
    })
}
