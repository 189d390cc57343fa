//! A certificate's subject, exactly as it was asked for.
//!
//! rcgen keeps one value of each attribute, but users have one organization for each of their groups. So the certificate is made
//! by rcgen, its subject exchanged for the bytes of the request, and the result signed (RFC 5280, 4.1).

/// An element of DER (X.690): a tag and what it holds.
struct Element<'a> {
    tag: u8,
    content: &'a [u8],
    /// Tag and length included.
    whole: &'a [u8],
}

/// The first element, and what follows it.
fn split(der: &[u8]) -> Option<(Element<'_>, &[u8])> {
    let (&tag, rest) = der.split_first()?;
    let (&first, rest) = rest.split_first()?;
    let (length, rest) = if first < 0x80 {
        (usize::from(first), rest)
    } else {
        let (digits, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
        let length = digits.iter().try_fold(0usize, |length, digit| {
            length.checked_mul(256)?.checked_add(usize::from(*digit))
        })?;
        (length, rest)
    };
    let (content, after) = rest.split_at_checked(length)?;
    let whole = &der[..der.len() - after.len()];
    Some((Element { tag, content, whole }, after))
}

/// Appends an element.
fn put(out: &mut Vec<u8>, tag: u8, content: &[u8]) {
    out.push(tag);
    match u8::try_from(content.len()) {
        Ok(length) if length < 0x80 => out.push(length),
        _ => {
            let length = content.len().to_be_bytes();
            let digits: Vec<u8> = length.into_iter().skip_while(|digit| *digit == 0).collect();
            out.push(0x80 | u8::try_from(digits.len()).unwrap_or(0));
            out.extend(digits);
        }
    }
    out.extend(content);
}

/// Where the subject of a certificate is: after version, serial number, algorithm, issuer and validity.
pub(super) const OF_CERTIFICATE: usize = 5;

/// The certificate with another subject (a `Name` in DER), signed anew. `place`: which field of the signed part that is.
///
/// # Errors
/// It is no certificate, or `sign` refuses.
pub(super) fn exchange(
    certificate: &[u8],
    place: usize,
    subject: &[u8],
    sign: impl Fn(&[u8]) -> Result<Vec<u8>, String>,
) -> Result<Vec<u8>, String> {
    let malformed = || "the certificate that was made is malformed".to_owned();
    let (outer, _) = split(certificate).ok_or_else(malformed)?;
    let (body, rest) = split(outer.content).ok_or_else(malformed)?;
    let (algorithm, _) = split(rest).ok_or_else(malformed)?;
    let mut fields = Vec::with_capacity(certificate.len() + subject.len());
    let (mut rest, mut index) = (body.content, 0);
    while !rest.is_empty() {
        let (field, after) = split(rest).ok_or_else(malformed)?;
        fields.extend(if index == place { subject } else { field.whole });
        (rest, index) = (after, index + 1);
    }
    let mut signed = Vec::new();
    put(&mut signed, body.tag, &fields);
    let mut signature = vec![0];
    signature.extend(sign(&signed)?);
    signed.extend(algorithm.whole);
    put(&mut signed, 0x03, &signature);
    let mut whole = Vec::new();
    put(&mut whole, outer.tag, &signed);
    Ok(whole)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_are_written_as_they_are_read() {
        for length in [0, 1, 127, 128, 255, 256, 70_000] {
            let content = vec![7; length];
            let mut der = Vec::new();
            put(&mut der, 0x30, &content);
            der.push(9);
            let (element, rest) = split(&der).unwrap();
            assert_eq!((element.tag, element.content, rest), (0x30, &content[..], &[9][..]));
            assert_eq!(element.whole.len() + 1, der.len());
        }
        for damaged in [
            &[][..],
            &[0x30],
            &[0x30, 5, 1],
            &[0x30, 0x82, 1],
            &[0x30, 0x89, 1, 1, 1, 1, 1, 1, 1, 1, 1],
        ] {
            assert!(split(damaged).is_none(), "{damaged:?}");
        }
    }
}
