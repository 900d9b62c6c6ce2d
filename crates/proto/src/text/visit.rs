//! Every value that a message sets, judged with its place in the text.

use prost_reflect::{DynamicMessage, FieldDescriptor, MessageDescriptor, ReflectMessage, Value};

use super::positions::Positions;
use crate::{Fault, Result};

/// What a walk through a message comes by.
pub(crate) enum Visited<'a> {
    /// A value that is no message, one of a list too, with its field and the type of the message around it.
    Value(&'a MessageDescriptor, &'a FieldDescriptor, &'a Value),
    /// A message after what is in it, with the name of its field; the outermost has none.
    Message(&'a str, &'a DynamicMessage),
}

/// Walks through a message in the order of its fields, and through those in it.
///
/// # Errors
/// [`crate::Error::Text`] for the first that `judge` refuses, where it stands.
pub(crate) fn visit(
    message: &DynamicMessage,
    positions: &Positions,
    judge: impl Fn(Visited<'_>) -> Result<(), Fault>,
) -> Result<()> {
    enter(message, ("", ""), positions, &judge)
}

fn enter(
    message: &DynamicMessage,
    (name, path): (&str, &str),
    positions: &Positions,
    judge: &dyn Fn(Visited<'_>) -> Result<(), Fault>,
) -> Result<()> {
    let error = |path: &str, fault: Fault| fault.at(positions.nearest(path).unwrap_or_else(|| positions.start()));
    let descriptor = message.descriptor();
    for (field, value) in message.fields() {
        let first = if path.is_empty() { field.name().to_owned() } else { format!("{path}.{}", field.name()) };
        let values = match value {
            Value::List(values) => values.as_slice(),
            single => std::slice::from_ref(single),
        };
        for (i, value) in values.iter().enumerate() {
            let path = || if i == 0 { first.clone() } else { format!("{first}[{i}]") };
            match value {
                Value::Message(inner) => enter(inner, (field.name(), &path()), positions, judge)?,
                value => judge(Visited::Value(&descriptor, &field, value)).map_err(|fault| error(&path(), fault))?,
            }
        }
    }
    judge(Visited::Message(name, message)).map_err(|fault| error(path, fault))
}
