//! A request's body becomes JSON: from JSON, YAML or Kubernetes' protobuf, within bounds, never panicking.
//!
//! Bytes come from anyone who can connect, so size, depth and number of values are bounded while reading, before
//! memory or stack is spent (FAULTS 39 to 41). Fields given twice are reported, for strict field validation.

use std::fmt::{self, Write as _};

use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

use super::protobuf;

/// Bytes of a request body, as in Kubernetes.
pub const MAX_BODY_BYTES: usize = 3 << 20;
/// Levels of nesting. No built-in type comes near it.
pub const MAX_DEPTH: usize = 100;
/// Levels of nesting of a YAML body: its parser takes some 15 KB of stack a level.
const MAX_YAML_DEPTH: usize = 50;
/// Values (scalars, lists and maps) of one body; a value costs 32 bytes of memory, and can be 2 bytes of text.
const MAX_VALUES: usize = 400_000;
/// Events that YAML aliases may replay.
const MAX_REPLAYED: usize = 20_000;

/// The encoding of a body, from its `Content-Type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoding {
    /// `application/json`
    Json,
    /// `application/yaml`
    Yaml,
    /// `application/vnd.kubernetes.protobuf`
    Protobuf,
}

/// Bounds of a body.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes as sent.
    pub bytes: usize,
    /// Levels of nesting, at most [`MAX_DEPTH`].
    pub depth: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            bytes: MAX_BODY_BYTES,
            depth: MAX_DEPTH,
        }
    }
}

/// A decoded body.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Decoded {
    /// The body. Of a protobuf body, with `apiVersion` and `kind` from its envelope.
    pub value: Value,
    /// Paths of fields that were given more than once (the last one counts).
    pub duplicates: Vec<String>,
}

/// Why a body was refused.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum DecodeError {
    /// More bytes than allowed: HTTP 413.
    #[error("Request entity too large: limit is {0}")]
    TooLarge(usize),
    /// Not what its content type says, or beyond the bounds: HTTP 400.
    #[error("{0}")]
    Malformed(String),
}

/// Decodes a body.
pub fn decode(bytes: &[u8], encoding: Encoding, limits: Limits) -> Result<Decoded, DecodeError> {
    if bytes.len() > limits.bytes {
        return Err(DecodeError::TooLarge(limits.bytes));
    }
    let depth = limits.depth.min(MAX_DEPTH);
    match encoding {
        Encoding::Json => json(bytes, depth),
        Encoding::Yaml => yaml(bytes, depth),
        Encoding::Protobuf => protobuf::decode(bytes, depth).map(|value| Decoded {
            value,
            duplicates: Vec::new(),
        }),
    }
    .map_err(DecodeError::Malformed)
}

fn json(bytes: &[u8], depth: usize) -> Result<Decoded, String> {
    let mut reading = Reading::new(depth);
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let value = Node { reading: &mut reading }
        .deserialize(&mut deserializer)
        .map_err(|error| error.to_string())?;
    deserializer.end().map_err(|error| error.to_string())?;
    Ok(Decoded {
        value,
        duplicates: reading.duplicates,
    })
}

fn yaml(bytes: &[u8], depth: usize) -> Result<Decoded, String> {
    let text = std::str::from_utf8(bytes).map_err(|error| format!("yaml: not UTF-8: {error}"))?;
    let depth = depth.min(MAX_YAML_DEPTH);
    let mut budget = serde_saphyr::budget::Budget::default();
    budget.max_depth = depth;
    budget.flow_nesting_limit = depth;
    budget.max_documents = 1;
    budget.max_nodes = MAX_VALUES;
    budget.max_events = 2 * MAX_VALUES;
    budget.max_aliases = MAX_REPLAYED;
    let mut options = serde_saphyr::Options::default();
    options.budget = Some(budget);
    options.with_snippet = false;
    options.duplicate_keys = serde_saphyr::options::DuplicateKeyPolicy::PassThrough;
    options.alias_limits.max_total_replayed_events = MAX_REPLAYED;
    options.alias_limits.max_replay_stack_depth = depth;
    let mut reading = Reading::new(depth);
    let value = serde_saphyr::with_deserializer_from_str_with_options(text, options, |deserializer| {
        Node { reading: &mut reading }.deserialize(deserializer)
    })
    .map_err(|error| format!("yaml: {error}"))?;
    Ok(Decoded {
        value,
        duplicates: reading.duplicates,
    })
}

/// What is counted over one body.
struct Reading {
    duplicates: Vec<String>,
    /// Path of the value being read.
    path: String,
    values: usize,
    depth: usize,
    max_depth: usize,
}

impl Reading {
    fn new(max_depth: usize) -> Self {
        Self {
            duplicates: Vec::new(),
            path: String::new(),
            values: 0,
            depth: 0,
            max_depth,
        }
    }

    fn enter<E: serde::de::Error>(&mut self) -> Result<(), E> {
        self.depth += 1;
        if self.depth > self.max_depth {
            return Err(E::custom(format_args!("exceeded max depth of {}", self.max_depth)));
        }
        Ok(())
    }
}

/// Reads one value.
struct Node<'a> {
    reading: &'a mut Reading,
}

impl<'de> DeserializeSeed<'de> for Node<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        self.reading.values += 1;
        if self.reading.values > MAX_VALUES {
            return Err(D::Error::custom(format_args!("more than {MAX_VALUES} values")));
        }
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Node<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Value, E> {
        let number = Number::from_f64(value).ok_or_else(|| E::custom(format_args!("{value} is not a JSON number")))?;
        Ok(Value::Number(number))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let Node { reading } = self;
        reading.enter()?;
        let parent = reading.path.len();
        let mut list = Vec::new();
        loop {
            // Writing to a String cannot fail.
            let _ = write!(reading.path, "[{}]", list.len());
            let item = items.next_element_seed(Node { reading })?;
            reading.path.truncate(parent);
            match item {
                Some(item) => list.push(item),
                None => break,
            }
        }
        reading.depth -= 1;
        Ok(Value::Array(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let Node { reading } = self;
        reading.enter()?;
        let parent = reading.path.len();
        let mut map = Map::new();
        while let Some(key) = entries.next_key::<String>()? {
            if parent > 0 {
                reading.path.push('.');
            }
            reading.path.push_str(&key);
            if map.contains_key(&key) && reading.duplicates.len() < super::fields::MAX_REPORTED {
                reading.duplicates.push(reading.path.clone());
            }
            let value = entries.next_value_seed(Node { reading })?;
            reading.path.truncate(parent);
            map.insert(key, value);
        }
        reading.depth -= 1;
        Ok(Value::Object(map))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn decode_all(bytes: &[u8]) -> [Result<Decoded, DecodeError>; 3] {
        [Encoding::Json, Encoding::Yaml, Encoding::Protobuf].map(|encoding| decode(bytes, encoding, Limits::default()))
    }

    #[test]
    fn json_and_yaml_give_the_same() {
        let expected = json!({"a": [1, -2.5, "x", true, null], "b": {"c": "d"}});
        let text = expected.to_string();
        assert_eq!(
            decode(text.as_bytes(), Encoding::Json, Limits::default())
                .unwrap()
                .value,
            expected
        );
        let text = "a: [1, -2.5, x, true, null]\nb:\n  c: d\n";
        assert_eq!(
            decode(text.as_bytes(), Encoding::Yaml, Limits::default())
                .unwrap()
                .value,
            expected
        );
    }

    #[test]
    fn duplicates_are_reported_with_their_path() {
        let text = br#"{"spec": {"a": [{"b": 1, "b": 2}], "c": 1, "c": 2}}"#;
        let decoded = decode(text, Encoding::Json, Limits::default()).unwrap();
        assert_eq!(decoded.duplicates, ["spec.a[0].b", "spec.c"]);
        assert_eq!(decoded.value["spec"]["a"][0]["b"], 2);
        let decoded = decode(b"a: 1\na: 2\n", Encoding::Yaml, Limits::default()).unwrap();
        assert_eq!(
            (decoded.value, decoded.duplicates),
            (json!({"a": 2}), vec!["a".to_owned()])
        );
    }

    #[test]
    fn great_depth_is_refused_on_a_small_stack() {
        let deep =
            [("[", "]"), ("{\"a\":", "}")].map(|(open, close)| open.repeat(100_000) + "1" + &close.repeat(100_000));
        let block: String = (0..1000).map(|depth| format!("{}a:\n", " ".repeat(depth))).collect();
        std::thread::Builder::new()
            .stack_size(1 << 20)
            .spawn(move || {
                for text in deep {
                    for result in decode_all(text.as_bytes()) {
                        assert!(matches!(result, Err(DecodeError::Malformed(_))), "{result:?}");
                    }
                }
                let result = decode(block.as_bytes(), Encoding::Yaml, Limits::default());
                assert!(matches!(result, Err(DecodeError::Malformed(_))));
            })
            .unwrap()
            .join()
            .unwrap();
    }

    #[test]
    fn alias_bombs_are_refused() {
        let mut bomb = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
        for level in 1..12 {
            let aliases = vec![format!("*a{}", level - 1); 10].join(", ");
            bomb.push_str(&format!("a{level}: &a{level} [{aliases}]\n"));
        }
        let result = decode(bomb.as_bytes(), Encoding::Yaml, Limits::default());
        assert!(matches!(result, Err(DecodeError::Malformed(_))), "{result:?}");
    }

    #[test]
    fn size_and_number_of_values_are_bounded() {
        let limits = Limits {
            bytes: 10,
            ..Limits::default()
        };
        assert_eq!(
            decode(&[b' '; 11], Encoding::Json, limits),
            Err(DecodeError::TooLarge(10))
        );
        let many = format!("[{}0]", "0,".repeat(MAX_VALUES));
        assert!(matches!(
            decode(many.as_bytes(), Encoding::Json, Limits::default()),
            Err(DecodeError::Malformed(_))
        ));
    }

    #[test]
    fn malformed_bodies_are_refused() {
        for text in [&b"{"[..], b"{} {}", b"\xff", b"{\"a\": \"\xff\"}", b"", b"nul"] {
            assert!(matches!(
                decode(text, Encoding::Json, Limits::default()),
                Err(DecodeError::Malformed(_))
            ));
        }
        for text in [&b"a: [\n"[..], b"a: b\n---\nc: d\n", b"\xff", b"a: *nowhere"] {
            let result = decode(text, Encoding::Yaml, Limits::default());
            assert!(matches!(result, Err(DecodeError::Malformed(_))), "{text:?} {result:?}");
        }
    }

    proptest! {
        #[test]
        fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = decode_all(&bytes);
            let _ = decode_all(&[b"k8s\0", &bytes[..]].concat());
        }

        #[test]
        fn random_text_never_panics(text in "[\\[\\]{}:,&*a!\\-\"'| \n0-9]{0,80}") {
            let _ = decode_all(text.as_bytes());
        }
    }
}
