//! Manifest files: several YAML or JSON documents, and the collection each object belongs to.

use serde_json::Value;

/// Why a manifest cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// The text is not YAML.
    #[error("not YAML: {0}")]
    Syntax(String),
    /// A document lacks `apiVersion` or `kind`.
    #[error("document without apiVersion and kind: {0}")]
    NoKind(String),
}

/// The non-empty documents of a manifest.
///
/// # Errors
/// [`ManifestError::Syntax`].
pub fn documents(text: &str) -> Result<Vec<Value>, ManifestError> {
    let documents: Vec<Value> = serde_saphyr::from_multiple(text).map_err(|e| ManifestError::Syntax(e.to_string()))?;
    Ok(documents.into_iter().filter(|document| !document.is_null()).collect())
}

/// The collection an object of a built-in kind is created in, by Kubernetes' naming rules (lower case, plural).
///
/// # Errors
/// [`ManifestError::NoKind`].
pub fn collection_path(object: &Value) -> Result<String, ManifestError> {
    let (Some(version), Some(kind)) = (object["apiVersion"].as_str(), object["kind"].as_str()) else {
        return Err(ManifestError::NoKind(object.to_string().chars().take(120).collect()));
    };
    let root = if version.contains('/') { "/apis" } else { "/api" };
    let singular = kind.to_lowercase();
    let plural = match singular.as_bytes() {
        [.., b'y'] => format!("{}ies", &singular[..singular.len() - 1]),
        [.., b's'] if singular != "endpoints" => format!("{singular}es"),
        [.., b's'] => singular,
        _ => format!("{singular}s"),
    };
    Ok(match object["metadata"]["namespace"].as_str() {
        Some(namespace) => format!("{root}/{version}/namespaces/{namespace}/{plural}"),
        None => format!("{root}/{version}/{plural}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_find_their_collection() {
        let text = "apiVersion: v1\nkind: Namespace\nmetadata: {name: a}\n---\n---\napiVersion: apps/v1\nkind: Deployment\nmetadata: {name: b, namespace: a}\n";
        let paths: Vec<String> = documents(text)
            .expect("YAML")
            .iter()
            .map(|d| collection_path(d).expect("kind"))
            .collect();
        assert_eq!(paths, ["/api/v1/namespaces", "/apis/apps/v1/namespaces/a/deployments"]);
        assert!(collection_path(&serde_json::json!({"kind": "Pod"})).is_err());
    }
}
