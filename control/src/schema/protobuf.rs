//! Kubernetes' protobuf bodies become JSON through the type table.
//!
//! A body is `k8s\0` followed by `runtime.Unknown`: the apiVersion and kind, and the message itself. Go encodes zero
//! values of plain fields, which its JSON omits; they are dropped here by the same rule, except where an explicit zero
//! means something (`*` in the table). Wire format: protobuf.dev/programming-guides/encoding.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value};

use super::types::{Field, Kind, Type, by_name, type_for};

const MAGIC: &[u8] = b"k8s\0";

/// Decodes an envelope and its message.
pub(super) fn decode(bytes: &[u8], max_depth: usize) -> Result<Value, String> {
    let body = bytes
        .strip_prefix(MAGIC)
        .ok_or("protobuf: the body does not begin with \"k8s\\0\"")?;
    let envelope = Envelope::read(body)?;
    if !envelope.content_encoding.is_empty() {
        return Err(format!(
            "protobuf: content encoding {:?} is not supported",
            envelope.content_encoding
        ));
    }
    if envelope.content_type == "application/json" {
        return raw_json(envelope.raw);
    }
    let (group, version) = envelope
        .api_version
        .split_once('/')
        .unwrap_or(("", envelope.api_version));
    let unknown = || {
        format!(
            "no kind {:?} is registered for version {:?}",
            envelope.kind, envelope.api_version
        )
    };
    let ty = type_for(group, version, envelope.kind)
        .and_then(by_name)
        .ok_or_else(unknown)?;
    let mut object = Map::new();
    message(ty, 0, envelope.raw, &mut object, max_depth)?;
    object.insert("apiVersion".into(), envelope.api_version.into());
    object.insert("kind".into(), envelope.kind.into());
    Ok(Value::Object(object))
}

/// `runtime.Unknown`.
#[derive(Default)]
struct Envelope<'a> {
    api_version: &'a str,
    kind: &'a str,
    raw: &'a [u8],
    content_encoding: &'a str,
    content_type: &'a str,
}

impl<'a> Envelope<'a> {
    fn read(bytes: &'a [u8]) -> Result<Self, String> {
        let mut envelope = Envelope::default();
        let mut reader = Reader { rest: bytes };
        while let Some((number, wire)) = reader.key()? {
            match (number, wire) {
                (1, Wire::Length) => {
                    let mut meta = Reader { rest: reader.bytes()? };
                    while let Some((number, wire)) = meta.key()? {
                        match (number, wire) {
                            (1, Wire::Length) => envelope.api_version = meta.text()?,
                            (2, Wire::Length) => envelope.kind = meta.text()?,
                            _ => meta.skip(wire)?,
                        }
                    }
                }
                (2, Wire::Length) => envelope.raw = reader.bytes()?,
                (3, Wire::Length) => envelope.content_encoding = reader.text()?,
                (4, Wire::Length) => envelope.content_type = reader.text()?,
                _ => reader.skip(wire)?,
            }
        }
        Ok(envelope)
    }
}

/// Reads the fields of `ty` (those inlined by the message of number `outer`, if not 0) into `object`.
fn message(ty: &Type, outer: u16, bytes: &[u8], object: &mut Map<String, Value>, depth: usize) -> Result<(), String> {
    let depth = depth.checked_sub(1).ok_or("protobuf: nested too deeply")?;
    let mut reader = Reader { rest: bytes };
    while let Some((number, wire)) = reader.key()? {
        let of_number = |field: &&Field| field.outer == outer && u32::from(field.tag) == number && number != 0;
        if let Some(field) = ty.fields.iter().find(of_number) {
            read_field(ty, field, wire, &mut reader, object, depth)?;
        } else if outer == 0
            && wire == Wire::Length
            && let Some(field) = ty
                .fields
                .iter()
                .find(|field| number != 0 && u32::from(field.outer) == number)
        {
            message(ty, field.outer, reader.bytes()?, object, depth)?;
        } else {
            reader.skip(wire)?;
        }
    }
    Ok(())
}

fn read_field(
    ty: &Type,
    field: &Field,
    wire: Wire,
    reader: &mut Reader<'_>,
    object: &mut Map<String, Value>,
    depth: usize,
) -> Result<(), String> {
    let place = |error: String| format!("protobuf: {}.{}: {error}", ty.name, field.name);
    match &field.kind {
        Kind::List(item) => {
            let list = object.entry(field.name).or_insert_with(|| Value::Array(Vec::new()));
            let Value::Array(list) = list else { return Ok(()) };
            if wire == Wire::Length && matches!(**item, Kind::Int32 | Kind::Int64 | Kind::Bool) {
                let mut packed = Reader {
                    rest: reader.bytes().map_err(place)?,
                };
                while !packed.rest.is_empty() {
                    list.push(value(item, Wire::Varint, &mut packed, depth).map_err(place)?);
                }
            } else {
                list.push(value(item, wire, reader, depth).map_err(place)?);
            }
        }
        Kind::Map(item) => {
            let (key, item) = map_entry(item, reader.bytes().map_err(place)?, depth).map_err(place)?;
            let map = object.entry(field.name).or_insert_with(|| Value::Object(Map::new()));
            if let Value::Object(map) = map {
                map.insert(key, item);
            }
        }
        kind => {
            let value = value(kind, wire, reader, depth).map_err(place)?;
            if field.required || field.pointer || !is_zero(&value) {
                object.insert(field.name.to_owned(), value);
            }
        }
    }
    Ok(())
}

/// What Go's `omitempty` omits. Empty messages stay: they may be pointers to an empty struct (`emptyDir: {}`).
fn is_zero(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(set) => !set,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        _ => false,
    }
}

fn map_entry(kind: &Kind, bytes: &[u8], depth: usize) -> Result<(String, Value), String> {
    let mut key = String::new();
    let mut item = None;
    let mut reader = Reader { rest: bytes };
    while let Some((number, wire)) = reader.key()? {
        match (number, wire) {
            (1, Wire::Length) => key = reader.text()?.to_owned(),
            (2, Wire::Length) if matches!(kind, Kind::List(_)) => {
                item = Some(wrapped_list(kind, reader.bytes()?, depth)?)
            }
            (2, wire) => item = Some(value(kind, wire, &mut reader, depth)?),
            _ => reader.skip(wire)?,
        }
    }
    Ok((key, item.unwrap_or_else(|| zero(kind))))
}

/// A list as a map's value is a message with one repeated field (`ExtraValue`).
fn wrapped_list(kind: &Kind, bytes: &[u8], depth: usize) -> Result<Value, String> {
    let Kind::List(item) = kind else { return Ok(Value::Null) };
    let mut list = Vec::new();
    let mut reader = Reader { rest: bytes };
    while let Some((number, wire)) = reader.key()? {
        if number == 1 {
            list.push(value(item, wire, &mut reader, depth)?);
        } else {
            reader.skip(wire)?;
        }
    }
    Ok(Value::Array(list))
}

fn zero(kind: &Kind) -> Value {
    match kind {
        Kind::String | Kind::Bytes => "".into(),
        Kind::Bool => false.into(),
        Kind::Int32 | Kind::Int64 | Kind::IntOrString => 0.into(),
        Kind::Double => 0.0.into(),
        Kind::Quantity => "0".into(),
        Kind::Time | Kind::MicroTime | Kind::Raw => Value::Null,
        Kind::List(_) => Value::Array(Vec::new()),
        Kind::FieldsV1 | Kind::Object(_) | Kind::Map(_) => Value::Object(Map::new()),
    }
}

/// One value of a singular kind.
fn value(kind: &Kind, wire: Wire, reader: &mut Reader<'_>, depth: usize) -> Result<Value, String> {
    match (kind, wire) {
        (Kind::Bool, Wire::Varint) => Ok((reader.varint()? != 0).into()),
        (Kind::Int32, Wire::Varint) => Ok((reader.varint()? as i32).into()),
        (Kind::Int64, Wire::Varint) => Ok((reader.varint()? as i64).into()),
        (Kind::Double, Wire::Fixed64) => Ok(f64::from_le_bytes(reader.array()?).into()),
        (Kind::String, Wire::Length) => Ok(reader.text()?.into()),
        (Kind::Bytes, Wire::Length) => Ok(STANDARD.encode(reader.bytes()?).into()),
        (Kind::Quantity, Wire::Length) => {
            let text = text_field(reader.bytes()?)?;
            Ok(if text.is_empty() { "0".into() } else { text.into() })
        }
        (Kind::Raw, Wire::Length) => raw_json(first_bytes(reader.bytes()?)?),
        (Kind::FieldsV1, Wire::Length) => raw_json(first_bytes(reader.bytes()?)?),
        (Kind::IntOrString, Wire::Length) => int_or_string(reader.bytes()?),
        (Kind::Time, Wire::Length) => time(reader.bytes()?, false),
        (Kind::MicroTime, Wire::Length) => time(reader.bytes()?, true),
        (Kind::Object(id), Wire::Length) => {
            let mut object = Map::new();
            message(id.get(), 0, reader.bytes()?, &mut object, depth)?;
            Ok(Value::Object(object))
        }
        (kind, wire) => Err(format!("wire type {wire:?} does not fit {kind:?}")),
    }
}

fn raw_json(bytes: &[u8]) -> Result<Value, String> {
    if bytes.is_empty() {
        return Ok(Value::Null);
    }
    serde_json::from_slice(bytes).map_err(|error| format!("embedded JSON: {error}"))
}

/// Field 1 of a message, as bytes (RawExtension, FieldsV1).
fn first_bytes(bytes: &[u8]) -> Result<&[u8], String> {
    let mut found: &[u8] = b"";
    let mut reader = Reader { rest: bytes };
    while let Some((number, wire)) = reader.key()? {
        match (number, wire) {
            (1, Wire::Length) => found = reader.bytes()?,
            _ => reader.skip(wire)?,
        }
    }
    Ok(found)
}

fn text_field(bytes: &[u8]) -> Result<&str, String> {
    std::str::from_utf8(first_bytes(bytes)?).map_err(|error| error.to_string())
}

fn int_or_string(bytes: &[u8]) -> Result<Value, String> {
    let (mut is_text, mut number, mut text) = (false, 0, "");
    let mut reader = Reader { rest: bytes };
    while let Some((tag, wire)) = reader.key()? {
        match (tag, wire) {
            (1, Wire::Varint) => is_text = reader.varint()? == 1,
            (2, Wire::Varint) => number = reader.varint()? as i32,
            (3, Wire::Length) => text = reader.text()?,
            _ => reader.skip(wire)?,
        }
    }
    Ok(if is_text { text.into() } else { number.into() })
}

/// `meta.v1.Time`: an empty message is Go's zero time, which JSON omits.
fn time(bytes: &[u8], micro: bool) -> Result<Value, String> {
    if bytes.is_empty() {
        return Ok(Value::Null);
    }
    let (mut seconds, mut nanos) = (0, 0);
    let mut reader = Reader { rest: bytes };
    while let Some((tag, wire)) = reader.key()? {
        match (tag, wire) {
            (1, Wire::Varint) => seconds = reader.varint()? as i64,
            (2, Wire::Varint) => nanos = reader.varint()? as i32,
            _ => reader.skip(wire)?,
        }
    }
    let time = jiff::Timestamp::new(seconds, nanos).map_err(|error| format!("time {seconds}.{nanos}: {error}"))?;
    Ok(super::fields::format_time(time, micro).into())
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wire {
    Varint,
    Fixed64,
    Length,
    Fixed32,
}

/// A cursor over a message.
struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    /// The next field's number and wire type; `None` at the end.
    fn key(&mut self) -> Result<Option<(u32, Wire)>, String> {
        if self.rest.is_empty() {
            return Ok(None);
        }
        let key = self.varint()?;
        let wire = match key & 7 {
            0 => Wire::Varint,
            1 => Wire::Fixed64,
            2 => Wire::Length,
            5 => Wire::Fixed32,
            other => return Err(format!("protobuf: unsupported wire type {other}")),
        };
        let number = u32::try_from(key >> 3).map_err(|_| "protobuf: field number out of range".to_owned())?;
        Ok(Some((number, wire)))
    }

    fn varint(&mut self) -> Result<u64, String> {
        let mut value = 0u64;
        for shift in (0..70).step_by(7) {
            let [byte] = self.array()?;
            if shift == 63 && byte > 1 {
                break;
            }
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err("protobuf: varint longer than 64 bits".to_owned())
    }

    fn bytes(&mut self) -> Result<&'a [u8], String> {
        let length = usize::try_from(self.varint()?).map_err(|_| "protobuf: length out of range".to_owned())?;
        self.take(length)
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8], String> {
        let (taken, rest) = self
            .rest
            .split_at_checked(length)
            .ok_or("protobuf: unexpected end of the body")?;
        self.rest = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], String> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }

    fn text(&mut self) -> Result<&'a str, String> {
        std::str::from_utf8(self.bytes()?).map_err(|error| format!("protobuf: text is not UTF-8: {error}"))
    }

    fn skip(&mut self, wire: Wire) -> Result<(), String> {
        match wire {
            Wire::Varint => self.varint().map(drop),
            Wire::Fixed64 => self.take(8).map(drop),
            Wire::Length => self.bytes().map(drop),
            Wire::Fixed32 => self.take(4).map(drop),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// One field: number, then bytes with their length.
    fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
        assert!(number < 16 && bytes.len() < 128);
        [&[number << 3 | 2, bytes.len() as u8], bytes].concat()
    }

    fn number(number: u16, value: u8) -> Vec<u8> {
        assert!(value < 128);
        let key = number << 3;
        if key < 128 {
            vec![key as u8, value]
        } else {
            vec![(key & 0x7f) as u8 | 0x80, (key >> 7) as u8, value]
        }
    }

    fn envelope(api_version: &str, kind: &str, raw: &[u8]) -> Vec<u8> {
        let meta = [field(1, api_version.as_bytes()), field(2, kind.as_bytes())].concat();
        let mut body = [MAGIC, &field(1, &meta)[..]].concat();
        body.extend([2 << 3 | 2]);
        body.extend([(raw.len() & 0x7f) as u8 | 0x80, (raw.len() >> 7) as u8]);
        body.extend(raw);
        [body, field(3, b""), field(4, b"")].concat()
    }

    #[test]
    fn config_map_with_text_and_bytes() {
        let metadata = [field(1, b"cm"), field(2, b""), field(3, b"default"), field(8, b"")].concat();
        let data = [field(1, b"k"), field(2, b"v")].concat();
        let empty = field(1, b"e");
        let binary = [field(1, b"b"), field(2, &[0, 255])].concat();
        let raw = [
            field(1, &metadata),
            field(2, &data),
            field(2, &empty),
            field(3, &binary),
        ]
        .concat();
        let value = decode(&envelope("v1", "ConfigMap", &raw), 50).unwrap();
        assert_eq!(
            value,
            json!({
                "apiVersion": "v1", "kind": "ConfigMap",
                "metadata": {"name": "cm", "namespace": "default"},
                "data": {"k": "v", "e": ""}, "binaryData": {"b": "AP8="},
            })
        );
    }

    #[test]
    fn explicit_zeros_are_kept_where_they_mean_something() {
        // DeploymentSpec: replicas = 0 (a pointer), minReadySeconds = 0 (not), paused = false, selector = {}.
        let spec = [number(1, 0), field(2, b""), number(5, 0), number(7, 0)].concat();
        let value = decode(&envelope("apps/v1", "Deployment", &field(2, &spec)), 50).unwrap();
        assert_eq!(value["spec"], json!({"replicas": 0, "selector": {}}));
    }

    #[test]
    fn inlined_messages_int_or_string_and_quantities() {
        // Service.spec.ports[0].targetPort = "http"; then a pod with a probe and an emptyDir size.
        let target = [number(1, 1), number(2, 0), field(3, b"http")].concat();
        let port = [
            field(1, b"web"),
            field(2, b"TCP"),
            number(3, 80),
            field(4, &target),
            number(5, 0),
        ]
        .concat();
        let value = decode(&envelope("v1", "Service", &field(2, &field(1, &port))), 50).unwrap();
        assert_eq!(
            value["spec"]["ports"],
            json!([{"name": "web", "protocol": "TCP", "port": 80, "targetPort": "http"}])
        );

        let size = field(2, &field(1, b"1Gi"));
        let volume = [field(1, b"v"), field(2, &field(2, &size))].concat();
        let probe = [field(1, &field(3, &field(1, &number(2, 80)))), number(2, 5)].concat();
        let container = [field(1, b"c"), field(2, b"img"), field(10, &probe)].concat();
        let pod = field(2, &[field(1, &volume), field(2, &container)].concat());
        let value = decode(&envelope("v1", "Pod", &pod), 50).unwrap();
        assert_eq!(
            value["spec"],
            json!({
                "volumes": [{"name": "v", "emptyDir": {"sizeLimit": "1Gi"}}],
                "containers": [{"name": "c", "image": "img", "livenessProbe": {"tcpSocket": {"port": 80}, "initialDelaySeconds": 5}}],
            })
        );
    }

    #[test]
    fn delete_options_of_any_group_and_times() {
        let options = [number(1, 0), field(4, b"Background")].concat();
        let value = decode(&envelope("apps/v1", "DeleteOptions", &options), 50).unwrap();
        assert_eq!(
            value,
            json!({"apiVersion": "apps/v1", "kind": "DeleteOptions", "gracePeriodSeconds": 0, "propagationPolicy": "Background"})
        );
        // Lease.spec.renewTime = 1s + 5000 ns.
        let time = [number(1, 1), vec![2 << 3, 0x88, 0x27]].concat();
        let value = decode(
            &envelope("coordination.k8s.io/v1", "Lease", &field(2, &field(4, &time))),
            50,
        )
        .unwrap();
        assert_eq!(value["spec"]["renewTime"], "1970-01-01T00:00:01.000005Z");
    }

    #[test]
    fn lists_as_map_values_are_unwrapped() {
        let extra = [
            field(1, b"scopes"),
            field(2, &[field(1, b"a"), field(1, b"b")].concat()),
        ]
        .concat();
        let value = decode(
            &envelope(
                "authorization.k8s.io/v1",
                "SubjectAccessReview",
                &field(2, &field(5, &extra)),
            ),
            50,
        );
        assert_eq!(value.unwrap()["spec"]["extra"], json!({"scopes": ["a", "b"]}));
    }

    #[test]
    fn what_is_not_a_known_message_is_refused() {
        for body in [
            &b""[..],
            b"k8s",
            b"{}",
            b"k8s\0",
            &envelope("v1", "Nonsense", b""),
            &envelope("v1", "Pod", &[0x0a, 0x7f]),
        ] {
            assert!(decode(body, 50).is_err(), "{body:?}");
        }
        let mut packed = envelope("v1", "Pod", b"");
        packed.extend(field(3, b"gzip"));
        assert!(decode(&packed, 50).unwrap_err().contains("gzip"));
    }
}
