//! TokenRequest: a bound service-account token.
