//! Protobuf's wire format, as far as it is needed below the level of messages.

use std::borrow::Cow;

use prost::encoding::{WireType, decode_varint, encode_varint};

const NET_LAYER: u64 = 100;
const LAYER_TYPE: u64 = 2;

/// The layer types of the L-GM fork whose parameters sit at numbers that BVLC Caffe gave to others: the type, the
/// number in the fork's files, the number in our schema.
const FORK_FIELDS: [(&[u8], u64, u64); 2] = [(b"SpatialTransformer", 147, 5000), (b"CenterLoss", 148, 5001)];

/// One field of a message: its number, its wire type, and its bytes with and without the key.
struct Field<'a> {
    number: u64,
    wire: WireType,
    /// Key, length and content.
    whole: &'a [u8],
    /// For a length-delimited field the content without its length, else the value.
    content: &'a [u8],
}

/// Cuts a message into fields. Ends with an error text at the first that does not fit.
struct Fields<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Fields<'a> {
    fn new(bytes: &'a [u8]) -> Self {
        Fields { bytes, at: 0 }
    }

    fn varint(&mut self) -> Option<u64> {
        let mut rest = self.bytes.get(self.at..)?;
        let before = rest.len();
        let value = decode_varint(&mut rest).ok()?;
        self.at = self.at.saturating_add(before.saturating_sub(rest.len()));
        Some(value)
    }

    fn field(&mut self) -> Result<Field<'a>, String> {
        let start = self.at;
        let broken = |what: &str| format!("at byte {start}, {what}");
        let key = self.varint().ok_or_else(|| broken("no field begins"))?;
        let wire = WireType::try_from(key & 7).map_err(|_| broken("no field begins"))?;
        let number = key >> 3;
        if number == 0 {
            return Err(broken("no field begins"));
        }
        let mut content_start = self.at;
        let length = match wire {
            WireType::Varint => {
                self.varint().ok_or_else(|| broken("a number does not end"))?;
                self.at.saturating_sub(content_start)
            }
            WireType::ThirtyTwoBit => 4,
            WireType::SixtyFourBit => 8,
            WireType::LengthDelimited => {
                let length = self.varint().ok_or_else(|| broken("a length does not end"))?;
                content_start = self.at;
                usize::try_from(length).unwrap_or(usize::MAX)
            }
            WireType::StartGroup | WireType::EndGroup => {
                return Err(broken("a group begins or ends, which no message of Caffe's has"));
            }
        };
        let left = self.bytes.len().saturating_sub(content_start);
        if length > left {
            return Err(broken(&format!("field {number} needs {length} bytes, but only {left} are left")));
        }
        self.at = content_start.saturating_add(length);
        Ok(Field { number, wire, whole: &self.bytes[start..self.at], content: &self.bytes[content_start..self.at] })
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<Field<'a>, String>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.at >= self.bytes.len() {
            return None;
        }
        let field = self.field();
        if field.is_err() {
            self.at = self.bytes.len();
        }
        Some(field)
    }
}

/// Number and wire type of the outermost fields of a message of which `head` is the beginning, up to the first that is
/// malformed. The last one may go on behind the head.
pub(crate) fn outline(head: &[u8]) -> Vec<(u64, WireType)> {
    let mut fields = Fields::new(head);
    let mut found = Vec::new();
    loop {
        let at = fields.at;
        match fields.next() {
            None => return found,
            Some(Ok(field)) => found.push((field.number, field.wire)),
            Some(Err(_)) => {
                fields.at = at;
                let mut key = || Some((fields.varint()?, fields.varint()?));
                match key().and_then(|(key, _)| Some((key >> 3, WireType::try_from(key & 7).ok()?))) {
                    Some((number, WireType::LengthDelimited)) if number > 0 => {
                        found.push((number, WireType::LengthDelimited))
                    }
                    _ => {}
                }
                return found;
            }
        }
    }
}

/// What is wrong with the outermost fields of a message, if anything is.
pub(super) fn fault(bytes: &[u8]) -> Option<String> {
    Fields::new(bytes).find_map(Result::err)
}

/// A net in which the fork's two fields have our numbers. Nets without them, and bytes that are no net, come back as
/// they are.
pub(super) fn settle_fork_fields(bytes: &[u8]) -> Cow<'_, [u8]> {
    settle(bytes).map_or(Cow::Borrowed(bytes), Cow::Owned)
}

fn settle(bytes: &[u8]) -> Option<Vec<u8>> {
    let fields: Vec<Field> = Fields::new(bytes).collect::<Result<_, _>>().ok()?;
    let is_layer = |field: &Field| field.number == NET_LAYER && field.wire == WireType::LengthDelimited;
    let renumbering = |field: &Field| if is_layer(field) { fork_field(field.content) } else { None };
    if !fields.iter().any(|field| renumbering(field).is_some()) {
        return None;
    }
    let mut out = Vec::with_capacity(bytes.len());
    for field in &fields {
        match renumbering(field) {
            Some((from, to)) => {
                let layer = renumber(field.content, from, to)?;
                put_delimited(&mut out, NET_LAYER, &layer);
            }
            None => out.extend_from_slice(field.whole),
        }
    }
    Some(out)
}

/// For a layer of one of the fork's types that has the type's field: that field's number in the fork, and ours.
fn fork_field(layer: &[u8]) -> Option<(u64, u64)> {
    let fields = || Fields::new(layer).map_while(Result::ok);
    let kind = fields().filter(|field| field.number == LAYER_TYPE).last()?.content;
    let (_, from, to) = FORK_FIELDS.into_iter().find(|(name, _, _)| *name == kind)?;
    fields().any(|field| field.number == from).then_some((from, to))
}

fn renumber(layer: &[u8], from: u64, to: u64) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(layer.len());
    for field in Fields::new(layer) {
        let field = field.ok()?;
        if field.number == from && field.wire == WireType::LengthDelimited {
            put_delimited(&mut out, to, field.content);
        } else {
            out.extend_from_slice(field.whole);
        }
    }
    Some(out)
}

fn put_delimited(out: &mut Vec<u8>, number: u64, content: &[u8]) {
    encode_varint(number << 3 | WireType::LengthDelimited as u64, out);
    encode_varint(content.len() as u64, out);
    out.extend_from_slice(content);
}
