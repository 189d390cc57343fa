//! Content negotiation: in which shape an answer is wanted, and in which encoding a body comes.
//!
//! Answers are JSON; clients that ask for protobuf first list JSON as the alternative. What can be asked for beside the
//! object itself: a `Table`, or only the metadata (<https://kubernetes.io/docs/reference/using-api/api-concepts/>).

use http::{HeaderMap, header};

use crate::registry::Status;
use crate::schema::Encoding;

/// The shape of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// The object or list.
    Object,
    /// `meta.k8s.io` Table of that version.
    Table(&'static str),
    /// PartialObjectMetadata of that version.
    Metadata(&'static str),
}

/// One entry of an `Accept` header.
#[derive(Debug)]
pub struct Accepted<'a> {
    /// `type/subtype`.
    pub media_type: &'a str,
    parameters: Vec<(&'a str, &'a str)>,
}

impl<'a> Accepted<'a> {
    /// A parameter, e.g. `as`, `g`, `v`.
    pub fn parameter(&self, name: &str) -> Option<&'a str> {
        self.parameters
            .iter()
            .find(|(key, _)| *key == name)
            .map(|(_, value)| *value)
    }

    /// Whether JSON satisfies it.
    pub fn takes_json(&self) -> bool {
        matches!(self.media_type, "application/json" | "application/*" | "*/*")
    }
}

/// The entries of `Accept`, best first; no header accepts anything.
pub fn accepted(headers: &HeaderMap) -> Vec<Accepted<'_>> {
    let values = headers
        .get_all(header::ACCEPT)
        .iter()
        .filter_map(|value| value.to_str().ok());
    let mut entries: Vec<(f32, Accepted<'_>)> = values.flat_map(|value| value.split(',')).filter_map(entry).collect();
    entries.sort_by(|(a, _), (b, _)| b.total_cmp(a));
    if entries.is_empty() {
        return vec![Accepted {
            media_type: "*/*",
            parameters: Vec::new(),
        }];
    }
    entries.into_iter().map(|(_, entry)| entry).collect()
}

fn entry(text: &str) -> Option<(f32, Accepted<'_>)> {
    let mut parts = text.split(';').map(str::trim);
    let media_type = parts.next().filter(|media_type| !media_type.is_empty())?;
    let parameters: Vec<_> = parts.filter_map(|part| part.split_once('=')).collect();
    let quality = parameters
        .iter()
        .find(|(key, _)| *key == "q")
        .and_then(|(_, value)| value.parse().ok());
    Some((quality.unwrap_or(1.0), Accepted { media_type, parameters }))
}

/// The shape of the answer to a request on a resource.
///
/// # Errors
/// 406 if nothing that is accepted can be served.
pub fn shape(headers: &HeaderMap) -> Result<Shape, Status> {
    accepted(headers)
        .iter()
        .filter(|entry| entry.takes_json())
        .find_map(|entry| match (entry.parameter("as"), entry.parameter("v")) {
            (None, _) => Some(Shape::Object),
            (Some("Table"), Some("v1")) => Some(Shape::Table("v1")),
            (Some("Table"), Some("v1beta1")) => Some(Shape::Table("v1beta1")),
            (Some("PartialObjectMetadata" | "PartialObjectMetadataList"), Some("v1")) => Some(Shape::Metadata("v1")),
            (Some("PartialObjectMetadata" | "PartialObjectMetadataList"), Some("v1beta1")) => {
                Some(Shape::Metadata("v1beta1"))
            }
            _ => None,
        })
        .ok_or_else(|| Status::not_acceptable("application/json"))
}

/// The encoding of a request's body; JSON if the client does not say.
///
/// # Errors
/// 415 for anything but JSON, YAML and protobuf.
pub fn encoding(headers: &HeaderMap) -> Result<Encoding, Status> {
    match media_type(headers) {
        "" | "application/json" => Ok(Encoding::Json),
        "application/yaml" | "application/x-yaml" | "text/yaml" => Ok(Encoding::Yaml),
        "application/vnd.kubernetes.protobuf" => Ok(Encoding::Protobuf),
        other => Err(Status::unsupported_media_type(
            other,
            "application/json, application/yaml, application/vnd.kubernetes.protobuf",
        )),
    }
}

/// `Content-Type` without its parameters.
pub fn media_type(headers: &HeaderMap) -> &str {
    let value = headers
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default();
    value.split(';').next().unwrap_or_default().trim()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(accept: &str) -> Result<Shape, u16> {
        let mut headers = HeaderMap::new();
        headers.insert(header::ACCEPT, accept.parse().unwrap());
        shape(&headers).map_err(|status| status.code)
    }

    #[test]
    fn the_first_servable_shape_wins() {
        let kubectl = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json";
        assert_eq!(ask(kubectl), Ok(Shape::Table("v1")));
        assert_eq!(
            ask("application/json;as=Table;v=v9;g=meta.k8s.io,application/json"),
            Ok(Shape::Object)
        );
        assert_eq!(
            ask("application/vnd.kubernetes.protobuf,application/json"),
            Ok(Shape::Object)
        );
        assert_eq!(ask("application/vnd.kubernetes.protobuf"), Err(406));
        assert_eq!(ask("text/html;q=0.9,*/*;q=0.1"), Ok(Shape::Object));
        assert_eq!(
            ask("application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"),
            Ok(Shape::Metadata("v1"))
        );
        assert_eq!(
            shape(&HeaderMap::new()).map_err(|status| status.code),
            Ok(Shape::Object)
        );
    }
}
