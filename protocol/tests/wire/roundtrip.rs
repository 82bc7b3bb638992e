//! Random bodies, made after `highwater.proto` field by field, go through the structs and come out as they went in: the
//! structs lose nothing, and encode as the file says.

use highwater_protocol::varint;
use proptest::collection::{btree_map, vec};
use proptest::prelude::*;
use prost::encoding::encode_varint;
use prost_types::field_descriptor_proto::Type;
use prost_types::{DescriptorProto, FieldDescriptorProto};

use crate::proto_file::{ProtoFile, is_packed, is_repeated, wire_type};
use crate::samples::{self, Sample};

/// The canonical encoding of a random value.
type Encoded = BoxedStrategy<Vec<u8>>;

fn varint(value: u64) -> Vec<u8> {
    let mut out = Vec::new();
    encode_varint(value, &mut out);
    out
}

fn key(field: &FieldDescriptorProto, wire_type: u8) -> Vec<u8> {
    varint((u64::from(field.number().unsigned_abs()) << 3) | u64::from(wire_type))
}

fn delimited(content: &[u8]) -> Vec<u8> {
    [varint(content.len() as u64), content.to_vec()].concat()
}

/// A random number, often small, often at a border.
fn number() -> impl Strategy<Value = u64> {
    prop_oneof![Just(0), 0u64..300, any::<u64>(), Just(u64::MAX)]
}

/// The value of one element, without its key.
fn value(file: &ProtoFile, parent: &DescriptorProto, field: &FieldDescriptorProto) -> Encoded {
    match field.r#type() {
        Type::Uint32 => number().prop_map(|n| varint(n & u64::from(u32::MAX))).boxed(),
        Type::Uint64 | Type::Int64 => number().prop_map(varint).boxed(),
        // Negative numbers are as long as 64-bit ones. A value that this version does not know is kept.
        Type::Enum => any::<i32>().prop_map(|n| varint(i64::from(n) as u64)).boxed(),
        Type::Bool => any::<bool>().prop_map(|b| varint(u64::from(b))).boxed(),
        Type::Fixed64 => number().prop_map(|n| n.to_le_bytes().to_vec()).boxed(),
        Type::String => "\\PC{0,12}".prop_map(|s| delimited(s.as_bytes())).boxed(),
        Type::Bytes => vec(any::<u8>(), 0..20).prop_map(|b| delimited(&b)).boxed(),
        Type::Message => message(file, file.inner(parent, field)).prop_map(|m| delimited(&m)).boxed(),
        other => panic!("{} has a type that no message uses yet: {other:?}", field.name()),
    }
}

fn is_default(field: &FieldDescriptorProto, value: &[u8]) -> bool {
    field.r#type() != Type::Message && value.iter().all(|&byte| byte == 0)
        // A string of one NUL is not an empty one.
        && (wire_type(field) != 2 || value.len() == 1)
}

/// Key and value of a field, or nothing where the default is left out.
fn field(file: &ProtoFile, parent: &DescriptorProto, field: &FieldDescriptorProto) -> Encoded {
    let of_key = key(field, if is_packed(field) { 2 } else { wire_type(field) });
    let keyed = move |value: &[u8]| [of_key.as_slice(), value].concat();
    if file.is_map(parent, field) {
        let entry = |(key, value): (String, String)| {
            let part = |tag: u8, text: &str| match text {
                "" => Vec::new(),
                text => [vec![tag << 3 | 2], delimited(text.as_bytes())].concat(),
            };
            delimited(&[part(1, &key), part(2, &value)].concat())
        };
        return btree_map("\\PC{0,6}", "\\PC{0,6}", 0..4)
            .prop_map(move |map| map.into_iter().flat_map(|pair| keyed(&entry(pair))).collect())
            .boxed();
    }
    let one = value(file, parent, field);
    if is_packed(field) {
        return vec(one, 0..5)
            .prop_map(move |all| if all.is_empty() { Vec::new() } else { keyed(&delimited(&all.concat())) })
            .boxed();
    }
    if is_repeated(field) {
        return vec(one, 0..4)
            .prop_map(move |all| all.iter().flat_map(|value| keyed(value)).collect())
            .boxed();
    }
    if field.proto3_optional() || field.r#type() == Type::Message {
        return proptest::option::of(one)
            .prop_map(move |value| value.map_or_else(Vec::new, |value| keyed(&value)))
            .boxed();
    }
    let field = field.clone();
    one.prop_map(move |value| if is_default(&field, &value) { Vec::new() } else { keyed(&value) }).boxed()
}

/// A random message of this shape.
fn message(file: &ProtoFile, shape: &DescriptorProto) -> Encoded {
    let mut fields: Vec<&FieldDescriptorProto> = shape.field.iter().collect();
    fields.sort_by_key(|field| field.number());
    let fields: Vec<Encoded> = fields.into_iter().map(|one| field(file, shape, one)).collect();
    fields.prop_map(|parts| parts.concat()).boxed()
}

fn every_sample() -> Vec<Sample> {
    let mut all = vec![samples::error_reply()];
    all.extend(samples::all().into_iter().flat_map(|api| api.samples));
    all
}

/// Fields as a later version may add them, one of every wire type.
fn unknown_fields() -> impl Strategy<Value = Vec<u8>> {
    let one =
        (0u64..4, 1000u64..2000, number(), vec(any::<u8>(), 0..9)).prop_map(|(kind, tag, number, bytes)| {
            let (wire_type, value) = match kind {
                0 => (0, varint(number)),
                1 => (1, number.to_le_bytes().to_vec()),
                2 => (2, delimited(&bytes)),
                _ => (5, vec![1, 2, 3, 4]),
            };
            [varint(tag << 3 | wire_type), value].concat()
        });
    vec(one, 1..4).prop_map(|all| all.concat())
}

#[test]
fn every_message_comes_back_as_it_went() {
    let file = ProtoFile::load();
    for sample in every_sample() {
        let shape = message(&file, file.message(sample.name));
        proptest!(ProptestConfig::with_cases(200), |(bytes in shape, unknown in unknown_fields())| {
            prop_assert_eq!(&(sample.through_struct)(&bytes), &bytes, "{}", sample.name);
            let extended = [bytes.clone(), unknown].concat();
            prop_assert_eq!(&(sample.through_struct)(&extended), &bytes, "{} with unknown fields", sample.name);
        });
    }
}

proptest! {
    #[test]
    fn varints_come_back(value in prop_oneof![any::<i64>(), -300i64..300], rest in vec(any::<u8>(), 0..4)) {
        let mut bytes = Vec::new();
        varint::put_varint(&mut bytes, value);
        prop_assert_eq!(bytes.len(), varint::varint_length(value));
        bytes.extend_from_slice(&rest);
        let mut input = bytes.as_slice();
        prop_assert_eq!(varint::take_varint(&mut input), Some(value));
        prop_assert_eq!(input, rest);
    }
}
