//! The query string: percent-decoding and the way Kubernetes reads booleans and numbers in it.

use crate::registry::Status;

/// Parameters in the order given.
#[derive(Clone, Debug, Default)]
pub struct Params(Vec<(String, String)>);

impl Params {
    /// From the part of a URI behind `?`.
    pub fn parse(query: &str) -> Self {
        let pairs = query.split('&').filter(|pair| !pair.is_empty());
        let decoded = pairs.map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            (decode(name, true), decode(value, true))
        });
        Self(decoded.collect())
    }

    /// The first value; empty if absent.
    pub fn text(&self, name: &str) -> &str {
        self.get(name).unwrap_or_default()
    }

    /// The first value.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0
            .iter()
            .find(|(key, _)| key == name)
            .map(|(_, value)| value.as_str())
    }

    /// Every name with its value.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }

    /// Every value of a parameter.
    pub fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.0
            .iter()
            .filter(move |(key, _)| key == name)
            .map(|(_, value)| value.as_str())
    }

    /// A boolean: absent, `0` and `false` are false, anything else is true.
    pub fn flag(&self, name: &str) -> Option<bool> {
        self.get(name)
            .map(|value| !matches!(value.to_ascii_lowercase().as_str(), "false" | "0"))
    }

    /// A number.
    ///
    /// # Errors
    /// 400 if it is not one.
    pub fn number(&self, name: &str) -> Result<Option<i64>, Status> {
        match self.get(name) {
            None | Some("") => Ok(None),
            Some(value) => value
                .parse()
                .map(Some)
                .map_err(|_| Status::bad_request(format!("query parameter {name}={value:?} is not a number"))),
        }
    }
}

/// Percent-decoding; `+` is a space in query strings. What is not UTF-8 is replaced.
pub fn decode(text: &str, plus: bool) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        match (byte, after) {
            (b'%', [high, low, tail @ ..]) if high.is_ascii_hexdigit() && low.is_ascii_hexdigit() => {
                bytes.push(nibble(*high) << 4 | nibble(*low));
                rest = tail;
            }
            (b'+', _) if plus => bytes.push(b' '),
            _ => bytes.push(byte),
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn nibble(digit: u8) -> u8 {
    match digit {
        b'0'..=b'9' => digit - b'0',
        _ => (digit | 0x20) - b'a' + 10,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_decoded() {
        let params = Params::parse("labelSelector=a%3Db%2Cc&watch=1&x&command=ls&command=-l+a&bad=%zz&limit=5");
        assert_eq!(params.text("labelSelector"), "a=b,c");
        assert_eq!(params.flag("watch"), Some(true));
        assert_eq!(params.flag("x"), Some(true));
        assert_eq!(params.flag("none"), None);
        assert_eq!(params.all("command").collect::<Vec<_>>(), ["ls", "-l a"]);
        assert_eq!(params.text("bad"), "%zz");
        assert_eq!(params.number("limit").unwrap(), Some(5));
        assert_eq!(params.number("bad").unwrap_err().code, 400);
    }
}
