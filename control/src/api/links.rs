//! Links in what a proxied server answers: absolute paths are put below the path at which the API server serves it, so that
//! a browser stays in the proxy.
//!
//! As `k8s.io/apimachinery/pkg/util/proxy` does it: the header `Location`, and the attributes of HTML elements that hold an
//! address. Pages are rewritten while they pass; nothing but attribute values changes, and a tag too long to be one is left
//! as it is.

use std::io::Write as _;

use bytes::{Bytes, BytesMut};
use flate2::write::{GzDecoder, ZlibDecoder};
use http::{HeaderMap, HeaderValue, header};

/// The longest tag that is understood, bytes.
const TAG_MAX: usize = 64 << 10;

/// Where a proxied server appears to its client.
#[derive(Clone, Debug)]
pub struct Place {
    /// The path of the API server that stands for the server's `/`, without a slash at its end.
    pub prefix: String,
    /// The server's own authority.
    pub server: String,
    /// The API server's authority, as the client wrote it.
    pub front: String,
}

impl Place {
    /// The address as the client must ask for it; `None` if it is right as it is: relative, or of another server.
    pub fn put(&self, address: &str) -> Option<String> {
        let (scheme, authority, path) = divide(address)?;
        let here = authority.is_empty() || authority == self.server || authority == self.front;
        if !here || !path.starts_with('/') {
            return None;
        }
        // An address that names the API server itself keeps its name; the server's own is unknown to the client.
        let kept = if authority.is_empty() || authority == self.server {
            String::new()
        } else {
            format!("{scheme}//{authority}")
        };
        let below = path
            .strip_prefix(&self.prefix)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with(['/', '?', '#']));
        let put = if below {
            format!("{kept}{path}")
        } else {
            format!("{kept}{}{path}", self.prefix)
        };
        (put != address).then_some(put)
    }
}

/// Scheme with its colon, authority, and the rest (RFC 3986, appendix B); `None` for `mailto:` and its like.
fn divide(address: &str) -> Option<(&str, &str, &str)> {
    let before_path = &address[..address.find(['/', '?', '#']).unwrap_or(address.len())];
    let (scheme, rest) = match before_path.find(':') {
        Some(colon) => address.split_at(colon + 1),
        None => ("", address),
    };
    let Some(hierarchical) = rest.strip_prefix("//") else {
        return scheme.is_empty().then_some(("", "", rest));
    };
    let end = hierarchical.find(['/', '?', '#']).unwrap_or(hierarchical.len());
    let (authority, path) = hierarchical.split_at(end);
    Some((scheme, authority, path))
}

/// Puts the header `Location` right.
pub fn put_location(headers: &mut HeaderMap, place: &Place) {
    let location = headers.get(header::LOCATION).and_then(|value| value.to_str().ok());
    let put = location.and_then(|location| place.put(location));
    if let Some(value) = put.and_then(|put| HeaderValue::from_str(&put).ok()) {
        headers.insert(header::LOCATION, value);
    }
}

/// A page on its way to the client.
pub struct Page {
    decoder: Decoder,
    rewriter: Rewriter,
}

impl Page {
    /// For an answer with these headers; `None` if it is not HTML, or in a coding that is not known here. The headers are
    /// changed to what the rewritten page is: of unknown length and without coding.
    pub fn of(headers: &mut HeaderMap, place: &Place) -> Option<Self> {
        let media = headers.get(header::CONTENT_TYPE)?.to_str().ok()?;
        if media.split(';').next().map(str::trim) != Some("text/html") {
            return None;
        }
        let coding = match headers.get(header::CONTENT_ENCODING) {
            None => "",
            Some(coding) => coding.to_str().ok()?,
        };
        let decoder = match coding {
            "" | "identity" => Decoder::Plain,
            "gzip" => Decoder::Gzip(GzDecoder::new(Vec::new())),
            "deflate" => Decoder::Deflate(ZlibDecoder::new(Vec::new())),
            _ => return None,
        };
        headers.remove(header::CONTENT_ENCODING);
        headers.remove(header::CONTENT_LENGTH);
        let rewriter = Rewriter::new(place.clone());
        Some(Page { decoder, rewriter })
    }

    /// What the client gets for the next bytes of the server; for `None`, the end, the rest.
    pub fn next(&mut self, bytes: Option<&Bytes>) -> Bytes {
        match bytes {
            Some(bytes) => {
                let plain = self.decoder.next(bytes);
                self.rewriter.next(&plain)
            }
            None => self.rewriter.end(),
        }
    }
}

enum Decoder {
    Plain,
    Gzip(GzDecoder<Vec<u8>>),
    Deflate(ZlibDecoder<Vec<u8>>),
}

impl Decoder {
    /// Decoded bytes; of a page that is damaged, those before the damage.
    fn next(&mut self, bytes: &Bytes) -> Bytes {
        let plain = match self {
            Decoder::Plain => return bytes.clone(),
            Decoder::Gzip(decoder) => {
                let _ = decoder.write_all(bytes).and_then(|()| decoder.flush());
                std::mem::take(decoder.get_mut())
            }
            Decoder::Deflate(decoder) => {
                let _ = decoder.write_all(bytes).and_then(|()| decoder.flush());
                std::mem::take(decoder.get_mut())
            }
        };
        Bytes::from(plain)
    }
}

/// Divides HTML into text and tags, as far as is needed to find the tags.
struct Rewriter {
    place: Place,
    pending: BytesMut,
    /// The element whose text is not HTML and that only its own end tag ends.
    raw: Option<&'static [u8]>,
}

impl Rewriter {
    fn new(place: Place) -> Self {
        Rewriter {
            place,
            pending: BytesMut::new(),
            raw: None,
        }
    }

    fn next(&mut self, bytes: &[u8]) -> Bytes {
        self.pending.extend_from_slice(bytes);
        let mut out = BytesMut::with_capacity(self.pending.len());
        loop {
            match self.piece() {
                Piece::Plain(length) => out.extend_from_slice(&self.pending.split_to(length)),
                Piece::Tag(length) => {
                    let tag = self.pending.split_to(length);
                    self.raw = raw_text(name(&tag));
                    rewrite_tag(&tag, &self.place, &mut out);
                }
                Piece::Incomplete => return out.freeze(),
            }
        }
    }

    fn end(&mut self) -> Bytes {
        self.pending.split().freeze()
    }

    /// What stands at the beginning of the pending bytes.
    fn piece(&mut self) -> Piece {
        let text = &self.pending[..];
        let Some(start) = find(text, b"<") else {
            return if text.is_empty() {
                Piece::Incomplete
            } else {
                Piece::Plain(text.len())
            };
        };
        if start > 0 {
            return Piece::Plain(start);
        }
        if let Some(name) = self.raw {
            return match ends_raw(text, name) {
                Some(true) => {
                    self.raw = None;
                    Piece::Plain(1)
                }
                Some(false) => Piece::Plain(1),
                None => Piece::Incomplete,
            };
        }
        let found = match text {
            [b'<'] | [b'<', b'!'] | [b'<', b'!', b'-'] => None,
            [b'<', b'!', b'-', b'-', rest @ ..] => find(rest, b"-->").map(|at| Piece::Plain(at + 7)),
            [b'<', b'a'..=b'z' | b'A'..=b'Z', ..] => tag_end(text).map(Piece::Tag),
            _ => Some(Piece::Plain(1)),
        };
        match found {
            Some(piece) => piece,
            None if text.len() > TAG_MAX => Piece::Plain(1),
            None => Piece::Incomplete,
        }
    }
}

/// So many bytes of one kind.
enum Piece {
    Plain(usize),
    Tag(usize),
    Incomplete,
}

/// Elements whose content is not markup (HTML, section 13.1.2).
fn raw_text(name: &[u8]) -> Option<&'static [u8]> {
    const RAW: [&[u8]; 8] = [
        b"script",
        b"style",
        b"textarea",
        b"title",
        b"xmp",
        b"iframe",
        b"noembed",
        b"noframes",
    ];
    RAW.into_iter().find(|raw| name.eq_ignore_ascii_case(raw))
}

/// Whether the end tag of `name` stands here; `None` if more bytes are needed to say.
fn ends_raw(text: &[u8], name: &[u8]) -> Option<bool> {
    let (slash, rest) = text.get(1..)?.split_first()?;
    if *slash != b'/' {
        return Some(false);
    }
    let shared = rest.len().min(name.len());
    if !rest[..shared].eq_ignore_ascii_case(&name[..shared]) {
        return Some(false);
    }
    (shared == name.len()).then_some(true)
}

fn find(text: &[u8], wanted: &[u8]) -> Option<usize> {
    text.windows(wanted.len()).position(|window| window == wanted)
}

/// Length of the tag: up to the first `>` outside of quotes.
fn tag_end(text: &[u8]) -> Option<usize> {
    let mut quote = None;
    let mut after_equals = false;
    for (at, byte) in text.iter().enumerate() {
        match (quote, byte) {
            (Some(open), byte) if open == *byte => quote = None,
            (None, b'"' | b'\'') if after_equals => quote = Some(*byte),
            (None, b'>') => return Some(at + 1),
            _ => {}
        }
        if !byte.is_ascii_whitespace() {
            after_equals = *byte == b'=';
        }
    }
    None
}

/// A tag's name.
fn name(tag: &[u8]) -> &[u8] {
    let name = tag.get(1..).unwrap_or_default();
    let end = name
        .iter()
        .position(|byte| byte.is_ascii_whitespace() || matches!(byte, b'/' | b'>'));
    &name[..end.unwrap_or(name.len())]
}

/// Attributes of an element that hold an address.
fn addresses(element: &[u8]) -> &'static [&'static str] {
    match &*element.to_ascii_lowercase() {
        b"a" | b"area" | b"base" | b"link" => &["href"],
        b"applet" => &["codebase"],
        b"audio" | b"embed" | b"script" | b"source" => &["src"],
        b"blockquote" | b"del" | b"ins" | b"q" => &["cite"],
        b"body" => &["background"],
        b"button" => &["formaction"],
        b"command" => &["icon"],
        b"form" => &["action"],
        b"frame" | b"iframe" => &["longdesc", "src"],
        b"head" => &["profile"],
        b"html" => &["manifest"],
        b"img" => &["longdesc", "src", "usemap"],
        b"input" => &["src", "usemap"],
        b"object" => &["classid", "codebase", "data", "usemap"],
        b"video" => &["poster", "src"],
        _ => &[],
    }
}

/// Copies a tag, its addresses put right.
fn rewrite_tag(tag: &[u8], place: &Place, out: &mut BytesMut) {
    let wanted = addresses(name(tag));
    let mut copied = 0;
    let mut at = 1 + name(tag).len();
    while let Some(attribute) = (!wanted.is_empty()).then(|| Attribute::after(tag, at)).flatten() {
        at = attribute.end;
        let value = std::str::from_utf8(&tag[attribute.value.clone()]).unwrap_or_default();
        let named = |name: &&str| tag[attribute.name.clone()].eq_ignore_ascii_case(name.as_bytes());
        if let Some(put) = wanted.iter().find(|name| named(name)).and_then(|_| place.put(value)) {
            out.extend_from_slice(&tag[copied..attribute.value.start]);
            out.extend_from_slice(put.as_bytes());
            copied = attribute.value.end;
        }
    }
    out.extend_from_slice(&tag[copied..]);
}

/// Where an attribute's parts are in its tag.
struct Attribute {
    name: std::ops::Range<usize>,
    value: std::ops::Range<usize>,
    end: usize,
}

impl Attribute {
    /// The next attribute at or after `at` (HTML, section 13.2.5.32 and following).
    fn after(tag: &[u8], at: usize) -> Option<Self> {
        let skip = |mut at: usize, skipped: fn(&u8) -> bool| {
            while tag.get(at).is_some_and(skipped) {
                at += 1;
            }
            at
        };
        let space: fn(&u8) -> bool = u8::is_ascii_whitespace;
        let start = skip(at, |byte| byte.is_ascii_whitespace() || *byte == b'/');
        if matches!(tag.get(start), None | Some(b'>')) {
            return None;
        }
        let end = skip(start + 1, |byte| {
            !byte.is_ascii_whitespace() && !matches!(byte, b'/' | b'>' | b'=')
        });
        let equals = skip(end, space);
        if tag.get(equals) != Some(&b'=') {
            return Some(Attribute {
                name: start..end,
                value: end..end,
                end,
            });
        }
        let first = skip(equals + 1, space);
        let (value, end_of_value) = match tag.get(first) {
            Some(quote @ (b'"' | b'\'')) => {
                let length = tag[first + 1..].iter().position(|byte| byte == quote)?;
                (first + 1..first + 1 + length, first + 2 + length)
            }
            _ => {
                let last = skip(first, |byte| !byte.is_ascii_whitespace() && *byte != b'>');
                (first..last, last)
            }
        };
        Some(Attribute {
            name: start..end,
            value,
            end: end_of_value,
        })
    }
}

#[cfg(test)]
#[path = "links_tests.rs"]
mod tests;
