//! Strings and paths in any bytes.
//!
//! Caffe's strings are bytes: a layer, a blob or a file may be named in Latin-1 or GBK. Rust's are UTF-8. Bytes that are
//! not UTF-8 stand in a string as the characters U+10FF80 to U+10FFFF, the last of a plane for private use: byte b as
//! U+10FF00 + b. Those characters themselves are taken for bytes that are not UTF-8. So any bytes become one string, no
//! two the same, names are equal where their bytes are, and what writes a file or opens one gets the bytes back.
//!
//! HDF5's library takes text alone. Names in its files, such as those of layers in `.caffemodel.h5`, are there with the
//! characters that stand for bytes: read back here, but not known to Caffe.

use std::borrow::Cow;
use std::ffi::OsString;
use std::fmt::Write;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

/// What Windows editors put before UTF-8 text.
const BYTE_ORDER_MARK: &[u8] = b"\xEF\xBB\xBF";

/// What is added to a byte's number for the character that stands for it.
const BASE: u32 = 0x10_FF00;

/// The byte that a character stands for, if it stands for one.
pub(crate) fn byte_of(character: char) -> Option<u8> {
    u8::try_from(u32::from(character).checked_sub(BASE)?).ok().filter(|byte| !byte.is_ascii())
}

fn stands_for_byte(character: char) -> bool {
    byte_of(character).is_some()
}

/// Any bytes as a string.
pub fn from_bytes(bytes: &[u8]) -> Cow<'_, str> {
    match std::str::from_utf8(bytes) {
        Ok(text) if !text.contains(stands_for_byte) => return Cow::Borrowed(text),
        _ => {}
    }
    let mut text = String::with_capacity(bytes.len());
    let push = |text: &mut String, bytes: &[u8]| {
        text.extend(bytes.iter().filter_map(|&byte| char::from_u32(BASE | u32::from(byte))));
    };
    for chunk in bytes.utf8_chunks() {
        for character in chunk.valid().chars() {
            match stands_for_byte(character) {
                true => push(&mut text, character.encode_utf8(&mut [0; 4]).as_bytes()),
                false => text.push(character),
            }
        }
        push(&mut text, chunk.invalid());
    }
    Cow::Owned(text)
}

/// The bytes of a string: what [`from_bytes`] made it of.
pub fn to_bytes(text: &str) -> Cow<'_, [u8]> {
    if !text.contains(stands_for_byte) {
        return Cow::Borrowed(text.as_bytes());
    }
    let mut bytes = Vec::with_capacity(text.len());
    for character in text.chars() {
        match byte_of(character) {
            Some(byte) => bytes.push(byte),
            None => bytes.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes()),
        }
    }
    Cow::Owned(bytes)
}

/// The contents of a text file as a string, without the byte order mark that it may begin with.
pub fn of_file(bytes: &[u8]) -> Cow<'_, str> {
    from_bytes(bytes.strip_prefix(BYTE_ORDER_MARK).unwrap_or(bytes))
}

/// The path that a string names. Whatever opens or makes a file that a prototxt or a list names asks this.
pub fn to_path(text: &str) -> PathBuf {
    OsString::from_vec(to_bytes(text).into_owned()).into()
}

/// A path, or a part of one, as a string: that which [`to_path`] makes it of.
pub fn from_path(path: impl AsRef<Path>) -> String {
    from_bytes(path.as_ref().as_os_str().as_bytes()).into_owned()
}

/// A text to be read by people: with `\351`, as in a prototxt, for the byte 0xE9.
pub fn readable(text: &str) -> Cow<'_, str> {
    if !text.contains(stands_for_byte) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len());
    for character in text.chars() {
        push_readable(&mut shown, character);
    }
    Cow::Owned(shown)
}

/// Adds a character, or the escape of the byte that it stands for.
pub(crate) fn push_readable(text: &mut String, character: char) {
    match byte_of(character) {
        // Writing to a String cannot fail.
        Some(byte) => drop(write!(text, "\\{byte:03o}")),
        None => text.push(character),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn bytes_that_are_not_utf8_are_kept_and_shown_in_octal() {
        let name = from_bytes(b"caf\xe9 \xe2\x82");
        assert_eq!(name, "caf\u{10ffe9} \u{10ffe2}\u{10ff82}");
        assert_eq!(readable(&name), "caf\\351 \\342\\202");
        assert_eq!(to_path(&name).as_os_str().as_bytes(), b"caf\xe9 \xe2\x82");
        assert_eq!(from_path(to_path(&name)), name);
        assert!(matches!(from_bytes("café".as_bytes()), Cow::Borrowed("café")));
        assert!(matches!(to_bytes("café"), Cow::Borrowed(_)));
        assert_eq!(of_file(b"\xef\xbb\xbfa"), "a");
    }

    proptest! {
        /// Pieces that make sequences of UTF-8, whole and broken, likely; the characters that stand for bytes among them.
        #[test]
        fn any_bytes_come_back_and_no_two_are_one_string(
            pieces in prop::collection::vec(prop_oneof![
                any::<u8>().prop_map(|byte| vec![byte]),
                any::<char>().prop_map(|c| c.to_string().into_bytes()),
                (0x10_ff70_u32..0x11_0000).prop_map(|c| char::from_u32(c).unwrap().to_string().into_bytes()),
                Just(b"\xf4\x8f\xbe".to_vec()),
            ], 0..12),
        ) {
            let bytes = pieces.concat();
            let text = from_bytes(&bytes);
            prop_assert_eq!(to_bytes(&text), &bytes[..]);
            if let Ok(same) = std::str::from_utf8(&bytes) {
                prop_assert!(text == same || same.contains(stands_for_byte));
            }
            prop_assert!(!readable(&text).contains(stands_for_byte));
        }
    }
}
