//! What names, labels, keys and ports may look like (RFC 1123, RFC 1035, RFC 6335), with apimachinery's messages.

use super::resource::NameRule;

const LABEL: &str = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')";
const SUBDOMAIN: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";
const LABEL_1035: &str = "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic character, and end with an alphanumeric character (e.g. 'my-name',  or 'abc-123', regex used for validation is '[a-z]([-a-z0-9]*[a-z0-9])?')";
const QUALIFIED: &str = "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')";
const LABEL_VALUE: &str = "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')";
const CONFIG_KEY: &str = "a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. 'key.name',  or 'KEY_NAME',  or 'key-name', regex used for validation is '[-._a-zA-Z0-9]+')";
const ENV_NAME: &str =
    "a valid environment variable name must consist only of printable ASCII characters other than '='";

/// Longest subdomain.
const SUBDOMAIN_MAX: usize = 253;
/// Longest label.
const LABEL_MAX: usize = 63;
/// Longest prefix kept of `generateName`, and length of the random suffix.
const GENERATED_PREFIX_MAX: usize = 58;
const SUFFIX_LENGTH: usize = 5;
/// No vowels and nothing that looks alike, as in apimachinery's rand.
const SUFFIX_ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";

/// Whether `name` obeys the rule; otherwise what is wrong.
pub fn is_name(rule: NameRule, name: &str) -> Result<(), String> {
    match rule {
        NameRule::Subdomain => is_subdomain(name),
        NameRule::Label => is_label(name),
        NameRule::Label1035 => is_label_1035(name),
        NameRule::PathSegment => is_path_segment(name),
    }
}

/// A name from `generateName`: the prefix and five characters drawn by `random`.
pub fn name_from_generate_name(prefix: &str, random: u64) -> String {
    let mut end = prefix.len().min(GENERATED_PREFIX_MAX);
    while !prefix.is_char_boundary(end) {
        end -= 1;
    }
    let mut name = prefix[..end].to_owned();
    let base = SUFFIX_ALPHABET.len() as u64;
    let mut rest = random;
    for _ in 0..SUFFIX_LENGTH {
        name.push(char::from(SUFFIX_ALPHABET[(rest % base) as usize]));
        rest /= base;
    }
    name
}

fn check(valid: bool, length: usize, max: usize, message: &str) -> Result<(), String> {
    if length > max {
        return Err(format!("must be no more than {max} characters"));
    }
    if valid { Ok(()) } else { Err(message.to_owned()) }
}

fn lower_alphanumeric(byte: u8) -> bool {
    byte.is_ascii_lowercase() || byte.is_ascii_digit()
}

fn label_shape(text: &str) -> bool {
    let bytes = text.as_bytes();
    let (Some(first), Some(last)) = (bytes.first(), bytes.last()) else {
        return false;
    };
    lower_alphanumeric(*first)
        && lower_alphanumeric(*last)
        && bytes.iter().all(|byte| lower_alphanumeric(*byte) || *byte == b'-')
}

pub(super) fn is_label(text: &str) -> Result<(), String> {
    check(label_shape(text), text.len(), LABEL_MAX, LABEL)
}

pub(super) fn is_subdomain(text: &str) -> Result<(), String> {
    check(text.split('.').all(label_shape), text.len(), SUBDOMAIN_MAX, SUBDOMAIN)
}

pub(super) fn is_label_1035(text: &str) -> Result<(), String> {
    let valid = label_shape(text) && text.as_bytes().first().is_some_and(u8::is_ascii_lowercase);
    check(valid, text.len(), LABEL_MAX, LABEL_1035)
}

pub(super) fn is_path_segment(text: &str) -> Result<(), String> {
    match text {
        "." => Err("may not be '.'".to_owned()),
        ".." => Err("may not be '..'".to_owned()),
        _ => match text.chars().find(|c| matches!(c, '/' | '%')) {
            Some(c) => Err(format!("may not contain '{c}'")),
            None => Ok(()),
        },
    }
}

fn word_shape(text: &str) -> bool {
    let bytes = text.as_bytes();
    let (Some(first), Some(last)) = (bytes.first(), bytes.last()) else {
        return false;
    };
    first.is_ascii_alphanumeric()
        && last.is_ascii_alphanumeric()
        && bytes
            .iter()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'))
}

/// A label or annotation key: `[prefix/]name`.
pub(super) fn is_qualified_name(text: &str) -> Result<(), String> {
    let (prefix, name) = match text.split_once('/') {
        Some((_, name)) if name.contains('/') => {
            return Err(format!(
                "a qualified name {} with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')",
                &QUALIFIED[10..]
            ));
        }
        Some((prefix, name)) => (Some(prefix), name),
        None => (None, text),
    };
    match prefix {
        Some("") => return Err("prefix part must be non-empty".to_owned()),
        Some(prefix) => is_subdomain(prefix).map_err(|message| format!("prefix part {message}"))?,
        None => {}
    }
    if name.is_empty() {
        return Err("name part must be non-empty".to_owned());
    }
    if name.len() > LABEL_MAX {
        return Err(format!("name part must be no more than {LABEL_MAX} characters"));
    }
    if word_shape(name) {
        Ok(())
    } else {
        Err(QUALIFIED.to_owned())
    }
}

pub(super) fn is_label_value(text: &str) -> Result<(), String> {
    check(text.is_empty() || word_shape(text), text.len(), LABEL_MAX, LABEL_VALUE)
}

/// A key of a ConfigMap or Secret.
pub(super) fn is_config_key(text: &str) -> Result<(), String> {
    if text.len() > SUBDOMAIN_MAX {
        return Err(format!("must be no more than {SUBDOMAIN_MAX} characters"));
    }
    let valid = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    match text {
        "" => Err(CONFIG_KEY.to_owned()),
        "." => Err("must not be '.'".to_owned()),
        ".." => Err("must not be '..'".to_owned()),
        _ if !text.as_bytes().iter().all(valid) => Err(CONFIG_KEY.to_owned()),
        _ if text.starts_with("..") => Err("must not start with '..'".to_owned()),
        _ => Ok(()),
    }
}

/// An environment variable's name (relaxed rule of Kubernetes 1.34 on).
pub(super) fn is_env_name(text: &str) -> Result<(), String> {
    let valid = !text.is_empty() && text.bytes().all(|byte| (0x20..0x7f).contains(&byte) && byte != b'=');
    if valid { Ok(()) } else { Err(ENV_NAME.to_owned()) }
}

/// A port's name: RFC 6335 service name.
pub(super) fn is_port_name(text: &str) -> Result<(), String> {
    let bytes = text.as_bytes();
    if text.len() > 15 {
        return Err("must be no more than 15 characters".to_owned());
    }
    if text.is_empty() || !bytes.iter().all(|byte| lower_alphanumeric(*byte) || *byte == b'-') {
        return Err("must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)".to_owned());
    }
    if !bytes.iter().any(u8::is_ascii_lowercase) {
        return Err("must contain at least one letter (a-z)".to_owned());
    }
    if text.contains("--") {
        return Err("must not contain consecutive hyphens".to_owned());
    }
    if text.starts_with('-') || text.ends_with('-') {
        return Err("must not begin or end with a hyphen".to_owned());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_by_rule() {
        for (rule, good, bad) in [
            (
                NameRule::Subdomain,
                &["a", "a.b-c", "0"][..],
                &["", "A", "-a", "a-", "a..b", "a_b", "ä"][..],
            ),
            (NameRule::Label, &["a", "0-a"], &["a.b", ""]),
            (NameRule::Label1035, &["a-0"], &["0a", "a.b"]),
            (
                NameRule::PathSegment,
                &["system:node", "A_b"],
                &[".", "..", "a/b", "a%b"],
            ),
        ] {
            good.iter()
                .for_each(|name| assert_eq!(is_name(rule, name), Ok(()), "{name}"));
            bad.iter()
                .for_each(|name| assert!(is_name(rule, name).is_err(), "{name}"));
        }
        assert!(
            is_name(NameRule::Subdomain, &"a".repeat(254))
                .unwrap_err()
                .contains("no more than 253")
        );
    }

    #[test]
    fn keys_and_values() {
        for good in ["a", "example.com/Name_1", "A.b-c"] {
            assert_eq!(is_qualified_name(good), Ok(()), "{good}");
        }
        for bad in ["", "/a", "a/", "a/b/c", "Ex/a", "-a", &"a".repeat(64)] {
            assert!(is_qualified_name(bad).is_err(), "{bad}");
        }
        assert!(is_label_value("").is_ok() && is_label_value("a b").is_err());
        assert!(is_config_key("a.B_c-1").is_ok() && is_config_key("..a").is_err() && is_config_key("a/b").is_err());
        assert!(is_env_name("A.b").is_ok() && is_env_name("a=b").is_err() && is_env_name("").is_err());
        assert!(is_port_name("http-1").is_ok());
        for bad in ["80", "a--b", "-a", "Http", "", "sixteen-chars-ab"] {
            assert!(is_port_name(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn generated_names_have_five_random_characters() {
        let name = name_from_generate_name("web-", 123_456_789);
        assert_eq!(name.len(), 9);
        assert!(is_name(NameRule::Label, &name).is_ok());
        assert_eq!(name_from_generate_name(&"a".repeat(100), 0).len(), 63);
        assert_ne!(name_from_generate_name("a", 1), name_from_generate_name("a", 2));
    }
}
