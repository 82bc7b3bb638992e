//! `highwater.proto` and the structs say the same: names, numbers, types, labels, enumerations, and both tables.
//!
//! The structs are read from their source, because that is where names and signedness are, which the wire does not show;
//! the bytes of samples and of random bodies are checked here and in `roundtrip`.

use std::collections::{BTreeMap, BTreeSet};

use highwater_protocol::api::ApiKey;
use highwater_protocol::error_code::ErrorCode;
use prost_types::DescriptorProto;
use prost_types::field_descriptor_proto::{Label, Type};

use crate::expect::{package, read};
use crate::proto_file::{ProtoFile, is_packed, is_repeated, short, wire_type};
use crate::samples;

/// Field number → how `highwater.proto` would declare it.
type Fields = BTreeMap<u32, String>;

/// The files of `src/messages`.
const MESSAGE_FILES: [&str; 13] = [
    "mod",
    "handshake",
    "metadata",
    "topics",
    "produce",
    "producer_id",
    "list_offsets",
    "read",
    "subscribe",
    "replica",
    "cluster",
    "groups",
    "group_offsets",
];

/// What the structs and enumerations of a source file declare.
#[derive(Default)]
struct Source {
    messages: BTreeMap<String, Fields>,
    enums: BTreeMap<String, BTreeMap<i32, String>>,
}

impl Source {
    /// Reads the structs with `prost::Message` and the enumerations with `prost::Enumeration`.
    fn add(&mut self, text: &str) {
        let mut derive = "";
        let mut attribute = "";
        let mut message: Option<String> = None;
        let mut enumeration: Option<String> = None;
        for line in text.lines().map(str::trim) {
            if line.starts_with("#[derive(") {
                derive = line;
            } else if line.starts_with("#[prost(") {
                attribute = line;
            } else if let Some(rest) = line.strip_prefix("pub struct ") {
                let name = rest.split_once(' ').unwrap().0.to_owned();
                if derive.contains("prost::Message") {
                    self.messages.insert(name.clone(), Fields::new());
                    message = (!rest.ends_with("{}")).then_some(name);
                }
            } else if let Some(rest) = line.strip_prefix("pub enum ") {
                let name = rest.split_once(' ').unwrap().0.to_owned();
                if derive.contains("prost::Enumeration") {
                    self.enums.insert(name.clone(), BTreeMap::new());
                    enumeration = Some(name);
                }
            } else if line == "}" {
                (message, enumeration) = (None, None);
            } else if let (Some(name), Some(field)) = (&message, line.strip_prefix("pub ")) {
                let (tag, declared) = declaration(attribute, field);
                let twice = self.messages.get_mut(name).unwrap().insert(tag, declared);
                assert_eq!(twice, None, "{name} has number {tag} twice");
            } else if let (Some(name), Some((variant, number))) = (&enumeration, line.split_once(" = ")) {
                let number = number.trim_end_matches(',').parse().unwrap();
                let value = format!("{}_{}", screaming(name), screaming(variant));
                self.enums.get_mut(name).unwrap().insert(number, value);
            }
        }
    }

    fn of_the_crate() -> Self {
        let mut source = Self::default();
        for file in MESSAGE_FILES {
            source.add(&read(&format!("src/messages/{file}.rs")));
        }
        source
    }
}

/// The number and the proto declaration of `#[prost(…)] pub name: Type,`.
fn declaration(attribute: &str, field: &str) -> (u32, String) {
    let inside = attribute.trim_start_matches("#[prost(").trim_end_matches(")]");
    let (kind, tag) = inside.rsplit_once(", tag = ").unwrap_or_else(|| panic!("{attribute} {field}"));
    let tag = tag.trim_matches('"').parse().unwrap();
    let (name, rust_type) = field.trim_end_matches(',').split_once(": ").unwrap();
    if let Some(of) = kind.strip_prefix("btree_map = ") {
        return (tag, format!("map<{}> {name}", of.trim_matches('"')));
    }
    let mut words = kind.split(", ");
    let scalar = words.next().unwrap();
    let label = words.next();
    assert!(words.next().is_none(), "{attribute}");
    let declared_type = match scalar.split_once(" = ") {
        Some(("enumeration", of)) => of.trim_matches('"').to_owned(),
        Some(("bytes", _)) => "bytes".to_owned(),
        None if scalar == "message" => {
            let of = rust_type.rsplit(['<', ':']).next().unwrap();
            of.trim_end_matches('>').to_owned()
        }
        None => scalar.to_owned(),
        Some(_) => panic!("{attribute}"),
    };
    let label = match (label, scalar) {
        // A single message is always optional, and not said to be.
        (Some("optional"), "message") | (None, _) => "",
        (Some("optional"), _) => "optional ",
        (Some("repeated"), _) => "repeated ",
        (Some(other), _) => panic!("{attribute}: {other}"),
    };
    (tag, format!("{label}{declared_type} {name}"))
}

fn screaming(name: &str) -> String {
    let mut out = String::new();
    for (at, letter) in name.char_indices() {
        if at > 0 && letter.is_ascii_uppercase() {
            out.push('_');
        }
        out.push(letter.to_ascii_uppercase());
    }
    out
}

fn declared_fields(file: &ProtoFile, message: &DescriptorProto) -> Fields {
    let mut fields = Fields::new();
    for field in &message.field {
        let name = field.name();
        let declared_type = match field.r#type() {
            Type::Message | Type::Enum => short(field.type_name()).to_owned(),
            scalar => scalar.as_str_name().trim_start_matches("TYPE_").to_lowercase(),
        };
        let declared = if file.is_map(message, field) {
            let entry = file.inner(message, field);
            let part =
                |at: usize| entry.field[at].r#type().as_str_name().trim_start_matches("TYPE_").to_lowercase();
            format!("map<{}, {}> {name}", part(0), part(1))
        } else if field.label() == Label::Repeated {
            format!("repeated {declared_type} {name}")
        } else if field.proto3_optional() {
            format!("optional {declared_type} {name}")
        } else {
            format!("{declared_type} {name}")
        };
        fields.insert(field.number().unsigned_abs(), declared);
    }
    fields
}

#[test]
fn every_message_has_the_same_fields_in_both() {
    let file = ProtoFile::load();
    let source = Source::of_the_crate();
    let declared: BTreeMap<String, Fields> = file
        .messages()
        .iter()
        .map(|message| (message.name().to_owned(), declared_fields(&file, message)))
        .collect();
    for (name, fields) in &source.messages {
        assert_eq!(declared.get(name), Some(fields), "{name}: highwater.proto (left) and struct (right)");
    }
    assert_eq!(declared.len(), source.messages.len(), "messages without a struct");
}

#[test]
fn every_source_file_of_messages_is_read() {
    let count = std::fs::read_dir(package().join("src/messages")).unwrap().count();
    assert_eq!(count, MESSAGE_FILES.len(), "a new file of messages must be listed in MESSAGE_FILES");
}

#[test]
fn every_enumeration_has_the_same_values_in_both() {
    let file = ProtoFile::load();
    let mut expected = Source::of_the_crate().enums;
    let api = ApiKey::ALL.iter().map(|api| (i32::from(api.0), format!("API_{}", api.name().to_uppercase())));
    expected.insert("Api".to_owned(), api.chain([(0, "API_UNSPECIFIED".to_owned())]).collect());
    let codes = ErrorCode::ALL
        .iter()
        .map(|code| (code.code() as i32, format!("ERROR_CODE_{}", code.name().to_uppercase())));
    expected.insert("ErrorCode".to_owned(), codes.collect());
    let declared: BTreeMap<String, BTreeMap<i32, String>> = file
        .enums()
        .iter()
        .map(|one| {
            let values = one.value.iter().map(|value| (value.number(), value.name().to_owned()));
            (one.name().to_owned(), values.collect())
        })
        .collect();
    assert_eq!(declared, expected);
}

/// Goes through an encoded message and notes which fields of `highwater.proto` it has.
fn walk(file: &ProtoFile, shape: &DescriptorProto, mut bytes: &[u8], seen: &mut BTreeSet<(String, u32)>) {
    let varint = |bytes: &mut &[u8]| prost::encoding::decode_varint(bytes).unwrap();
    while !bytes.is_empty() {
        let key = varint(&mut bytes);
        let number = (key >> 3) as i32;
        let field = shape
            .field
            .iter()
            .find(|field| field.number() == number)
            .unwrap_or_else(|| panic!("{} has field {number} in the struct only", shape.name()));
        let expected = if is_packed(field) { 2 } else { u64::from(wire_type(field)) };
        assert_eq!(key & 7, expected, "wire type of {}.{}", shape.name(), field.name());
        seen.insert((shape.name().to_owned(), number.unsigned_abs()));
        let length = match expected {
            0 => {
                varint(&mut bytes);
                0
            }
            1 => 8,
            _ => varint(&mut bytes) as usize,
        };
        let (content, rest) = bytes.split_at(length);
        bytes = rest;
        if field.r#type() == Type::Message {
            walk(file, file.inner(shape, field), content, seen);
        }
        assert!(is_repeated(field) || expected != 2 || !content.is_empty(), "{} is empty", field.name());
    }
}

#[test]
fn samples_set_every_field_of_every_message() {
    let file = ProtoFile::load();
    let mut seen = BTreeSet::new();
    let error = samples::error_reply();
    walk(&file, file.message(error.name), &error.bytes, &mut seen);
    for sample in samples::all().iter().flat_map(|api| &api.samples) {
        walk(&file, file.message(sample.name), &sample.bytes, &mut seen);
    }
    for message in file.messages() {
        for field in &message.field {
            let place = (message.name().to_owned(), field.number().unsigned_abs());
            assert!(seen.contains(&place), "no sample sets {}.{}", message.name(), field.name());
        }
    }
}

#[test]
fn a_field_in_one_place_only_is_noticed() {
    let mut source = Source::default();
    source.add(
        "#[derive(prost::Message)]\npub struct Ping {\n#[prost(uint32, tag = \"1\")]\npub count: u32,\n}\n",
    );
    assert_eq!(source.messages["Ping"], Fields::from([(1, "uint32 count".to_owned())]));
    let mut wider = Source::default();
    wider.add(
        "#[derive(prost::Message)]\npub struct Ping {\n#[prost(uint64, tag = \"1\")]\npub count: u64,\n}\n",
    );
    assert_ne!(source.messages, wider.messages);
    let file = ProtoFile::load();
    let ping = file.message("PingRequest");
    assert_ne!(declared_fields(&file, ping), source.messages["Ping"]);
    let unwind = std::panic::catch_unwind(|| walk(&file, ping, &[0x08, 0x01], &mut BTreeSet::new()));
    assert!(unwind.is_err(), "a field that highwater.proto does not have");
}
