//! `pod-template-hash`: a short name for a pod template, stable against the order of keys.
//!
//! FNV-1 (32 bit) over a canonical walk of the template, written in the alphabet Kubernetes uses for generated names
//! (apimachinery `util/rand.SafeEncodeString`). Only equality matters, so the value differs from Kubernetes' own.

use serde_json::Value;

const ALPHABET: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";

/// The hash of a template; a collision count other than zero leads to another one.
pub fn template_hash(template: &Value, collisions: i32) -> String {
    let mut hash = Fnv(0x811c_9dc5);
    hash.walk(template);
    if collisions > 0 {
        hash.bytes(&collisions.to_le_bytes());
    }
    let digits = hash.0.to_string();
    digits
        .bytes()
        .map(|digit| char::from(ALPHABET[usize::from(digit) % ALPHABET.len()]))
        .collect()
}

struct Fnv(u32);

impl Fnv {
    fn bytes(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0.wrapping_mul(0x0100_0193) ^ u32::from(*byte);
        }
    }

    fn walk(&mut self, value: &Value) {
        match value {
            Value::Object(map) => {
                let mut entries = map.iter().collect::<Vec<_>>();
                entries.sort_unstable_by_key(|(key, _)| *key);
                self.bytes(b"{");
                for (key, value) in entries {
                    self.bytes(key.as_bytes());
                    self.bytes(b":");
                    self.walk(value);
                }
                self.bytes(b"}");
            }
            Value::Array(items) => {
                self.bytes(b"[");
                items.iter().for_each(|item| self.walk(item));
                self.bytes(b"]");
            }
            scalar => {
                self.bytes(scalar.to_string().as_bytes());
                self.bytes(b",");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn equal_templates_have_equal_hashes_and_others_not() {
        let a = json!({"spec": {"x": 1, "y": [1, 2]}});
        let b: Value = serde_json::from_str(r#"{"spec": {"y": [1, 2], "x": 1}}"#).unwrap();
        assert_eq!(template_hash(&a, 0), template_hash(&b, 0));
        assert_ne!(template_hash(&a, 0), template_hash(&a, 1));
        assert_ne!(
            template_hash(&a, 0),
            template_hash(&json!({"spec": {"x": 1, "y": [12]}}), 0)
        );
        assert!(template_hash(&a, 0).bytes().all(|c| ALPHABET.contains(&c)));
    }
}
