//! The type table: every type hull can read, parsed once from `types.txt` on first use.
//!
//! Grammar of `types.txt`, one type after another:
//! ```text
//! io.k8s.api.core.v1.Pod /v1/Pod            name, then its group/version/kind if it is a kind; `atomic`
//!  2 spec io.k8s.api.core.v1.PodSpec        protobuf number, JSON name, type, then rules
//!  2.6 secret …                             number 6 inside the message of number 2, which JSON inlines; 0: none
//! ```
//! A type is a word for one value on the wire, the name of another type, `[]T` or `{}T` (a map from string). Rules: `!`
//! required, `*` an explicit zero means something, `patch=` and `key=` (strategic merge), `list=` and `keys=`
//! (server-side apply), `atomic`. Fields are sorted by name.

use std::collections::HashMap;
use std::sync::LazyLock;

/// A type with fields.
#[derive(Debug)]
pub(super) struct Type {
    /// OpenAPI name.
    pub name: &'static str,
    /// `(group, version, kind)` if objects of this type stand on their own.
    pub gvk: Option<(&'static str, &'static str, &'static str)>,
    /// A map that is replaced as a whole.
    pub atomic: bool,
    /// Fields, sorted by name.
    pub fields: Box<[Field]>,
}

/// A field of a [`Type`].
#[derive(Debug)]
pub(super) struct Field {
    /// JSON name.
    pub name: &'static str,
    /// Protobuf number of the inlining message; 0: the field is direct.
    pub outer: u16,
    /// Protobuf number; 0: not known.
    pub tag: u16,
    /// Type of the value.
    pub kind: Kind,
    /// Must be present (no `omitempty` in Go).
    pub required: bool,
    /// An explicit zero differs from absence.
    pub pointer: bool,
    /// `x-kubernetes-patch-strategy`, e.g. `merge,retainKeys`.
    pub patch: &'static str,
    /// `x-kubernetes-patch-merge-key`.
    pub merge_key: Option<&'static str>,
    /// `x-kubernetes-list-type`: `map`, `set`, `atomic` or empty.
    pub list: &'static str,
    /// `x-kubernetes-list-map-keys`, joined by commas.
    pub keys: &'static str,
    /// `x-kubernetes-map-type: atomic`.
    pub atomic: bool,
}

/// A type as used by a field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Text.
    String,
    /// Base64 in JSON.
    Bytes,
    /// True or false.
    Bool,
    /// 32-bit integer.
    Int32,
    /// 64-bit integer.
    Int64,
    /// Floating point number.
    Double,
    /// RFC 3339, seconds.
    Time,
    /// RFC 3339, microseconds.
    MicroTime,
    /// A resource quantity such as `100m`.
    Quantity,
    /// A number or text.
    IntOrString,
    /// Any JSON.
    Raw,
    /// `managedFields[].fieldsV1`: any JSON object.
    FieldsV1,
    /// A type of the table.
    Object(TypeId),
    /// `[]T`.
    List(Box<Kind>),
    /// `{}T`.
    Map(Box<Kind>),
}

/// Index of a type in the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TypeId(u16);

impl Type {
    /// The field of that JSON name.
    pub fn field(&self, name: &str) -> Option<&Field> {
        let index = self.fields.binary_search_by(|field| field.name.cmp(name)).ok()?;
        self.fields.get(index)
    }
}

impl Field {
    /// Whether `x-kubernetes-patch-strategy` has this word.
    pub fn patches_by(&self, strategy: &str) -> bool {
        self.patch.split(',').any(|word| word == strategy)
    }
}

impl TypeId {
    /// The type.
    pub fn get(self) -> &'static Type {
        &TABLE.types[usize::from(self.0)]
    }
}

struct Table {
    types: Vec<Type>,
    by_name: HashMap<&'static str, TypeId>,
}

static SOURCE: &str = include_str!("types.txt");
static TABLE: LazyLock<Table> = LazyLock::new(|| parse(SOURCE));

/// The type of that OpenAPI name.
pub(super) fn by_name(name: &str) -> Option<&'static Type> {
    TABLE.by_name.get(name).map(|id| id.get())
}

/// The OpenAPI name of a kind's type. The kinds of meta/v1 (DeleteOptions, Status, …) belong to every group-version.
pub fn type_for(group: &str, version: &str, kind: &str) -> Option<&'static str> {
    let exact = TABLE.types.iter().find(|ty| ty.gvk == Some((group, version, kind)));
    let found = exact.or_else(|| by_name(&format!("io.k8s.apimachinery.pkg.apis.meta.v1.{kind}")));
    found.map(|ty| ty.name)
}

/// Panics on a malformed table: it is compiled in, and the unit tests parse it.
fn parse(source: &'static str) -> Table {
    let headers = source.lines().filter(|line| !line.starts_with(' '));
    let by_name: HashMap<_, _> = headers
        .enumerate()
        .map(|(index, line)| (line.split(' ').next().unwrap_or(line), TypeId(index as u16)))
        .collect();
    let mut types: Vec<Type> = Vec::with_capacity(by_name.len());
    let mut fields = Vec::new();
    for line in source.lines() {
        if let Some(field) = line.strip_prefix(' ') {
            fields.push(parse_field(field, &by_name));
            continue;
        }
        close(&mut types, &mut fields);
        let mut words = line.split(' ');
        let name = words.next().unwrap_or_default();
        let mut ty = Type {
            name,
            gvk: None,
            atomic: false,
            fields: Box::default(),
        };
        for word in words {
            match word.split('/').collect::<Vec<_>>()[..] {
                [group, version, kind] => ty.gvk = Some((group, version, kind)),
                _ => ty.atomic = word == "atomic",
            }
        }
        types.push(ty);
    }
    close(&mut types, &mut fields);
    Table { types, by_name }
}

fn close(types: &mut [Type], fields: &mut Vec<Field>) {
    if let Some(last) = types.last_mut() {
        fields.sort_by_key(|field| field.name);
        last.fields = std::mem::take(fields).into();
    }
}

fn parse_field(line: &'static str, by_name: &HashMap<&'static str, TypeId>) -> Field {
    let mut words = line.split(' ');
    let mut next = || {
        words
            .next()
            .unwrap_or_else(|| panic!("types.txt: incomplete field {line:?}"))
    };
    let (tag, name, kind) = (next(), next(), next());
    let (outer, tag) = tag.split_once('.').unwrap_or(("0", tag));
    let number = |text: &str| {
        text.parse()
            .unwrap_or_else(|_| panic!("types.txt: no number in {line:?}"))
    };
    let mut field = Field {
        name,
        outer: number(outer),
        tag: number(tag),
        kind: parse_kind(kind, by_name),
        required: false,
        pointer: false,
        patch: "",
        merge_key: None,
        list: "",
        keys: "",
        atomic: false,
    };
    for word in words {
        match word.split_once('=') {
            Some(("patch", value)) => field.patch = value,
            Some(("key", value)) => field.merge_key = Some(value),
            Some(("list", value)) => field.list = value,
            Some(("keys", value)) => field.keys = value,
            _ => match word {
                "!" => field.required = true,
                "*" => field.pointer = true,
                "atomic" => field.atomic = true,
                _ => panic!("types.txt: unknown rule {word:?} in {line:?}"),
            },
        }
    }
    field
}

fn parse_kind(word: &'static str, by_name: &HashMap<&'static str, TypeId>) -> Kind {
    if let Some(item) = word.strip_prefix("[]") {
        return Kind::List(Box::new(parse_kind(item, by_name)));
    }
    if let Some(value) = word.strip_prefix("{}") {
        return Kind::Map(Box::new(parse_kind(value, by_name)));
    }
    match word {
        "string" => Kind::String,
        "bytes" => Kind::Bytes,
        "bool" => Kind::Bool,
        "int32" => Kind::Int32,
        "int64" => Kind::Int64,
        "double" => Kind::Double,
        "time" => Kind::Time,
        "microtime" => Kind::MicroTime,
        "quantity" => Kind::Quantity,
        "intorstring" => Kind::IntOrString,
        "raw" => Kind::Raw,
        "fields" => Kind::FieldsV1,
        name => Kind::Object(
            *by_name
                .get(name)
                .unwrap_or_else(|| panic!("types.txt: unknown type {name:?}")),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_committed_table_parses() {
        let pod = by_name("io.k8s.api.core.v1.Pod").unwrap();
        assert_eq!(pod.gvk, Some(("", "v1", "Pod")));
        let Some(Field {
            kind: Kind::Object(spec),
            ..
        }) = pod.field("spec")
        else {
            panic!("spec")
        };
        let containers = spec.get().field("containers").unwrap();
        assert_eq!(
            (containers.tag, containers.merge_key, containers.patch),
            (2, Some("name"), "merge")
        );
        assert!(containers.required && matches!(containers.kind, Kind::List(_)));
    }

    #[test]
    fn inlined_messages_have_two_numbers() {
        let volume = by_name("io.k8s.api.core.v1.Volume").unwrap();
        let secret = volume.field("secret").unwrap();
        assert_eq!((secret.outer, secret.tag), (2, 6));
    }

    #[test]
    fn kinds_are_found_by_group_version_and_kind() {
        assert_eq!(
            type_for("apps", "v1", "Deployment"),
            Some("io.k8s.api.apps.v1.Deployment")
        );
        assert_eq!(type_for("", "v1", "Event"), Some("io.k8s.api.core.v1.Event"));
        assert_eq!(
            type_for("apps", "v1", "DeleteOptions"),
            Some("io.k8s.apimachinery.pkg.apis.meta.v1.DeleteOptions")
        );
        assert_eq!(type_for("", "v1", "Nonsense"), None);
    }
}
