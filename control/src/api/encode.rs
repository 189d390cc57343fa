//! Objects into the shape a client asked for, as bytes. An object in its own shape is never decoded: its body is copied.

use bytes::Bytes;
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};

use super::body::{self, Response};
use super::negotiate::Shape;
use super::query::Params;
use super::table;
use crate::cache::Object;
use crate::registry::Status;
use crate::schema::Resource;

/// Lists larger than this are sent in chunks while they are encoded, so that a storm of lists costs bounded memory.
const CHUNK: usize = 64 << 10;

/// What a row of a Table carries beside its cells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Include {
    None,
    Metadata,
    Object,
}

/// Encodes objects of one resource in one shape.
#[derive(Clone)]
pub struct Encoder {
    row: &'static Resource,
    shape: Shape,
    include: Include,
    now: jiff::Timestamp,
}

#[derive(Deserialize)]
struct OnlyMetadata<'a> {
    #[serde(borrow)]
    metadata: &'a RawValue,
}

/// `metadata` of a list.
#[derive(Debug, Default)]
pub struct ListMeta {
    /// The list's revision.
    pub revision: u64,
    /// Token for the next page; empty if this is the last.
    pub token: String,
    /// How many are left.
    pub remaining: Option<u64>,
}

impl ListMeta {
    fn to_value(&self) -> Value {
        let mut meta = json!({"resourceVersion": self.revision.to_string()});
        if !self.token.is_empty() {
            meta["continue"] = json!(self.token);
            if let Some(remaining) = self.remaining {
                meta["remainingItemCount"] = json!(remaining);
            }
        }
        meta
    }
}

impl Encoder {
    /// An encoder for answers to one request.
    ///
    /// # Errors
    /// 400 for an unknown `includeObject`.
    pub fn new(row: &'static Resource, shape: Shape, params: &Params, now: jiff::Timestamp) -> Result<Self, Status> {
        let include = match params.text("includeObject") {
            "" | "Metadata" => Include::Metadata,
            "None" => Include::None,
            "Object" => Include::Object,
            other => {
                return Err(Status::bad_request(format!(
                    "invalid includeObject value {other:?}: must be None, Metadata or Object"
                )));
            }
        };
        Ok(Self {
            row,
            shape,
            include,
            now,
        })
    }

    /// The object in the requested version: its stored body, unless this version differs from the stored one.
    pub fn body(&self, object: &Object) -> Bytes {
        let Some(conversion) = &self.row.conversion else {
            return object.body.clone();
        };
        let mut value = object.value();
        (conversion.from_storage)(&mut value);
        value.to_string().into()
    }

    /// A response with one object.
    pub fn one(&self, code: u16, object: &Object) -> Response {
        let mut out = Vec::with_capacity(object.body.len() + 64);
        match self.shape {
            Shape::Object => return body::json(code, self.body(object)),
            Shape::Metadata(_) => self.item(object, &mut out),
            Shape::Table(_) => self.table(
                &json!({"resourceVersion": object.revision.to_string()}),
                [object],
                true,
                &mut out,
            ),
        }
        body::json(code, out)
    }

    /// A response with a list, encoded as it is sent if it is large.
    pub fn list(&self, meta: &ListMeta, items: Vec<std::sync::Arc<Object>>) -> Response {
        let mut head = Vec::new();
        self.list_head(meta, &mut head);
        let size: usize = items.iter().map(|item| item.body.len() + 1).sum();
        let encoder = self.clone();
        let mut items = items.into_iter();
        let mut first = true;
        let mut fill = move |out: &mut Vec<u8>, limit: usize| -> bool {
            for item in items.by_ref() {
                if !std::mem::take(&mut first) {
                    out.push(b',');
                }
                encoder.item(&item, out);
                if out.len() >= limit {
                    return true;
                }
            }
            out.extend_from_slice(b"]}\n");
            false
        };
        if size <= 4 * CHUNK {
            fill(&mut head, usize::MAX);
            return body::json(200, head);
        }
        let chunks = futures_util::stream::unfold(Some((head, fill)), |state| async {
            let (mut out, mut fill) = state?;
            let more = fill(&mut out, CHUNK);
            Some((
                Bytes::from(out),
                more.then(|| (Vec::with_capacity(CHUNK + CHUNK / 4), fill)),
            ))
        });
        body::respond(200, body::JSON, body::streamed(chunks))
    }

    fn list_head(&self, meta: &ListMeta, out: &mut Vec<u8>) {
        let meta = meta.to_value();
        let text = match self.shape {
            Shape::Object => format!(
                r#"{{"kind":"{}","apiVersion":"{}","metadata":{meta},"items":["#,
                self.row.list_kind(),
                self.row.api_version()
            ),
            Shape::Metadata(version) => {
                format!(
                    r#"{{"kind":"PartialObjectMetadataList","apiVersion":"meta.k8s.io/{version}","metadata":{meta},"items":["#
                )
            }
            Shape::Table(version) => format!(
                r#"{{"kind":"Table","apiVersion":"meta.k8s.io/{version}","metadata":{meta},"columnDefinitions":{},"rows":["#,
                table::column_definitions(self.row)
            ),
        };
        out.extend_from_slice(text.as_bytes());
    }

    /// One element of a list in this shape.
    fn item(&self, object: &Object, out: &mut Vec<u8>) {
        match self.shape {
            Shape::Object => out.extend_from_slice(&self.body(object)),
            Shape::Metadata(version) => metadata_only(object, version, out),
            Shape::Table(version) => {
                out.extend_from_slice(b"{\"cells\":");
                let cells = table::cells(self.row, &object.value(), self.now);
                out.extend_from_slice(Value::Array(cells).to_string().as_bytes());
                match self.include {
                    Include::None => {}
                    Include::Metadata => {
                        out.extend_from_slice(b",\"object\":");
                        metadata_only(object, version, out);
                    }
                    Include::Object => {
                        out.extend_from_slice(b",\"object\":");
                        out.extend_from_slice(&self.body(object));
                    }
                }
                out.push(b'}');
            }
        }
    }

    fn table<'a>(&self, meta: &Value, items: impl IntoIterator<Item = &'a Object>, columns: bool, out: &mut Vec<u8>) {
        let Shape::Table(version) = self.shape else { return };
        let columns = if columns {
            table::column_definitions(self.row)
        } else {
            "null".into()
        };
        let head = format!(
            r#"{{"kind":"Table","apiVersion":"meta.k8s.io/{version}","metadata":{meta},"columnDefinitions":{columns},"rows":["#
        );
        out.extend_from_slice(head.as_bytes());
        for (number, item) in items.into_iter().enumerate() {
            if number > 0 {
                out.push(b',');
            }
            self.item(item, out);
        }
        out.extend_from_slice(b"]}");
    }

    /// A watch event, one line. `first`: nothing was sent before, so a Table says its columns.
    pub fn event(&self, kind: &str, object: &Object, first: bool, out: &mut Vec<u8>) {
        out.extend_from_slice(format!(r#"{{"type":"{kind}","object":"#).as_bytes());
        match self.shape {
            Shape::Table(_) => {
                let meta = json!({"resourceVersion": object.revision.to_string()});
                self.table(&meta, [object], first, out);
            }
            _ => self.item(object, out),
        }
        out.extend_from_slice(b"}\n");
    }

    /// A bookmark: everything up to `revision` was sent.
    pub fn bookmark(&self, revision: u64, initial_events_end: bool, out: &mut Vec<u8>) {
        let mut metadata = json!({"resourceVersion": revision.to_string(), "creationTimestamp": null});
        if initial_events_end {
            metadata["annotations"] = json!({"k8s.io/initial-events-end": "true"});
        }
        let object = match self.shape {
            Shape::Object => json!({"kind": self.row.kind, "apiVersion": self.row.api_version(), "metadata": metadata}),
            Shape::Metadata(version) => {
                json!({"kind": "PartialObjectMetadata", "apiVersion": format!("meta.k8s.io/{version}"), "metadata": metadata})
            }
            Shape::Table(version) => json!({
                "kind": "Table", "apiVersion": format!("meta.k8s.io/{version}"),
                "metadata": {"resourceVersion": revision.to_string()}, "columnDefinitions": null,
                "rows": [{"cells": [], "object":
                    {"kind": "PartialObjectMetadata", "apiVersion": format!("meta.k8s.io/{version}"), "metadata": metadata}}],
            }),
        };
        out.extend_from_slice(json!({"type": "BOOKMARK", "object": object}).to_string().as_bytes());
        out.push(b'\n');
    }
}

/// An `ERROR` event: the watch ends with this status.
pub fn error_event(status: &Status, out: &mut Vec<u8>) {
    out.extend_from_slice(
        json!({"type": "ERROR", "object": status.to_value()})
            .to_string()
            .as_bytes(),
    );
    out.push(b'\n');
}

fn metadata_only(object: &Object, version: &str, out: &mut Vec<u8>) {
    let metadata = serde_json::from_slice::<OnlyMetadata<'_>>(&object.body).map_or("{}", |only| only.metadata.get());
    let text =
        format!(r#"{{"kind":"PartialObjectMetadata","apiVersion":"meta.k8s.io/{version}","metadata":{metadata}}}"#);
    out.extend_from_slice(text.as_bytes());
}
