//! Spellings that protobuf's text format does not have, changed in the text before it is parsed.
//!
//! | found | parsed as | where |
//! | --- | --- | --- |
//! | `shape [ { … } ]` | `shape: [ { … } ]` | a list of messages; protobuf's C++ parser takes it so |
//! | `margin_mul: 0.1` | `margin_mul: { value: 0.1 }` | a number for a ParamParameter, as older nets of the L-GM fork have it |
//! | `metric: "l2"` | `metric: L2` | ClassDistance's metric, as older nets of the L-GM fork have it |
//! | `name: "caf\351"` | `name: "caf\364\217\277\251"` | a string that is not UTF-8, escaped or not, as [`strings`] has it |

use std::borrow::Cow;

use prost_reflect::{DynamicMessage, Kind, MessageDescriptor, ReflectMessage};

use super::diagnose::resolve;
use super::scan::Scan;
use super::token::{self, Tokens};
use super::write::escaped;
use crate::{Datum, strings};

/// A part of the text, and what is parsed in its place.
#[derive(Debug)]
struct Change {
    start: usize,
    end: usize,
    with: Cow<'static, str>,
}

/// A text as it is parsed, and how its offsets are those of the text.
#[derive(Debug)]
pub(super) struct Spelt<'a> {
    /// The text to parse.
    pub text: Cow<'a, str>,
    /// In the order of the text, apart from each other.
    changes: Vec<Change>,
}

impl<'a> Spelt<'a> {
    /// Replaces the other spellings in a text of this message.
    pub fn new(text: &'a str, scan: &Scan, root: &MessageDescriptor) -> Self {
        let colons = scan.bare_lists.iter().filter(|(path, _)| resolve(root, path).is_some());
        let colons = colons.map(|&(_, at)| Change { start: at, end: at, with: ":".into() });
        let mut changes: Vec<Change> = colons.collect();
        let any_bytes = text.contains(|c| c == '\\' || strings::byte_of(c).is_some());
        for entry in &scan.entries {
            let (parent, name) = entry.path.rsplit_once('.').unwrap_or(("", &entry.path));
            let parent = if parent.is_empty() { Some(root.clone()) } else { resolve(root, parent) };
            let name = name.split('[').next().unwrap_or(name);
            let Some(field) = parent.and_then(|parent| parent.get_field_by_name(name)) else { continue };
            let Some((kind, end)) = value(text, entry.value) else { continue };
            let start = entry.value;
            match (field.kind(), kind) {
                (Kind::Message(of), token::Kind::Number) if of.name() == "ParamParameter" => {
                    changes.push(Change { start, end: start, with: "{ value: ".into() });
                    changes.push(Change { start: end, end, with: " }".into() });
                }
                (Kind::Enum(known), token::Kind::Quoted)
                    if known.full_name() == "caffe.ClassDistanceParameter.Metric" =>
                {
                    let name = text.get(start.saturating_add(1)..end.saturating_sub(1)).unwrap_or_default();
                    if let Some(value) = known.values().find(|value| value.name().eq_ignore_ascii_case(name)) {
                        changes.push(Change { start, end, with: value.name().to_owned().into() });
                    }
                }
                (kind @ (Kind::String | Kind::Bytes), token::Kind::Quoted) if any_bytes => {
                    let end = end_of_quoted(text, end);
                    if let Some(with) = text.get(start..end).and_then(|quoted| respelt(quoted, &kind)) {
                        changes.push(Change { start, end, with: with.into() });
                    }
                }
                _ => {}
            }
        }
        changes.sort_by_key(|change| change.start);
        let (mut whole, mut done) = (String::new(), 0);
        for change in &changes {
            whole.push_str(text.get(done..change.start).unwrap_or_default());
            whole.push_str(&change.with);
            done = change.end;
        }
        let text = match changes.is_empty() {
            true => Cow::Borrowed(text),
            false => Cow::Owned(whole + text.get(done..).unwrap_or_default()),
        };
        Spelt { text, changes }
    }

    /// The offset in the text of an offset in what is parsed.
    pub fn offset_in_text(&self, offset: usize) -> usize {
        // Bytes that were added and taken out before the offset.
        let (mut added, mut removed) = (0_usize, 0_usize);
        for change in &self.changes {
            let start = change.start.saturating_sub(removed).saturating_add(added);
            if offset <= start {
                break;
            }
            if offset < start.saturating_add(change.with.len()) {
                return change.start;
            }
            added = added.saturating_add(change.with.len());
            removed = removed.saturating_add(change.end.saturating_sub(change.start));
        }
        offset.saturating_add(removed).saturating_sub(added)
    }
}

/// The end of the last of the quoted strings that follow one which ends at `end`: together they are one value.
fn end_of_quoted(text: &str, end: usize) -> usize {
    let more = Tokens::new(text.get(end..).unwrap_or_default()).take_while(|token| token.kind == token::Kind::Quoted);
    more.last().map_or(end, |last| end.saturating_add(last.end))
}

/// A value in quotes for a field of this kind, if its bytes are not what the parser would take it for.
fn respelt(quoted: &str, kind: &Kind) -> Option<String> {
    // Bytes beyond ASCII become escapes, but for one behind a backslash, which is none and stays for the parser to refuse.
    let (mut in_ascii, mut characters, mut stand_in) = (String::from("data: "), quoted.chars(), false);
    while let Some(character) = characters.next() {
        stand_in |= strings::byte_of(character).is_some();
        strings::push_readable(&mut in_ascii, character);
        if character == '\\' {
            in_ascii.extend(characters.next());
        }
    }
    let datum = DynamicMessage::parse_text_format(Datum::default().descriptor(), &in_ascii).ok()?;
    let data = datum.get_field_by_name("data")?;
    let bytes = data.as_bytes()?;
    let wanted = match (kind, strings::from_bytes(bytes)) {
        (Kind::String, Cow::Owned(text)) => text.into_bytes(),
        (Kind::Bytes, _) if stand_in => bytes.to_vec(),
        _ => return None,
    };
    Some(format!("\"{}\"", escaped(&wanted)))
}

/// The kind and the end of the value at an offset; a sign belongs to its number.
fn value(text: &str, start: usize) -> Option<(token::Kind, usize)> {
    let mut tokens = Tokens::new(text.get(start..)?);
    let first = tokens.next()?;
    let token = if first.kind == token::Kind::Symbol(b'-') { tokens.next()? } else { first };
    Some((token.kind, start.saturating_add(token.end)))
}
