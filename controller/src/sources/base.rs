//! Base URLs of metrics servers: read strictly, compared exactly, so that a secret
//! goes nowhere but where controller.toml says.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use hyper::Uri;

/// `http://HOST[:PORT][/PATH]` or the same with `https`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Base {
    /// With TLS.
    pub https: bool,
    /// Lower case; an IPv6 address without its brackets.
    pub host: String,
    /// The scheme's own if the URL has none.
    pub port: u16,
    /// Without a slash at its end; empty for the root.
    pub path: String,
}

/// A text that is not a base URL.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a base URL ({why}): write http://HOST:PORT or https://HOST, with a path if the server has one")]
pub struct BadBase {
    /// What was given, without what may be a secret.
    pub text: String,
    /// What is wrong.
    pub why: &'static str,
}

impl FromStr for Base {
    type Err = BadBase;

    fn from_str(text: &str) -> Result<Self, BadBase> {
        // Whoever wrote a password there should not read it again in a log.
        let shown = || text.rsplit_once('@').map_or(text, |(_, rest)| rest).chars().take(200).collect();
        let bad = |why| BadBase { text: shown(), why };
        let uri: Uri = text.parse().map_err(|_| bad("it does not read"))?;
        let https = match uri.scheme_str() {
            Some("http") => false,
            Some("https") => true,
            _ => return Err(bad("it begins with neither http:// nor https://")),
        };
        let authority = uri.authority().ok_or_else(|| bad("it has no host"))?;
        if authority.as_str().contains('@') {
            return Err(bad("secrets belong into files that controller.toml names"));
        }
        if uri.query().is_some() || text.contains('#') {
            return Err(bad("it has a query"));
        }
        let path = uri.path().trim_end_matches('/');
        // Servers read `%2e` as a dot.
        if path.split('/').any(|part| part == ".." || part.to_ascii_lowercase().contains("%2e")) {
            return Err(bad("its path goes up"));
        }
        let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_ascii_lowercase();
        if host.is_empty() {
            return Err(bad("it has no host"));
        }
        let port = authority.port_u16().unwrap_or(if https { 443 } else { 80 });
        Ok(Self { https, host, port, path: path.to_owned() })
    }
}

impl Base {
    /// Whether `other` is this place or one below it.
    #[must_use]
    pub fn covers(&self, other: &Self) -> bool {
        let below = |rest: &str| rest.is_empty() || rest.starts_with('/');
        (self.https, &self.host, self.port) == (other.https, &other.host, other.port)
            && other.path.strip_prefix(self.path.as_str()).is_some_and(below)
    }

    /// This machine itself.
    #[must_use]
    pub fn is_loopback(&self) -> bool {
        self.host == "localhost" || self.host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
    }

    /// `HOST:PORT` for the request's header.
    #[must_use]
    pub fn authority(&self) -> String {
        let host = if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.clone() };
        let default = if self.https { 443 } else { 80 };
        if self.port == default { host } else { format!("{host}:{}", self.port) }
    }
}

impl fmt::Display for Base {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}{}", if self.https { "https" } else { "http" }, self.authority(), self.path)
    }
}

/// `%XX` for everything but what RFC 3986 calls unreserved.
pub(super) fn percent_encode(text: &str, into: &mut String) {
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
            into.push(char::from(byte));
        } else {
            into.push_str(&format!("%{byte:02X}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn base(text: &str) -> Base {
        text.parse().unwrap()
    }

    #[test]
    fn they_read_and_print_one_way() {
        for (text, wanted) in [
            ("http://127.0.0.1:9090/", "http://127.0.0.1:9090"),
            ("https://Prom.Example", "https://prom.example"),
            ("https://prom.example:443/a/b/", "https://prom.example/a/b"),
            ("http://[::1]:9090", "http://[::1]:9090"),
        ] {
            assert_eq!(base(text).to_string(), wanted);
        }
        for (text, why) in [
            ("prom:9090", "neither"),
            ("ftp://prom", "neither"),
            ("http://", ""),
            ("http://u:geheim@prom", "secrets"),
            ("http://prom/?a=b", "query"),
            ("http://prom/a/../b", "goes up"),
            ("http://prom/a/%2E%2e/b", "goes up"),
        ] {
            let error = text.parse::<Base>().unwrap_err().to_string();
            assert!(error.contains(why) && !error.contains("geheim"), "{error}");
        }
    }

    #[test]
    fn a_secret_is_only_for_its_place_and_below() {
        let place = base("https://prom.example/team");
        for inside in ["https://prom.example/team", "https://prom.example:443/team/", "https://PROM.example/team/a"] {
            assert!(place.covers(&base(inside)), "{inside}");
        }
        for outside in ["https://prom.example/teams", "https://prom.example", "http://prom.example/team", "https://prom.example:1/team"] {
            assert!(!place.covers(&base(outside)), "{outside}");
        }
        assert!(base("http://127.3.0.1").is_loopback() && base("http://[::1]:1").is_loopback() && base("http://localhost").is_loopback());
        assert!(!base("http://10.0.0.1").is_loopback() && !base("http://localhost.example").is_loopback());
    }

    #[test]
    fn queries_are_encoded() {
        let mut out = String::new();
        percent_encode("sum(a{b=~\"x|ü\"})", &mut out);
        assert_eq!(out, "sum%28a%7Bb%3D~%22x%7C%C3%BC%22%7D%29");
    }
}
