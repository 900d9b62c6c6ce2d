//! Any message, written and read back, is the same message.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::path::Path;

use lgm_proto::prost_reflect::{DynamicMessage, FieldDescriptor, Kind, MessageDescriptor, ReflectMessage, Value};
use lgm_proto::{
    NetParameter, SolverParameter, decode_net, encode, parse, strings, to_text, upgrade_net_binary, upgrade_net_text,
    whole,
};
use proptest::prelude::*;

/// Builds any message of a type from a stream of numbers: which fields, how many, which values.
struct Builder<'a> {
    choices: std::iter::Cycle<std::slice::Iter<'a, u64>>,
    /// Fields that may still be set, so that messages end.
    budget: usize,
}

impl Builder<'_> {
    fn choice(&mut self) -> u64 {
        *self.choices.next().unwrap()
    }

    fn message(&mut self, descriptor: MessageDescriptor) -> DynamicMessage {
        let mut message = DynamicMessage::new(descriptor.clone());
        for field in descriptor.fields() {
            let required = field.cardinality() == lgm_proto::prost_reflect::Cardinality::Required;
            if !required && (self.budget == 0 || !self.choice().is_multiple_of(4)) {
                continue;
            }
            self.budget = self.budget.saturating_sub(1);
            let value = if field.is_list() {
                let count = 1 + self.choice() % 3;
                Value::List((0..count).map(|_| self.value(&field)).collect())
            } else {
                self.value(&field)
            };
            message.set_field(&field, value);
        }
        message
    }

    fn value(&mut self, field: &FieldDescriptor) -> Value {
        let bits = self.choice();
        match field.kind() {
            Kind::Bool => Value::Bool(bits.is_multiple_of(2)),
            Kind::Int32 => Value::I32(bits as i32),
            Kind::Int64 => Value::I64(bits as i64),
            Kind::Uint32 => Value::U32(bits as u32),
            Kind::Uint64 => Value::U64(bits),
            Kind::Float => {
                let value = f32::from_bits(bits as u32);
                Value::F32(if value.is_nan() { f32::NAN } else { value })
            }
            Kind::Double => {
                let value = f64::from_bits(bits);
                Value::F64(if value.is_nan() { f64::NAN } else { value })
            }
            Kind::String => Value::String(strings::from_bytes(&bits.to_le_bytes()).into_owned()),
            Kind::Bytes => Value::Bytes(bits.to_le_bytes().to_vec().into()),
            Kind::Enum(known) => {
                let values: Vec<i32> = known.values().map(|value| value.number()).collect();
                Value::EnumNumber(values[bits as usize % values.len()])
            }
            Kind::Message(inner) => Value::Message(self.message(inner)),
            other => unreachable!("no field of the schema is of kind {other:?}"),
        }
    }
}

/// Writes and reads a message of type `M` made from `choices`, and compares the bytes, which tell NaN and -0 apart.
fn round_trip<M: ReflectMessage + Default>(choices: &[u64]) -> Result<(), TestCaseError> {
    let mut builder = Builder { choices: choices.iter().cycle(), budget: 300 };
    let message: M = builder.message(M::default().descriptor()).transcode_to().unwrap();
    let text = to_text(&message);
    let parsed = parse::<M>(text.as_bytes(), Path::new("written.prototxt"));
    let read = parsed.map_err(|error| TestCaseError::fail(format!("{error}\n{text}")))?.message;
    prop_assert_eq!(encode(&read), encode(&message), "{}", text);
    prop_assert_eq!(to_text(&read), text);
    Ok(())
}

/// Upgrades a net made from `choices`, as text and in binary, whole and with some bytes changed. What is upgraded must be
/// a net again.
fn upgraded(choices: &[u64], changes: &[(usize, u8)]) -> Result<(), TestCaseError> {
    let path = Path::new("old.caffemodel");
    let mut builder = Builder { choices: choices.iter().cycle(), budget: 300 };
    let net = builder.message(whole(&NetParameter::default().descriptor()));
    let failed = |error: lgm_proto::Error| TestCaseError::fail(error.to_string());
    if let Ok(upgraded) = upgrade_net_text(to_text(&net).as_bytes(), path) {
        upgrade_net_text(&upgraded.bytes, path).map_err(failed)?;
    }
    let mut bytes = encode(&net);
    for with_changes in [false, true] {
        if with_changes && !bytes.is_empty() {
            let count = bytes.len();
            changes.iter().for_each(|&(at, byte)| bytes[at % count] = byte);
        }
        // A net of nothing but an old field that says nothing becomes an empty file.
        if let Some(upgraded) = upgrade_net_binary(&bytes, path).ok().filter(|upgraded| !upgraded.bytes.is_empty()) {
            decode_net(&upgraded.bytes, path).map_err(failed)?;
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 256, ..ProptestConfig::default() })]

    #[test]
    fn nets(choices in prop::collection::vec(any::<u64>(), 16..400)) {
        round_trip::<NetParameter>(&choices)?;
        let mut builder = Builder { choices: choices.iter().cycle(), budget: 300 };
        let net: NetParameter = builder.message(NetParameter::default().descriptor()).transcode_to().unwrap();
        let net = NetParameter { name: Some(net.name().into()), ..net };
        let read = decode_net(&encode(&net), Path::new("net.caffemodel"));
        prop_assert_eq!(to_text(&read.map_err(|error| TestCaseError::fail(error.to_string()))?), to_text(&net));
    }

    #[test]
    fn solvers(choices in prop::collection::vec(any::<u64>(), 16..400)) {
        round_trip::<SolverParameter>(&choices)?;
    }

    #[test]
    fn upgrades(
        choices in prop::collection::vec(any::<u64>(), 16..400),
        changes in prop::collection::vec((any::<usize>(), any::<u8>()), 1..4),
    ) {
        upgraded(&choices, &changes)?;
    }

    #[test]
    fn no_text_makes_the_reader_panic(text in r#"([a-z_]{1,6}|layer|name|input_dim|[\[\]{}<>:;,'"\\.#\n -]|[0-9ef.x]{1,5}|é){0,40}"#) {
        let _ = parse::<NetParameter>(text.as_bytes(), Path::new("any.prototxt"));
    }

    #[test]
    fn no_bytes_make_the_decoder_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = decode_net(&bytes, Path::new("any.caffemodel"));
        let _ = upgrade_net_binary(&bytes, Path::new("any.caffemodel"));
        let _ = lgm_proto::Weights::decode(&bytes, Path::new("any.caffemodel"));
    }
}
