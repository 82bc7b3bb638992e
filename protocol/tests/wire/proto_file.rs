//! `proto/highwater.proto`, compiled.

use prost_types::field_descriptor_proto::{Label, Type};
use prost_types::{DescriptorProto, EnumDescriptorProto, FieldDescriptorProto, FileDescriptorProto};

use crate::expect::package;

/// The compiled file.
pub(crate) struct ProtoFile(FileDescriptorProto);

impl ProtoFile {
    pub(crate) fn load() -> Self {
        let compiled = protox::compile(["highwater.proto"], [package().join("proto")]).unwrap();
        let [file] = compiled.file.try_into().unwrap();
        Self(file)
    }

    pub(crate) fn messages(&self) -> &[DescriptorProto] {
        &self.0.message_type
    }

    pub(crate) fn enums(&self) -> &[EnumDescriptorProto] {
        &self.0.enum_type
    }

    pub(crate) fn message(&self, name: &str) -> &DescriptorProto {
        self.messages()
            .iter()
            .find(|message| message.name() == name)
            .unwrap_or_else(|| panic!("highwater.proto has no message {name}"))
    }

    /// The message that a field of `parent` holds: one of the file, or the entry of a map.
    pub(crate) fn inner<'a>(
        &'a self,
        parent: &'a DescriptorProto,
        field: &FieldDescriptorProto,
    ) -> &'a DescriptorProto {
        let name = short(field.type_name());
        parent.nested_type.iter().find(|nested| nested.name() == name).unwrap_or_else(|| self.message(name))
    }

    pub(crate) fn is_map(&self, parent: &DescriptorProto, field: &FieldDescriptorProto) -> bool {
        field.r#type() == Type::Message
            && self.inner(parent, field).options.as_ref().is_some_and(prost_types::MessageOptions::map_entry)
    }
}

/// The last part of a qualified name.
pub(crate) fn short(name: &str) -> &str {
    name.rsplit('.').next().unwrap()
}

/// How a field of this type is encoded on the wire, packing aside.
pub(crate) fn wire_type(field: &FieldDescriptorProto) -> u8 {
    match field.r#type() {
        Type::Uint32 | Type::Uint64 | Type::Int32 | Type::Int64 | Type::Bool | Type::Enum => 0,
        Type::Fixed64 => 1,
        Type::String | Type::Bytes | Type::Message => 2,
        other => panic!("{} has a type that no message uses yet: {other:?}", field.name()),
    }
}

pub(crate) fn is_repeated(field: &FieldDescriptorProto) -> bool {
    field.label() == Label::Repeated
}

/// Repeated numbers share one key and one length.
pub(crate) fn is_packed(field: &FieldDescriptorProto) -> bool {
    is_repeated(field) && wire_type(field) != 2
}
