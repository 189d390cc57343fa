//! Label and field selectors: parsing and matching (Kubernetes "Labels and Selectors", "Field Selectors").
//!
//! A selector is matched against an [`Index`], so that no object is decoded to be filtered. The texts of the errors are
//! those of Kubernetes' API server, because clients show them as they are.

mod labels;

use serde_json::Value;

use self::labels::{Operator, Requirement};
use crate::cache::Index;

/// A parsed label selector and field selector. The default matches everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selector {
    nothing: bool,
    labels: Vec<Requirement>,
    fields: Vec<FieldTerm>,
}

/// `path=value` or `path!=value`.
#[derive(Clone, Debug, PartialEq, Eq)]
struct FieldTerm {
    path: Box<str>,
    equal: bool,
    value: Box<str>,
}

/// A selector that does not parse; the text is what Kubernetes' API server would answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct SelectorError(pub String);

impl Selector {
    /// Selects nothing (what a missing LabelSelector means).
    pub fn nothing() -> Self {
        Self {
            nothing: true,
            ..Self::default()
        }
    }

    /// From the query parameters `labelSelector` and `fieldSelector`; empty text selects everything.
    ///
    /// # Errors
    /// [`SelectorError`] worded as Kubernetes words it.
    pub fn parse(labels: &str, fields: &str) -> Result<Self, SelectorError> {
        Ok(Self {
            nothing: false,
            labels: labels::parse(labels)?,
            fields: parse_fields(fields)?,
        })
    }

    /// From a `metav1.LabelSelector` as JSON (`matchLabels`, `matchExpressions`). `null` selects nothing, `{}` everything.
    ///
    /// # Errors
    /// [`SelectorError`] for unknown operators or ill-formed keys and values.
    pub fn from_label_selector(selector: &Value) -> Result<Self, SelectorError> {
        if selector.is_null() {
            return Ok(Self::nothing());
        }
        let mut requirements = Vec::new();
        for (key, value) in selector["matchLabels"].as_object().into_iter().flatten() {
            let value = value.as_str().unwrap_or_default();
            requirements.push(Requirement::new(key, Operator::In, vec![value])?);
        }
        for expression in selector["matchExpressions"].as_array().into_iter().flatten() {
            let operator = match expression["operator"].as_str().unwrap_or_default() {
                "In" => Operator::In,
                "NotIn" => Operator::NotIn,
                "Exists" => Operator::Exists,
                "DoesNotExist" => Operator::DoesNotExist,
                other => {
                    return Err(SelectorError(format!(
                        "\"{other}\" is not a valid label selector operator"
                    )));
                }
            };
            let values = expression["values"]
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(Value::as_str)
                .collect();
            let key = expression["key"].as_str().unwrap_or_default();
            requirements.push(Requirement::new(key, operator, values)?);
        }
        Ok(Self {
            labels: requirements,
            ..Self::default()
        })
    }

    /// All of these labels: the plain map of a Service's or ReplicationController's `spec.selector`.
    pub fn from_map<'a>(labels: impl IntoIterator<Item = (&'a str, &'a str)>) -> Self {
        let requirement = |(key, value): (&str, &str)| Requirement {
            key: key.into(),
            operator: Operator::In,
            values: Box::new([value.into()]),
        };
        Self {
            labels: labels.into_iter().map(requirement).collect(),
            ..Self::default()
        }
    }

    /// This selector, and one field equal to `value`, e.g. `spec.nodeName`.
    #[must_use]
    pub fn and_field(mut self, path: &str, value: &str) -> Self {
        self.fields.push(FieldTerm {
            path: path.into(),
            equal: true,
            value: value.into(),
        });
        self
    }

    /// Whether it selects everything.
    pub fn is_everything(&self) -> bool {
        !self.nothing && self.labels.is_empty() && self.fields.is_empty()
    }

    /// Whether an object with this index is selected.
    pub fn matches(&self, index: &Index) -> bool {
        self.matches_labels(|key| index.label(key))
            && self
                .fields
                .iter()
                .all(|term| (index.field(&term.path).unwrap_or("") == &*term.value) == term.equal)
    }

    /// Whether an object with these labels is selected by the label part.
    pub fn matches_labels<'a>(&self, label: impl Fn(&str) -> Option<&'a str>) -> bool {
        !self.nothing
            && self
                .labels
                .iter()
                .all(|requirement| requirement.matches(label(&requirement.key)))
    }

    /// The value a field must equal, e.g. `metadata.name`, if the selector says so.
    pub fn field(&self, path: &str) -> Option<&str> {
        self.fields
            .iter()
            .find(|term| term.equal && &*term.path == path)
            .map(|term| &*term.value)
    }

    /// Paths of all fields mentioned, to refuse those a resource does not support.
    pub fn field_paths(&self) -> impl Iterator<Item = &str> {
        self.fields.iter().map(|term| &*term.path)
    }
}

/// The string form of field selectors: terms separated by `,`; `\` escapes `\`, `,` and `=`.
fn parse_fields(text: &str) -> Result<Vec<FieldTerm>, SelectorError> {
    let mut terms = Vec::new();
    for part in split_unescaped(text) {
        if part.is_empty() {
            continue;
        }
        let Some((path, equal, value)) = split_term(part) else {
            return Err(SelectorError(format!(
                "invalid selector: '{text}'; can't understand '{part}'"
            )));
        };
        terms.push(FieldTerm {
            path: path.into(),
            equal,
            value: unescape(value)?.into(),
        });
    }
    Ok(terms)
}

fn split_unescaped(text: &str) -> Vec<&str> {
    let mut parts = Vec::new();
    let (mut start, mut escaped) = (0, false);
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b',' => {
                parts.push(&text[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&text[start..]);
    parts
}

fn split_term(term: &str) -> Option<(&str, bool, &str)> {
    for (at, _) in term.char_indices() {
        let rest = &term[at..];
        for (operator, equal) in [("!=", false), ("==", true), ("=", true)] {
            if let Some(value) = rest.strip_prefix(operator) {
                return Some((&term[..at], equal, value));
            }
        }
    }
    None
}

fn unescape(value: &str) -> Result<String, SelectorError> {
    let mut text = String::with_capacity(value.len());
    let mut characters = value.chars();
    while let Some(character) = characters.next() {
        match character {
            '\\' => match characters.next() {
                Some(escaped @ ('\\' | ',' | '=')) => text.push(escaped),
                Some(other) => {
                    return Err(SelectorError(format!(
                        "invalid field selector: invalid escape sequence: \\{other}"
                    )));
                }
                None => {
                    return Err(SelectorError(
                        "invalid field selector: invalid escape sequence: \\".into(),
                    ));
                }
            },
            '=' => {
                return Err(SelectorError(format!(
                    "invalid field selector: unescaped character in value: {value}"
                )));
            }
            other => text.push(other),
        }
    }
    Ok(text)
}

#[cfg(test)]
mod tests;
