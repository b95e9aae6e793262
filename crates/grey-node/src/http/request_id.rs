//! Names requests, so that what logs say of one can be found: at the server that was asked, and at the one that it was passed on to.

use std::sync::atomic::{AtomicU64, Ordering};

use axum::http::{HeaderMap, HeaderName, HeaderValue};

/// In which header a request, and its answer, has its name.
pub(super) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// The longest name that is taken over, in bytes.
const LONGEST_BYTES: usize = 64;

static NEXT: AtomicU64 = AtomicU64::new(1);

/// The name that whoever asks gave the request, where that is plain; otherwise a new one: of the server, the time and a number.
pub(super) fn request_id(headers: &HeaderMap, server: u64, wall_ms: u64) -> HeaderValue {
    let plain = |given: &&HeaderValue| {
        let bytes = given.as_bytes();
        let is_plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_.".contains(byte);
        (1..=LONGEST_BYTES).contains(&bytes.len()) && bytes.iter().all(is_plain)
    };
    if let Some(given) = headers.get(REQUEST_ID).filter(plain) {
        return given.clone();
    }
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let name = format!("{server:x}-{wall_ms:x}-{number:x}");
    HeaderValue::try_from(name).unwrap_or_else(|_| HeaderValue::from_static("unnamed"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;

    fn named(given: Option<&str>) -> String {
        let mut headers = HeaderMap::new();
        if let Some(given) = given {
            headers.insert(REQUEST_ID, HeaderValue::from_str(given).unwrap());
        }
        request_id(&headers, 3, 0x1000).to_str().unwrap().to_owned()
    }

    #[test]
    fn a_plain_name_is_taken_over_and_anything_else_gets_another() {
        assert_eq!(named(Some("trace-1.A_b")), "trace-1.A_b");
        for wrong in ["", "a b", "a\"b", "a/b", &"x".repeat(65)] {
            assert!(named(Some(wrong)).starts_with("3-1000-"), "{wrong}");
        }
        assert_ne!(named(None), named(None));
    }
}
