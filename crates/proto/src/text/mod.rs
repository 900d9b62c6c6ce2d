//! Protobuf's text format: prototxt in and out.
//!
//! Text is accepted and refused as protobuf's C++ `TextFormat` does. prost-reflect parses; it is more lenient than C++
//! in four ways, which are checked here: a number that touches the next name, a fraction with a leading zero, the
//! number of an enum value that does not exist, and required fields that are missing. It is stricter in one: a list of
//! messages must have a colon before it, which is put there first. Bytes that are not UTF-8, as
//! found in old comments, are read as U+FFFD.

mod check;
mod diagnose;
mod positions;
mod scan;
mod token;
mod write;

use std::borrow::Cow;
use std::fs;
use std::path::Path;

use prost_reflect::{DynamicMessage, ReflectMessage};

pub use positions::Positions;
pub use write::{general, to_text};

use crate::upgrade::{upgrade_net, upgrade_solver};
use crate::{Error, NetParameter, Position, Result, SolverParameter};

/// A message read from text.
#[derive(Clone, Debug)]
pub struct Parsed<M> {
    /// What the text says.
    pub message: M,
    /// Where it says it.
    pub positions: Positions,
    /// What was changed to bring an older file up to date, a sentence each, for the log.
    pub notices: Vec<String>,
}

/// Reads any message from text, as it stands: nothing is upgraded.
///
/// # Errors
/// [`Error::Text`] with the first fault's line and column, what was expected and what was found.
pub fn parse<M: ReflectMessage + Default>(text: &[u8], file: &Path) -> Result<Parsed<M>> {
    let text = String::from_utf8_lossy(text);
    let scan = scan::scan(&text);
    let positions = Positions::new(file, &text, &scan);
    let descriptor = M::default().descriptor();
    let at = |offset| {
        let (line, column) = positions::Lines::new(&text).place(offset);
        Position { file: file.into(), line, column }
    };

    let is_message = |path: &str| diagnose::resolve(&descriptor, path).is_some();
    let colons: Vec<usize> = scan.bare_lists.iter().filter(|(path, _)| is_message(path)).map(|list| list.1).collect();
    let whole = with_colons(&text, &colons);
    let offset_in_text = |offset: usize| {
        let before = colons.iter().enumerate().take_while(|(inserted, colon)| *colon + inserted < offset);
        offset - before.count()
    };
    let message = DynamicMessage::parse_text_format(descriptor.clone(), &whole)
        .map_err(|error| diagnose::diagnose(&error, offset_in_text, &text, &scan, &descriptor, at))?;
    if let Some((offset, why)) = scan.fault {
        return Err(Error::Text { at: at(offset), what: why.into() });
    }
    check::check(&message, &positions)?;
    let message = message
        .transcode_to()
        .map_err(|error| Error::Text { at: positions.start(), what: format!("cannot be represented: {error}") })?;
    Ok(Parsed { message, positions, notices: Vec::new() })
}

/// A text with a colon put in at each of the offsets, which ascend.
fn with_colons<'a>(text: &'a str, offsets: &[usize]) -> Cow<'a, str> {
    let (mut whole, mut done) = (String::new(), 0);
    for &offset in offsets {
        whole.push_str(&text[done..offset]);
        whole.push(':');
        done = offset;
    }
    match done {
        0 => Cow::Borrowed(text),
        _ => Cow::Owned(whole + &text[done..]),
    }
}

/// Reads a net from text and brings it up to date.
///
/// # Errors
/// [`Error::Text`]: malformed text, or an older net that cannot be upgraded.
pub fn parse_net(text: &[u8], file: &Path) -> Result<Parsed<NetParameter>> {
    let mut net: Parsed<NetParameter> = parse(text, file)?;
    net.notices = upgrade_net(&mut net.message, &mut net.positions)?;
    Ok(net)
}

/// Reads a solver from text and brings it up to date; see [`upgrade_solver`] for what the file's name does.
///
/// # Errors
/// [`Error::Text`]: malformed text, or two fields that contradict each other.
pub fn parse_solver(text: &[u8], file: &Path) -> Result<Parsed<SolverParameter>> {
    let mut solver: Parsed<SolverParameter> = parse(text, file)?;
    solver.notices = upgrade_solver(&mut solver.message, &solver.positions)?;
    Ok(solver)
}

/// Reads a net's prototxt and brings it up to date.
///
/// # Errors
/// [`Error::Io`], or as [`parse_net`].
pub fn read_net(path: impl AsRef<Path>) -> Result<Parsed<NetParameter>> {
    parse_net(&read(path.as_ref())?, path.as_ref())
}

/// Reads a solver's prototxt and brings it up to date.
///
/// # Errors
/// [`Error::Io`], or as [`parse_solver`].
pub fn read_solver(path: impl AsRef<Path>) -> Result<Parsed<SolverParameter>> {
    parse_solver(&read(path.as_ref())?, path.as_ref())
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).map_err(Error::io(path, "read"))
}
