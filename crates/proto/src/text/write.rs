//! Messages as text, in the style of protobuf's `DebugString`.

use std::fmt::Write;

use prost_reflect::{DynamicMessage, Kind, ReflectMessage, Value};

use crate::strings;

/// Any message as prototxt: one field a line, in the order of the field numbers, nested messages indented by two.
///
/// The text is what protobuf's C++ library writes, so files of both can be compared line by line: floats in the six
/// digits that suffice for most and nine where they do not, strings with C escapes and octal bytes beyond ASCII.
/// Reading it back gives the same message.
pub fn to_text(message: &impl ReflectMessage) -> String {
    let mut text = String::new();
    write_message(&mut text, &message.transcode_to_dynamic(), 0);
    text
}

fn write_message(text: &mut String, message: &DynamicMessage, depth: usize) {
    for (field, value) in message.fields() {
        let values = match value {
            Value::List(values) => values.as_slice(),
            single => std::slice::from_ref(single),
        };
        for value in values {
            for _ in 0..depth {
                text.push_str("  ");
            }
            text.push_str(field.name());
            if let Value::Message(inner) = value {
                text.push_str(" {\n");
                write_message(text, inner, depth + 1);
                for _ in 0..depth {
                    text.push_str("  ");
                }
                text.push_str("}\n");
            } else {
                text.push_str(": ");
                write_scalar(text, value, &field.kind());
                text.push('\n');
            }
        }
    }
}

fn write_scalar(text: &mut String, value: &Value, kind: &Kind) {
    // Writing to a String cannot fail.
    let _ = match value {
        Value::Bool(v) => write!(text, "{v}"),
        Value::I32(v) => write!(text, "{v}"),
        Value::I64(v) => write!(text, "{v}"),
        Value::U32(v) => write!(text, "{v}"),
        Value::U64(v) => write!(text, "{v}"),
        Value::F32(v) => write!(text, "{}", float_text(*v)),
        Value::F64(v) => write!(text, "{}", double_text(*v)),
        Value::String(v) => write!(text, "\"{}\"", escaped(&strings::to_bytes(v))),
        Value::Bytes(v) => write!(text, "\"{}\"", escaped(v)),
        Value::EnumNumber(v) => match kind.as_enum().and_then(|known| known.get_value(*v)) {
            Some(known) => write!(text, "{}", known.name()),
            None => write!(text, "{v}"),
        },
        // Lists and messages are written by the caller, and the schema has no maps.
        Value::Message(_) | Value::List(_) | Value::Map(_) => Ok(()),
    };
}

/// Six significant digits if they read back as the same value, else nine.
fn float_text(value: f32) -> String {
    let short = general(f64::from(value), 6);
    if value.is_nan() || short.parse() == Ok(value) { short } else { general(f64::from(value), 9) }
}

/// Fifteen significant digits if they read back as the same value, else seventeen.
fn double_text(value: f64) -> String {
    let short = general(value, 15);
    if value.is_nan() || short.parse() == Ok(value) { short } else { general(value, 17) }
}

/// A number as C's `%.{digits}g` prints it; with 6 digits, as a C++ stream does.
pub(crate) fn general(value: f64, digits: usize) -> String {
    if value.is_nan() {
        return "nan".into();
    }
    if value.is_infinite() {
        return if value > 0.0 { "inf".into() } else { "-inf".into() };
    }
    let scientific = format!("{value:.*e}", digits - 1);
    let (mantissa, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    let last = digits as i32 - 1;
    if (-4..=last).contains(&exponent) {
        return trimmed(&format!("{value:.*}", (last - exponent) as usize)).to_owned();
    }
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{}e{sign}{:02}", trimmed(mantissa), exponent.abs())
}

/// A number as C++ streams print it: six significant digits.
pub fn six_digits(value: impl Into<f64>) -> String {
    general(value.into(), 6)
}

/// A decimal without the zeros at the end of its fraction.
fn trimmed(decimal: &str) -> &str {
    if decimal.contains('.') { decimal.trim_end_matches('0').trim_end_matches('.') } else { decimal }
}

pub(super) fn escaped(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for &byte in bytes {
        match byte {
            b'\n' => text.push_str("\\n"),
            b'\r' => text.push_str("\\r"),
            b'\t' => text.push_str("\\t"),
            b'"' | b'\'' | b'\\' => {
                text.push('\\');
                text.push(char::from(byte));
            }
            b' '..=b'~' => text.push(char::from(byte)),
            _ => {
                let _ = write!(text, "\\{byte:03o}");
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floats_are_written_as_printf_does() {
        let cases = [
            (0.1, "0.1"),
            (1.0, "1"),
            (100_000.0, "100000"),
            (1_000_000.0, "1e+06"),
            (0.0001, "0.0001"),
            (1e-5, "1e-05"),
            (1.0 / 3.0, "0.333333343"),
            (-0.0, "-0"),
            (16_777_217.0, "16777216"),
            (f32::MAX, "3.40282347e+38"),
            (f32::INFINITY, "inf"),
            (f32::NEG_INFINITY, "-inf"),
            (f32::NAN, "nan"),
        ];
        for (value, text) in cases {
            assert_eq!(float_text(value), text, "{value:?}");
        }
        assert_eq!(double_text(0.1), "0.1");
        assert_eq!(double_text(1.0 / 3.0), "0.33333333333333331");
    }

    #[test]
    fn strings_are_escaped_as_c_does() {
        assert_eq!(escaped("a\"b'c\\d\n\t\r\u{1}é~".as_bytes()), "a\\\"b\\'c\\\\d\\n\\t\\r\\001\\303\\251~");
    }
}
