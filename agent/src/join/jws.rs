//! The signature on `cluster-info`: a JWS without its content (RFC 7515, appendix F), HMAC-SHA256 with the token's secret.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use sha2::{Digest as _, Sha256};

/// Bytes of a block of SHA-256.
const BLOCK: usize = 64;

/// Whether `signature` over `content` was made with the secret of the token `id`.
pub(super) fn is_signed(content: &str, signature: &str, id: &str, secret: &str) -> bool {
    let Some((header, mac)) = signature.split_once("..") else {
        return false;
    };
    let decoded = BASE64.decode(header).unwrap_or_default();
    let Ok(fields) = serde_json::from_slice::<serde_json::Value>(&decoded) else {
        return false;
    };
    if fields["alg"] != "HS256" || fields["kid"] != id {
        return false;
    }
    let signed = format!("{header}.{}", BASE64.encode(content));
    let expected = hmac(secret.as_bytes(), signed.as_bytes());
    let given = BASE64.decode(mac).unwrap_or_default();
    let difference = expected.iter().zip(&given).fold(0, |all, (a, b)| all | (a ^ b));
    given.len() == expected.len() && std::hint::black_box(difference) == 0
}

/// HMAC-SHA256 (RFC 2104).
fn hmac(key: &[u8], message: &[u8]) -> [u8; 32] {
    let mut block = [0u8; BLOCK];
    if key.len() > BLOCK {
        block[..32].copy_from_slice(&Sha256::digest(key));
    } else {
        block[..key.len()].copy_from_slice(key);
    }
    let inner = Sha256::new()
        .chain_update(block.map(|byte| byte ^ 0x36))
        .chain_update(message)
        .finalize();
    let outer = Sha256::new()
        .chain_update(block.map(|byte| byte ^ 0x5c))
        .chain_update(inner)
        .finalize();
    outer.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hmac_is_that_of_rfc_4231() {
        let hex = |bytes: [u8; 32]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        assert_eq!(
            hex(hmac(b"Jefe", b"what do ya want for nothing?")),
            "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"
        );
        assert_eq!(
            hex(hmac(
                &[0xaa; 131],
                b"Test Using Larger Than Block-Size Key - Hash Key First"
            )),
            "60e431591ee0b67f0d8a26aacbf5b77f8e0bc6213728c5140546040f0ee37f54"
        );
    }

    #[test]
    fn what_was_changed_is_not_signed() {
        let header = BASE64.encode(r#"{"alg":"HS256","kid":"abcdef"}"#);
        let mac = hmac(b"secret", format!("{header}.{}", BASE64.encode("text")).as_bytes());
        let signature = format!("{header}..{}", BASE64.encode(mac));
        assert!(is_signed("text", &signature, "abcdef", "secret"));
        assert!(!is_signed("other", &signature, "abcdef", "secret"));
        assert!(!is_signed("text", &signature, "bcdefg", "secret"));
        assert!(!is_signed("text", &signature, "abcdef", "guess"));
        for odd in [
            "",
            "..",
            &format!("{header}.."),
            &format!("{header}.x.{}", BASE64.encode(mac)),
        ] {
            assert!(!is_signed("text", odd, "abcdef", "secret"), "{odd}");
        }
    }
}
