//! From a parser's complaint to a message that says where, what was expected, and what may have been meant.

#![cfg_attr(not(test), warn(clippy::arithmetic_side_effects))]

use miette::Diagnostic;
use prost_reflect::text_format::ParseError;
use prost_reflect::{Cardinality, EnumDescriptor, EnumValueDescriptor, FieldDescriptor, Kind, MessageDescriptor};

use super::scan::{Entry, Scan};
use super::token::{self, Tokens};
use crate::{Error, Fault, Position, forks, nearest, strings};

/// At most so many names are listed when none is near.
const MAX_LISTED: usize = 20;

/// Describes why a text was refused. `offset_in_text` turns the error's offset into one of `text`, `at` an offset of
/// `text` into a position.
pub(super) fn diagnose(
    error: &ParseError,
    offset_in_text: impl Fn(usize) -> usize,
    text: &str,
    scan: &Scan,
    root: &MessageDescriptor,
    at: impl Fn(usize) -> Position,
) -> Error {
    let Some(label) = error.labels().and_then(|mut labels| labels.next()) else {
        let mut what = error.to_string();
        if let Some(open) = scan.unclosed {
            let open = at(open);
            what += &format!("; the bracket opened at line {}, column {} is not closed", open.line, open.column);
        }
        return Fault::Syntax(what).at(at(text.trim_end().len()));
    };

    let offset = offset_in_text(label.offset());
    let unknown = unknown(text, scan, root, &at);
    if unknown.first().is_some_and(|(first, _)| *first <= offset) && stray_character(text, offset).is_none() {
        let faults = unknown.into_iter().map(|(offset, fault)| (at(offset), fault)).collect();
        if let Err(error) = Error::all(faults) {
            return error;
        }
    }
    let by_value = scan.entries.iter().find(|entry| entry.value == offset);
    let what = stray_character(text, offset)
        .or_else(|| by_value.and_then(|entry| type_of_today(text, entry, root)))
        .or_else(|| by_value.and_then(|entry| bad_value(entry, error, scan, root, &at)))
        .unwrap_or_else(|| match error.help() {
            Some(help) => format!("{error}; {help}"),
            None => error.to_string(),
        });
    Fault::Syntax(what).at(at(offset))
}

/// The message for a character that no token begins with.
fn stray_character(text: &str, offset: usize) -> Option<String> {
    match text.get(offset..)?.chars().next()? {
        '\n' => Some("expected the closing quote of a string before the end of the line".into()),
        c if c.is_ascii_alphanumeric() || "_-.{}[]<>,:;/'\"\\".contains(c) => None,
        c => {
            let found = match strings::byte_of(c) {
                Some(byte) => format!("byte 0x{byte:02X}; only strings and comments may hold others than ASCII's"),
                None => format!("character '{}'", c.escape_debug()),
            };
            Some(format!("expected a field name or a value, but found the {found}"))
        }
    }
}

/// Every field that its message does not have and every name that is none of its enum's, with its offset. A list of
/// such is one, and so are the layers behind one that is not closed.
fn unknown(text: &str, scan: &Scan, root: &MessageDescriptor, at: impl Fn(usize) -> Position) -> Vec<(usize, Fault)> {
    let mut found: Vec<(usize, Fault)> = Vec::new();
    let mut reported = None;
    let mut unclosed = false;
    for entry in &scan.entries {
        let (parent, name) = match entry.path.rsplit_once('.') {
            Some((parent, name)) => (resolve(root, parent), name),
            None => (Some(root.clone()), entry.path.as_str()),
        };
        let Some(parent) = parent else { continue };
        let name = without_index(name);
        match parent.get_field_by_name(name) {
            None => {
                if let Some(outer) = layer_around(entry, scan, root) {
                    if !std::mem::replace(&mut unclosed, true) {
                        let line = at(outer.name).line;
                        let what = format!(
                            "the layer that begins at line {line} is not closed before the next; '}}' is missing"
                        );
                        found.push((entry.name, Fault::Syntax(what)));
                    }
                    continue;
                }
                // The elements of a list share its name.
                if reported != Some(entry.name) {
                    found.push((entry.name, unknown_field(name, &parent)));
                }
                reported = Some(entry.name);
            }
            Some(field) => {
                if let (Kind::Enum(known), Some(value)) = (field.kind(), name_at(text, entry.value))
                    && known.get_value_by_name(value).is_none()
                {
                    found.push((entry.value, unknown_enum_value(value, field.name(), &known)));
                }
            }
        }
    }
    found
}

/// The layer that an entry is in, if the entry is a layer too.
fn layer_around<'a>(entry: &Entry, scan: &'a Scan, root: &MessageDescriptor) -> Option<&'a Entry> {
    let is_layer = |path: &str| ["layer", "layers"].contains(&without_index(path.rsplit('.').next().unwrap_or(path)));
    let around = entry.path.match_indices('.').filter_map(|(end, _)| entry.path.get(..end));
    let outer = around.rev().find(|path| is_layer(path) && resolve(root, path).is_some())?;
    scan.entries.iter().find(|entry| entry.path == outer).filter(|_| is_layer(&entry.path))
}

/// The name that begins at an offset, if one does.
fn name_at(text: &str, offset: usize) -> Option<&str> {
    let rest = text.get(offset..)?;
    let token = Tokens::new(rest).next().filter(|token| token.kind == token::Kind::Name && token.start == 0)?;
    rest.get(..token.end)
}

/// The message for a field that its message does not have.
fn unknown_field(name: &str, parent: &MessageDescriptor) -> Fault {
    let carried = |field: &FieldDescriptor| forks::carried(parent.full_name(), field.name());
    let known: Vec<String> = parent.fields().filter(carried).map(|field| field.name().to_owned()).collect();
    Fault::UnknownField { field: name.to_owned(), message: parent.name().to_owned(), hint: suggestion(name, &known) }
}

/// The message for a layer's type of today, which is a string, where the types of old are names.
fn type_of_today(text: &str, entry: &Entry, root: &MessageDescriptor) -> Option<String> {
    let (parent, name) = entry.path.rsplit_once('.')?;
    let is_old = resolve(root, parent)?.get_field_by_name(name).is_some_and(|field| {
        field.full_name() == "caffe.V1LayerParameter.type" && matches!(field.kind(), Kind::Enum(_))
    });
    let mut tokens = Tokens::new(text.get(entry.value..)?);
    let token = tokens.next().filter(|token| is_old && token.kind == token::Kind::Quoted)?;
    let found = text.get(entry.value..entry.value.checked_add(token.end)?)?;
    Some(format!(
        "the type {found} is one of today's, which the older 'layers' does not take (its types are names without quotes, \
         as in type: CONVOLUTION); write 'layer' in its place"
    ))
}

/// The message for a value that its field cannot take, if that is the entry's fault.
fn bad_value(
    entry: &Entry,
    error: &ParseError,
    scan: &Scan,
    root: &MessageDescriptor,
    at: impl Fn(usize) -> Position,
) -> Option<String> {
    let (parent, name) = match entry.path.rsplit_once('.') {
        Some((parent, name)) => (resolve(root, parent)?, name),
        None => (root.clone(), entry.path.as_str()),
    };
    let field = parent.get_field_by_name(without_index(name))?;
    if name.ends_with(']') && field.cardinality() != Cardinality::Repeated {
        let first = entry.path.rfind('[').and_then(|end| entry.path.get(..end))?;
        let first = scan.entries.iter().find(|entry| entry.path == first)?;
        return Some(format!("'{}' is given twice, first at line {}; remove one", field.name(), at(first.at).line));
    }
    match error.help() {
        Some(help) => Some(format!("{}: {error}; {help}", field.name())),
        None => Some(format!("{}: {error}", field.name())),
    }
}

/// The message for a name or number that an enum does not have.
pub(super) fn unknown_enum_value(found: &str, field: &str, known: &EnumDescriptor) -> Fault {
    let carried = |value: &EnumValueDescriptor| forks::carried(known.full_name(), value.name());
    let known: Vec<String> = known.values().filter(carried).map(|value| value.name().to_owned()).collect();
    Fault::UnknownValue { field: field.to_owned(), value: found.to_owned(), hint: suggestion(found, &known) }
}

/// What to try instead of a name.
fn suggestion(name: &str, known: &[String]) -> String {
    // What all names of messages end with says nothing of which was meant.
    let near = match name.strip_suffix("_param") {
        Some(stem) => nearest(stem, known.iter().filter_map(|known| known.strip_suffix("_param")))
            .map(|near| format!("{near}_param")),
        None => nearest(name, known.iter().map(String::as_str)).map(String::from),
    };
    match near {
        Some(near) => format!("; did you mean '{near}'?"),
        None if known.len() <= MAX_LISTED => format!("; expected one of {}", known.join(", ")),
        None => String::new(),
    }
}

/// The type of the message at a path; `None` where there is no message.
pub(super) fn resolve(root: &MessageDescriptor, path: &str) -> Option<MessageDescriptor> {
    path.split('.').try_fold(root.clone(), |message, name| {
        match message.get_field_by_name(without_index(name))?.kind() {
            Kind::Message(inner) => Some(inner),
            _ => None,
        }
    })
}

fn without_index(name: &str) -> &str {
    name.split('[').next().unwrap_or(name)
}
