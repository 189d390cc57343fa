//! What becomes of links, in pages as they come in pieces.

use flate2::Compression;
use flate2::write::GzEncoder;

use super::*;

fn place() -> Place {
    Place {
        prefix: "/p/proxy".to_owned(),
        server: "10.0.0.1:80".to_owned(),
        front: "api:6443".to_owned(),
    }
}

#[test]
fn absolute_paths_go_below_the_prefix() {
    let put = |address| place().put(address);
    let some = |address: &str| Some(address.to_owned());
    assert_eq!(put("/x?y#z"), some("/p/proxy/x?y#z"));
    assert_eq!(put("http://10.0.0.1:80/x"), some("/p/proxy/x"));
    assert_eq!(put("//10.0.0.1:80/x"), some("/p/proxy/x"));
    assert_eq!(put("https://api:6443/x"), some("https://api:6443/p/proxy/x"));
    assert_eq!(put("/p/proxyless"), some("/p/proxy/p/proxyless"));
}

#[test]
fn what_is_relative_elsewhere_or_right_already_stays() {
    for address in [
        "x",
        "?a",
        "#a",
        "",
        "mailto:a@b/c",
        "http://elsewhere/x",
        "//elsewhere/x",
        "/p/proxy/x",
        "/p/proxy",
        "http://10.0.0.1:80",
    ] {
        assert_eq!(place().put(address), None, "{address}");
    }
}

#[test]
fn redirections_stay_in_the_proxy() {
    let mut headers = HeaderMap::new();
    put_location(&mut headers, &place());
    assert!(headers.is_empty());
    headers.insert(header::LOCATION, HeaderValue::from_static("/login?next=/"));
    put_location(&mut headers, &place());
    assert_eq!(headers[header::LOCATION], "/p/proxy/login?next=/");
}

/// The page rewritten, given in pieces of `size` bytes.
fn rewritten(page: &str, size: usize) -> String {
    let mut rewriter = Rewriter::new(place());
    let mut out = Vec::new();
    for chunk in page.as_bytes().chunks(size) {
        out.extend_from_slice(&rewriter.next(chunk));
    }
    out.extend_from_slice(&rewriter.end());
    String::from_utf8(out).unwrap()
}

#[test]
fn pages_are_rewritten_however_they_come() {
    let cases = [
        (r#"<a href="/x">/x</a>"#, r#"<a href="/p/proxy/x">/x</a>"#),
        ("<A class=b HREF = '/x' >", "<A class=b HREF = '/p/proxy/x' >"),
        ("<img src=/x usemap=/y/>", "<img src=/p/proxy/x usemap=/p/proxy/y/>"),
        (
            r#"<p href="/x"><a name="/x" href="y">"#,
            r#"<p href="/x"><a name="/x" href="y">"#,
        ),
        (
            r#"<!-- <a href="/x"> --><a href="/x">"#,
            r#"<!-- <a href="/x"> --><a href="/p/proxy/x">"#,
        ),
        (
            r#"<script src="/s">if (a<b) w('<a href="/x">')</script><a href="/x">"#,
            r#"<script src="/p/proxy/s">if (a<b) w('<a href="/x">')</script><a href="/p/proxy/x">"#,
        ),
        (
            r#"<a title="a > b" href="/x">"#,
            r#"<a title="a > b" href="/p/proxy/x">"#,
        ),
        ("1 < 2 <a href=/x", "1 < 2 <a href=/x"),
        ("<a href=\"/x", "<a href=\"/x"),
    ];
    for (page, expected) in cases {
        for size in [1, 2, 3, 7, 1000] {
            assert_eq!(rewritten(page, size), expected, "{page} in pieces of {size}");
        }
    }
}

#[test]
fn a_tag_without_end_does_not_fill_memory() {
    let mut rewriter = Rewriter::new(place());
    let mut given = rewriter.next(b"<a href=\"").len();
    for _ in 0..64 {
        given += rewriter.next(&[b'x'; 4096]).len();
    }
    assert!(rewriter.pending.len() <= TAG_MAX + 4096 && given > 0);
}

#[test]
fn only_html_is_touched_and_codings_are_taken_off() {
    let mut headers = HeaderMap::new();
    assert!(Page::of(&mut headers, &place()).is_none());
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    assert!(Page::of(&mut headers, &place()).is_none());
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("text/html; charset=utf-8"),
    );
    headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static("br"));
    assert!(Page::of(&mut headers, &place()).is_none());
    headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from_static("9"));
    let mut page = Page::of(&mut headers, &place()).unwrap();
    assert_eq!(headers.len(), 1);
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(b"<a href=/x>").unwrap();
    let bytes = Bytes::from(encoder.finish().unwrap());
    let mut out = page.next(Some(&bytes)).to_vec();
    out.extend_from_slice(&page.next(None));
    assert_eq!(out, b"<a href=/p/proxy/x>");
}
