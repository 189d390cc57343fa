//! OpenAPI v2 in protobuf: gnostic's `openapi_v2.Document`.
//!
//! Written from the JSON form, one path or definition at a time; only the fields that our documents use. Extensions are
//! YAML text, for which JSON does. Spec: `openapiv2/OpenAPIv2.proto` of google/gnostic.

use serde_json::Value;

/// A document that is being written.
pub(super) struct Document {
    head: Message,
    paths: Message,
    definitions: Message,
}

impl Document {
    /// An empty one.
    pub fn new(title: &str, version: &str) -> Self {
        let mut info = Message::default();
        info.text(1, title);
        info.text(2, version);
        let mut head = Message::default();
        head.text(1, "2.0");
        head.message(2, &info);
        Self {
            head,
            paths: Message::default(),
            definitions: Message::default(),
        }
    }

    /// Adds a path (`Paths.path`).
    pub fn add_path(&mut self, name: &str, item: &Value) {
        self.paths.named(2, name, &path_item(item));
    }

    /// Adds a type (`Definitions.additional_properties`).
    pub fn add_definition(&mut self, name: &str, value: &Value) {
        self.definitions.named(1, name, &schema(value));
    }

    /// The encoded document.
    pub fn finish(self) -> Vec<u8> {
        let mut out = self.head;
        out.message(8, &self.paths);
        out.message(9, &self.definitions);
        out.0
    }
}

/// An encoded message.
#[derive(Default)]
struct Message(Vec<u8>);

impl Message {
    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    fn bytes(&mut self, number: u32, bytes: &[u8]) {
        self.varint(u64::from(number) << 3 | 2);
        self.varint(bytes.len() as u64);
        self.0.extend_from_slice(bytes);
    }

    fn message(&mut self, number: u32, inner: &Self) {
        self.bytes(number, &inner.0);
    }

    fn text(&mut self, number: u32, text: &str) {
        self.bytes(number, text.as_bytes());
    }

    /// Text, if there is any.
    fn text_of(&mut self, number: u32, value: &Value) {
        if let Some(text) = value.as_str() {
            self.text(number, text);
        }
    }

    fn texts_of(&mut self, number: u32, value: &Value) {
        for item in value.as_array().into_iter().flatten() {
            self.text_of(number, item);
        }
    }

    fn flag_of(&mut self, number: u32, value: &Value) {
        if *value == true {
            self.varint(u64::from(number) << 3);
            self.varint(1);
        }
    }

    /// A pair of name and value, as gnostic's `Named…` have it.
    fn named(&mut self, number: u32, name: &str, value: &Self) {
        let mut pair = Self::default();
        pair.text(1, name);
        pair.message(2, value);
        self.message(number, &pair);
    }

    /// `x-…` as `NamedAny` with the value in YAML.
    fn extensions(&mut self, number: u32, of: &Value) {
        for (name, value) in of.as_object().into_iter().flatten() {
            if name.starts_with("x-") {
                let mut any = Self::default();
                any.text(2, &value.to_string());
                self.named(number, name, &any);
            }
        }
    }
}

/// `inner` as field `number` of a message of its own: how gnostic writes a choice.
fn wrapped(number: u32, inner: &Message) -> Message {
    let mut outer = Message::default();
    outer.message(number, inner);
    outer
}

fn schema(value: &Value) -> Message {
    let mut out = Message::default();
    out.text_of(1, &value["$ref"]);
    out.text_of(2, &value["format"]);
    out.text_of(4, &value["description"]);
    out.texts_of(19, &value["required"]);
    if value["additionalProperties"].is_object() {
        out.message(21, &wrapped(1, &schema(&value["additionalProperties"])));
    }
    if let Some(name) = value["type"].as_str() {
        let mut kind = Message::default();
        kind.text(1, name);
        out.message(22, &kind);
    }
    if value["items"].is_object() {
        out.message(23, &wrapped(1, &schema(&value["items"])));
    }
    if let Some(fields) = value["properties"].as_object() {
        let mut properties = Message::default();
        for (name, field) in fields {
            properties.named(1, name, &schema(field));
        }
        out.message(25, &properties);
    }
    out.extensions(31, value);
    out
}

fn path_item(value: &Value) -> Message {
    let mut out = Message::default();
    for (number, method) in [(2, "get"), (3, "put"), (4, "post"), (5, "delete"), (8, "patch")] {
        if value[method].is_object() {
            out.message(number, &operation(&value[method]));
        }
    }
    parameters(&mut out, 9, &value["parameters"]);
    out
}

fn operation(value: &Value) -> Message {
    let mut out = Message::default();
    out.texts_of(1, &value["tags"]);
    out.text_of(3, &value["description"]);
    out.text_of(5, &value["operationId"]);
    out.texts_of(6, &value["produces"]);
    out.texts_of(7, &value["consumes"]);
    parameters(&mut out, 8, &value["parameters"]);
    let mut responses = Message::default();
    for (code, response) in value["responses"].as_object().into_iter().flatten() {
        let mut one = Message::default();
        one.text_of(1, &response["description"]);
        if response["schema"].is_object() {
            one.message(2, &wrapped(1, &schema(&response["schema"])));
        }
        responses.named(1, code, &wrapped(1, &one));
    }
    out.message(9, &responses);
    out.extensions(13, value);
    out
}

/// `ParametersItem`s: a `Parameter` in the body, the query or the path.
fn parameters(out: &mut Message, number: u32, list: &Value) {
    for value in list.as_array().into_iter().flatten() {
        let parameter = match value["in"].as_str() {
            Some("body") => wrapped(1, &body_parameter(value)),
            Some("path") => wrapped(2, &wrapped(4, &path_parameter(value))),
            _ => wrapped(2, &wrapped(3, &query_parameter(value))),
        };
        out.message(number, &wrapped(1, &parameter));
    }
}

fn body_parameter(value: &Value) -> Message {
    let mut out = Message::default();
    out.text_of(2, &value["name"]);
    out.text_of(3, &value["in"]);
    out.flag_of(4, &value["required"]);
    out.message(5, &schema(&value["schema"]));
    out
}

fn query_parameter(value: &Value) -> Message {
    let mut out = common_parameter(value);
    out.text_of(6, &value["type"]);
    out.flag_of(20, &value["uniqueItems"]);
    out
}

fn path_parameter(value: &Value) -> Message {
    let mut out = common_parameter(value);
    out.text_of(5, &value["type"]);
    out.flag_of(19, &value["uniqueItems"]);
    out
}

fn common_parameter(value: &Value) -> Message {
    let mut out = Message::default();
    out.flag_of(1, &value["required"]);
    out.text_of(2, &value["in"]);
    out.text_of(3, &value["description"]);
    out.text_of(4, &value["name"]);
    out
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_schema_is_encoded_as_the_proto_file_says() {
        let value = json!({"type": "array", "items": {"$ref": "r"}, "x-a": ["b"]});
        let expected = [
            &[0xb2, 0x01, 7, 0x0a, 5][..],
            b"array",
            &[0xba, 0x01, 5, 0x0a, 3, 0x0a, 1],
            b"r",
            &[0xfa, 0x01, 14, 0x0a, 3],
            b"x-a",
            &[0x12, 7, 0x12, 5],
            b"[\"b\"]",
        ];
        assert_eq!(schema(&value).0, expected.concat());
    }

    #[test]
    fn long_lengths_take_more_bytes() {
        let mut message = Message::default();
        message.text(4, &"a".repeat(300));
        assert_eq!(message.0[..3], [0x22, 0xac, 0x02]);
        assert_eq!(message.0.len(), 303);
    }
}
