//! Protobuf's wire format, as far as it is needed below the level of messages.

use std::borrow::Cow;

use prost::Message;
use prost::encoding::{WireType, decode_varint, encode_varint};
use prost_reflect::{Kind, MessageDescriptor, ReflectMessage};

use crate::error::WireFault;
use crate::{BlobProto, LayerParameter, strings};

const NET_LAYER: u64 = 100;
const LAYER_TYPE: u64 = 2;

/// Layer types of forks, the field of a layer that is theirs, and the numbers that forks gave it beside ours; those are
/// other fields' in our schema, or other forks'.
const FORK_FIELDS: [(&[u8], &str, &[u64]); 24] = [
    (b"SpatialTransformer", "st_param", &[147]),
    (b"CenterLoss", "center_loss_param", &[148]),
    (b"ROIPooling", "roi_pooling_param", &[143, 147, 150, 154, 201, 204, 208]),
    (b"PSROIPooling", "psroi_pooling_param", &[148, 149, 163, 207, 220, 240, 10001]),
    (b"PriorBox", "prior_box_param", &[165, 211, 212]),
    (b"DetectionOutput", "detection_output_param", &[169, 211, 219]),
    (b"MultiBoxLoss", "multibox_loss_param", &[171, 215]),
    (b"DetectionEvaluate", "detection_evaluate_param", &[161, 168]),
    (b"Normalize", "norm_param", &[134, 204, 209]),
    (b"Normalize", "normalize_param", &[170, 214]),
    (b"Proposal", "proposal_param", &[201, 212, 219]),
    (b"FrcnnProposal", "proposal_param", &[201, 212, 219]),
    (b"SmoothL1Loss", "smooth_l1_loss_param", &[148, 149, 202, 209, 212]),
    (b"MarginInnerProduct", "margin_inner_product_param", &[147, 232]),
    (b"LabelSpecificAdd", "label_specific_add_param", &[209, 218, 241]),
    (b"BoxAnnotatorOHEM", "box_annotator_ohem_param", &[150, 152, 210, 10000]),
    (b"CtcLoss", "ctc_loss_param", &[148, 157]),
    (b"ShuffleChannel", "shuffle_channel_param", &[154]),
    (b"Reorg", "reorg_param", &[149, 197, 203]),
    (b"Interp", "interp_param", &[143, 150, 153, 163, 217]),
    (b"Upsample", "upsample_param", &[137, 147, 150, 152, 177]),
    (b"BN", "bn_param", &[137, 139, 152, 160, 200, 201]),
    (b"Squeeze", "squeeze_param", &[241]),
    (b"L1Loss", "l1_loss_param", &[151]),
];

/// One field of a message: its number, its wire type, and its bytes with and without the key.
struct Field<'a> {
    number: u64,
    wire: WireType,
    /// Key, length and content.
    whole: &'a [u8],
    /// For a length-delimited field the content without its length, else the value.
    content: &'a [u8],
}

/// Cuts a message into fields. Ends with an error at the first that does not fit.
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

    fn field(&mut self) -> Result<Field<'a>, WireFault> {
        let start = self.at;
        let key = self.varint().ok_or(WireFault::NoField(start))?;
        let wire = WireType::try_from(key & 7).map_err(|_| WireFault::NoField(start))?;
        let number = key >> 3;
        if number == 0 {
            return Err(WireFault::NoField(start));
        }
        let mut content_start = self.at;
        let length = match wire {
            WireType::Varint => {
                self.varint().ok_or(WireFault::Number(start))?;
                self.at.saturating_sub(content_start)
            }
            WireType::ThirtyTwoBit => 4,
            WireType::SixtyFourBit => 8,
            WireType::LengthDelimited => {
                let length = self.varint().ok_or(WireFault::Length(start))?;
                content_start = self.at;
                usize::try_from(length).unwrap_or(usize::MAX)
            }
            WireType::StartGroup | WireType::EndGroup => {
                return Err(WireFault::Group(start));
            }
        };
        let left = self.bytes.len().saturating_sub(content_start);
        if length > left {
            return Err(WireFault::Short { at: start, number, length, left });
        }
        self.at = content_start.saturating_add(length);
        Ok(Field { number, wire, whole: &self.bytes[start..self.at], content: &self.bytes[content_start..self.at] })
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<Field<'a>, WireFault>;

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

/// What is wrong with bytes that are no message: with its outermost fields, or else what was found.
pub(crate) fn fault(bytes: &[u8], found: prost::DecodeError) -> WireFault {
    Fields::new(bytes).find_map(Result::err).unwrap_or(WireFault::Content(found))
}

/// A message whose strings are UTF-8, as [`strings`] has them; as it is if they were, or where it is malformed.
pub(crate) fn with_utf8<'a>(bytes: &'a [u8], message: &MessageDescriptor) -> Cow<'a, [u8]> {
    let utf8 = |bytes: &[u8]| match strings::from_bytes(bytes) {
        Cow::Borrowed(_) => None,
        Cow::Owned(text) => Some(text.into_bytes()),
    };
    change_strings(bytes, message, &utf8, MAX_DEPTH).map_or(Cow::Borrowed(bytes), Cow::Owned)
}

/// The inverse of [`with_utf8`], of a message as prost encodes it.
pub(crate) fn with_own_bytes(bytes: Vec<u8>, message: &MessageDescriptor) -> Vec<u8> {
    let own = |bytes: &[u8]| match strings::to_bytes(std::str::from_utf8(bytes).ok()?) {
        Cow::Borrowed(_) => None,
        Cow::Owned(bytes) => Some(bytes),
    };
    change_strings(&bytes, message, &own, MAX_DEPTH).unwrap_or(bytes)
}

/// Nesting beyond this is no message of Caffe's.
const MAX_DEPTH: usize = 32;

/// A message with other strings; `None` if none is changed.
fn change_strings(
    bytes: &[u8],
    message: &MessageDescriptor,
    change: &dyn Fn(&[u8]) -> Option<Vec<u8>>,
    depth: usize,
) -> Option<Vec<u8>> {
    let depth = depth.checked_sub(1)?;
    let (mut out, mut copied) = (Vec::new(), 0);
    let mut fields = Fields::new(bytes);
    while let Some(Ok(field)) = fields.next() {
        if field.wire != WireType::LengthDelimited {
            continue;
        }
        let known = u32::try_from(field.number).ok().and_then(|number| message.get_field(number));
        let changed = match known.map(|known| known.kind()) {
            Some(Kind::String) => change(field.content),
            // Most of a file, and no strings.
            Some(Kind::Message(inner)) if inner.name() == "BlobProto" => None,
            Some(Kind::Message(inner)) => change_strings(field.content, &inner, change, depth),
            _ => None,
        };
        if let Some(changed) = changed {
            let start = fields.at.saturating_sub(field.whole.len());
            out.extend_from_slice(bytes.get(copied..start).unwrap_or_default());
            put_delimited(&mut out, field.number, &changed);
            copied = fields.at;
        }
    }
    if copied == 0 {
        return None;
    }
    out.extend_from_slice(bytes.get(copied..).unwrap_or_default());
    Some(out)
}

/// A net in which the fields of forks' layers have our numbers. Nets without them, and bytes that are no net, come back as
/// they are.
pub(crate) fn settle_fork_fields(bytes: &[u8]) -> Cow<'_, [u8]> {
    settle(bytes).map_or(Cow::Borrowed(bytes), Cow::Owned)
}

fn settle(bytes: &[u8]) -> Option<Vec<u8>> {
    let fields: Vec<Field> = Fields::new(bytes).collect::<Result<_, _>>().ok()?;
    let is_layer = |field: &Field| field.number == NET_LAYER && field.wire == WireType::LengthDelimited;
    let renumberings: Vec<_> =
        fields.iter().map(|field| if is_layer(field) { fork_fields(field.content) } else { Vec::new() }).collect();
    if renumberings.iter().all(Vec::is_empty) {
        return None;
    }
    let mut out = Vec::with_capacity(bytes.len());
    for (field, renumbering) in fields.iter().zip(&renumberings) {
        match renumbering[..] {
            [] => out.extend_from_slice(field.whole),
            _ => put_delimited(&mut out, NET_LAYER, &renumber(field.content, renumbering)?),
        }
    }
    Some(out)
}

/// For a layer of one of the forks' types that has the type's field under another number than ours: both numbers.
fn fork_fields(layer: &[u8]) -> Vec<(u64, u64)> {
    let fields = || Fields::new(layer).map_while(Result::ok);
    let Some(kind) = fields().filter(|field| field.number == LAYER_TYPE).last() else { return Vec::new() };
    let known = LayerParameter::default().descriptor();
    let of_kind = FORK_FIELDS.into_iter().filter(|(name, ..)| *name == kind.content);
    let numbers = of_kind.filter_map(|(_, field, numbers)| Some((known.get_field_by_name(field)?.number(), numbers)));
    let moves = numbers.flat_map(|(to, numbers)| numbers.iter().map(move |&from| (from, u64::from(to))));
    moves.filter(|&(from, _)| fields().any(|field| field.number == from)).collect()
}

fn renumber(layer: &[u8], numbers: &[(u64, u64)]) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(layer.len());
    for field in Fields::new(layer) {
        let field = field.ok()?;
        match numbers.iter().find(|(from, _)| *from == field.number) {
            Some(&(_, to)) if field.wire == WireType::LengthDelimited => put_delimited(&mut out, to, field.content),
            _ => out.extend_from_slice(field.whole),
        }
    }
    Some(out)
}

/// The layers of a net, as they are stored.
pub(crate) fn layers(net: &[u8]) -> Result<Vec<&[u8]>, WireFault> {
    let fields = Fields::new(net).filter(|field| field.as_ref().map_or(true, |field| field.number == NET_LAYER));
    fields.map(|field| Ok(field?.content)).collect()
}

/// Adds a layer to a net.
pub(crate) fn put_layer(net: &mut Vec<u8>, layer: &[u8]) {
    put_delimited(net, NET_LAYER, layer);
}

/// A level of a net's layers: which fields of a message hold the next level, and which are arrays of weights.
struct Level {
    inner: &'static [(u64, Level)],
    blobs: Option<u64>,
}

/// Where a net's arrays of weights are: in `layer`, in `layers`, and in their first-generation half.
const NET: Level = Level {
    inner: &[
        (NET_LAYER, Level { inner: &[], blobs: Some(LAYER_BLOBS) }),
        (2, Level { inner: &[(1, Level { inner: &[], blobs: Some(50) })], blobs: Some(6) }),
    ],
    blobs: None,
};

const LAYER_BLOBS: u64 = 7;

/// A net whose arrays of weights are replaced by their numbers (in the field `num`), and the arrays as they are stored.
pub(crate) fn without_blobs(net: &[u8]) -> Result<(Vec<u8>, Vec<&[u8]>), WireFault> {
    let mut blobs = Vec::new();
    Ok((take_blobs(net, &NET, &mut blobs)?, blobs))
}

fn take_blobs<'a>(message: &'a [u8], level: &Level, blobs: &mut Vec<&'a [u8]>) -> Result<Vec<u8>, WireFault> {
    let mut out = Vec::new();
    for field in Fields::new(message) {
        let field = field?;
        let inner = level.inner.iter().find(|(number, _)| *number == field.number);
        match (field.wire, inner) {
            (WireType::LengthDelimited, Some((number, level))) => {
                put_delimited(&mut out, *number, &take_blobs(field.content, level, blobs)?);
            }
            (WireType::LengthDelimited, None) if level.blobs == Some(field.number) => {
                let number = BlobProto { num: i32::try_from(blobs.len()).ok(), ..BlobProto::default() };
                put_delimited(&mut out, field.number, &number.encode_to_vec());
                blobs.push(field.content);
            }
            _ => out.extend_from_slice(field.whole),
        }
    }
    Ok(out)
}

/// A layer of [`without_blobs`] with its arrays in place of their numbers.
pub(crate) fn with_blobs(layer: &[u8], blobs: &[&[u8]]) -> Result<Vec<u8>, WireFault> {
    let mut out = Vec::new();
    for field in Fields::new(layer) {
        let field = field?;
        let number = || usize::try_from(BlobProto::decode(field.content).ok()?.num?).ok();
        match (field.number == LAYER_BLOBS).then(number).flatten().and_then(|number| blobs.get(number)) {
            Some(blob) => put_delimited(&mut out, LAYER_BLOBS, blob),
            None => out.extend_from_slice(field.whole),
        }
    }
    Ok(out)
}

fn put_delimited(out: &mut Vec<u8>, number: u64, content: &[u8]) {
    encode_varint(number << 3 | WireType::LengthDelimited as u64, out);
    encode_varint(content.len() as u64, out);
    out.extend_from_slice(content);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fields_of_forks_are_those_of_a_layer() {
        let layer = LayerParameter::default().descriptor();
        for (_, field, numbers) in FORK_FIELDS {
            let number = u64::from(layer.get_field_by_name(field).unwrap().number());
            assert!(!numbers.contains(&number), "{field}");
        }
    }
}
