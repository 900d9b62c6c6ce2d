//! Protobuf's text format: prototxt in and out.
//!
//! Text is accepted and refused as protobuf's C++ `TextFormat` does. prost-reflect parses; it is more lenient than C++
//! in four ways, which are checked here: a number that touches the next name, a fraction with a leading zero, the
//! number of an enum value that does not exist, and required fields that are missing. It is stricter in one: a list of
//! messages must have a colon before it, which is put there first. A byte order mark at the start is skipped, as by
//! protobuf. Comments and strings may hold any bytes ([`crate::strings`]).

mod check;
mod diagnose;
pub(crate) mod positions;
mod scan;
mod spellings;
mod token;
pub(crate) mod visit;
pub(crate) mod write;

use std::path::Path;

use prost_reflect::{DynamicMessage, MessageDescriptor, ReflectMessage};

pub use positions::Positions;
pub use write::{six_digits, to_text};

use crate::{Fault, Position, Result, forks, strings, whole};

/// A message read from a file.
#[derive(Clone, Debug)]
pub struct Parsed<M> {
    /// The message.
    pub message: M,
    /// Where its fields stand in the text.
    pub positions: Positions,
    /// What was upgraded, a line each, for the log.
    pub notices: Vec<String>,
    /// What was ignored, and that the file is of an older format: a line each, for the log's warnings.
    pub warnings: Vec<String>,
}

/// Reads any message from text, as it stands: nothing is upgraded.
///
/// # Errors
/// [`Error::Text`] with the first fault's line and column, what was expected and what was found.
pub fn parse<M: ReflectMessage + Default>(text: &[u8], file: &Path) -> Result<Parsed<M>> {
    let supported = M::default().descriptor();
    if let Ok((message, positions)) = parse_as(text, file, &supported) {
        let message = typed(&message, &positions)?;
        return Ok(Parsed { message, positions, notices: Vec::new(), warnings: Vec::new() });
    }
    let (message, mut positions) = parse_as(text, file, &whole(&supported))?;
    let dropped = forks::dropped(&message);
    positions.refuse(dropped.refused);
    let warnings = match dropped.ignored.is_empty() {
        true => Vec::new(),
        false => {
            let names: Vec<String> = dropped.ignored.into_iter().collect();
            vec![format!(
                "{}: settings of forks that change no result here are ignored: {}",
                file.display(),
                names.join(", ")
            )]
        }
    };
    let message = typed(&message, &positions)?;
    Ok(Parsed { message, positions, notices: Vec::new(), warnings })
}

/// A message of the whole schema as a Rust type, which has the supported fields.
pub(crate) fn typed<M: ReflectMessage + Default>(message: &DynamicMessage, positions: &Positions) -> Result<M> {
    let error = |error| Fault::Syntax(format!("cannot be represented: {error}")).at(positions.start());
    message.transcode_to().map_err(error)
}

/// The same message with every field of the schema, supported or not.
pub(crate) fn untyped(message: &impl ReflectMessage, positions: &Positions) -> Result<DynamicMessage> {
    let mut untyped = DynamicMessage::new(whole(&message.descriptor()));
    let error = |error| Fault::Syntax(format!("cannot be represented: {error}")).at(positions.start());
    untyped.transcode_from(message).map_err(error)?;
    Ok(untyped)
}

/// Reads a message of a type.
pub(crate) fn parse_as(
    text: &[u8],
    file: &Path,
    descriptor: &MessageDescriptor,
) -> Result<(DynamicMessage, Positions)> {
    let text = strings::of_file(text);
    let scan = scan::scan(&text);
    let positions = Positions::new(file, &text, &scan);
    let at = |offset| {
        let (line, column) = positions::Lines::new(&text).place(offset);
        Position { file: file.into(), line, column }
    };

    let spelt = spellings::Spelt::new(&text, &scan, descriptor);
    let offset_in_text = |offset| spelt.offset_in_text(offset);
    let message = DynamicMessage::parse_text_format(descriptor.clone(), &spelt.text)
        .map_err(|error| diagnose::diagnose(&error, offset_in_text, &text, &scan, descriptor, at))?;
    if let Some((offset, why)) = scan.fault {
        return Err(Fault::Syntax(why.into()).at(at(offset)));
    }
    check::check(&message, &positions)?;
    Ok((message, positions))
}

/// The names of the outermost fields of a text, or of the beginning of one.
pub(crate) fn top_level_names(text: &str) -> Vec<String> {
    let scan = scan::scan(text.strip_prefix('\u{feff}').unwrap_or(text));
    let outermost = scan.entries.into_iter().map(|entry| entry.path).filter(|path| !path.contains('.'));
    outermost.map(|path| path.split('[').next().unwrap_or_default().to_owned()).collect()
}
