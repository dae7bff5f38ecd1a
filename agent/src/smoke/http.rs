//! GET: the status and, if wanted, a text in the body. Redirects are not
//! followed, for a redirect is what was seen.

use http_body_util::{BodyExt, Empty};
use hyper::Uri;
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;

use super::{Attempt, Beside, connect, is_loopback};
use crate::context::Context;
use crate::error::chain;

/// A body is read up to here, bytes; a wanted text must stand before it.
const BODY_BYTES_MAX: usize = 1024 * 1024;
/// Of a body that a message quotes, characters.
const EXCERPT_CHARS: usize = 120;

/// Where to go, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Target {
    uri: Uri,
    host: String,
    port: u16,
}

/// How much of a body is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Body {
    /// Its beginning, so many bytes; the rest is not waited for.
    Keep(usize),
    /// Nothing but its end.
    Drain,
}

/// What came back.
#[derive(Debug)]
pub(crate) struct Got {
    pub(crate) status: u16,
    pub(crate) body: Vec<u8>,
    /// More came than was kept.
    pub(crate) cut: bool,
}

/// Why nothing, or nothing whole, came back.
#[derive(Debug, thiserror::Error)]
pub(crate) enum GetError {
    #[error("cannot connect")]
    Connect(#[source] std::io::Error),
    #[error(transparent)]
    Exchange(#[from] hyper::Error),
}

/// Reads a URL and asks local policy.
pub(crate) fn allowed(ctx: &Context, url: &str) -> Result<Target, String> {
    let uri: Uri = url.parse().map_err(|_| format!("{url:?} is not a URL"))?;
    if uri.scheme_str() != Some("http") {
        return Err(format!("{url:?}: only http:// is spoken; test TLS with an `exec` test"));
    }
    let authority = uri.authority().ok_or_else(|| format!("{url:?} names no host"))?;
    if authority.as_str().contains('@') {
        return Err(format!("{url:?} carries a user name; ship a program and use an `exec` test"));
    }
    let host = authority.host().to_owned();
    let port = authority.port_u16().unwrap_or(80);
    // A server may make one path of `/health/../admin` before it looks.
    if !is_loopback(&host) && climbs(uri.path()) {
        return Err(format!("{url:?} goes up: beyond this host, write the path without `..` and %2e"));
    }
    if !is_loopback(&host) && !ctx.policy.urls.iter().any(|listed| covers(listed, &uri)) {
        return Err(format!("{url} is not on this host: add it to urls in [policy] of agent.toml to let it be called"));
    }
    Ok(Target { uri, host, port })
}

/// Whether a listed URL has the same scheme and authority and a path above.
fn covers(listed: &str, uri: &Uri) -> bool {
    let Ok(listed) = listed.parse::<Uri>() else { return false };
    let authority = |uri: &Uri| uri.authority().map(|a| (a.host().to_ascii_lowercase(), a.port_u16().unwrap_or(80)));
    let below = listed.path().trim_end_matches('/');
    listed.scheme() == uri.scheme()
        && authority(&listed) == authority(uri)
        && uri.path().strip_prefix(below).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// Whether a path has a segment `..`, as a server may cut it, or a dot that only a
/// server makes out of it.
fn climbs(path: &str) -> bool {
    let path = path.to_ascii_lowercase().replace("%2f", "/").replace("%5c", "/");
    path.contains("%2e") || path.split(['/', '\\', ';']).any(|segment| segment == "..")
}

pub(super) async fn attempt(beside: &Beside<'_>, url: &str, status: u16, body: Option<&str>) -> Result<String, Attempt> {
    let url = beside.expand(url)?;
    let wanted = body.map(|text| beside.expand(text)).transpose()?;
    let target = allowed(beside.ctx, &url).map_err(Attempt::Never)?;
    let got = get(&target, None, Body::Keep(BODY_BYTES_MAX)).await;
    let Got { status: seen, body, .. } = got.map_err(|e| Attempt::Fail(format!("GET {url} → {}", chain(&e))))?;
    let text = String::from_utf8_lossy(&body);
    let excerpt = excerpt(&text);
    if seen != status {
        return Err(Attempt::Fail(format!("GET {url} → {seen}, {status} wanted{excerpt}")));
    }
    match wanted {
        Some(wanted) if !text.contains(&wanted) => {
            Err(Attempt::Fail(format!("GET {url} → {seen}, but no {wanted:?} in the body{excerpt}")))
        }
        _ => Ok(format!("GET {url} → {seen}")),
    }
}

/// One request on a connection of its own. Dropping the future drops that too.
pub(crate) async fn get(target: &Target, accept: Option<&'static str>, wanted: Body) -> Result<Got, GetError> {
    let stream = connect(&target.host, target.port).await.map_err(GetError::Connect)?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let host = target.uri.authority().map_or("", |a| a.as_str());
    let path = target.uri.path_and_query().map_or("/", |p| p.as_str());
    let mut request = hyper::Request::get(path).header("host", host).header("user-agent", "tidegate-agent").header("connection", "close");
    if let Some(accept) = accept {
        request = request.header("accept", accept);
    }
    // Every part was parsed from a URL, so this cannot fail; if it does, the
    // server answers an empty request with an error that is then seen.
    let request = request.body(Empty::<Bytes>::new()).unwrap_or_default();
    let max = if let Body::Keep(max) = wanted { max } else { 0 };
    let exchange = async {
        let mut response = sender.send_request(request).await?;
        let (mut body, mut cut) = (Vec::new(), false);
        while let Some(frame) = response.body_mut().frame().await {
            if let Some(data) = frame?.data_ref() {
                let room = max.saturating_sub(body.len());
                body.extend_from_slice(data.get(..room.min(data.len())).unwrap_or_default());
                cut |= data.len() > room;
            }
            if cut && wanted != Body::Drain {
                break;
            }
        }
        Ok(Got { status: response.status().as_u16(), body, cut })
    };
    tokio::pin!(exchange);
    tokio::pin!(connection);
    // In one task: dropping the attempt drops the connection.
    tokio::select! {
        done = &mut exchange => done,
        closed = &mut connection => {
            closed?;
            exchange.await
        }
    }
}

fn excerpt(text: &str) -> String {
    let text = text.trim();
    if text.is_empty() {
        return String::new();
    }
    let cut: String = text.chars().take(EXCERPT_CHARS).collect();
    let more = if cut.len() < text.len() { "…" } else { "" };
    format!("; the body: {cut}{more}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::context::tests::{context, scratch};

    #[test]
    fn only_loopback_and_listed_urls_are_called() {
        let dir = scratch();
        let mut ctx = context(dir.path());
        ctx.policy.urls = vec!["http://db.internal:9000/health".into(), "http://lb".into()];
        let good = [
            "http://127.0.0.1:8080/",
            "http://127.9.9.9/",
            "http://[::1]:81/x",
            "http://localhost/x?y",
            "http://db.internal:9000/health",
            "http://DB.internal:9000/health/deep?x",
            "http://lb:80/any",
            "http://lb/api/queues/%2f/a..b/...?x=../%2e%2e",
            // On this host nothing is closed to begin with.
            "http://127.0.0.1/a/../%2e%2e/b",
        ];
        for url in good {
            assert!(allowed(&ctx, url).is_ok(), "{url}");
        }
        let bad = [
            "https://127.0.0.1/",
            "http://10.0.0.1/",
            "http://127.0.0.1@evil/",
            "http://localhost.evil/",
            "http://db.internal:9000/healthy",
            "http://db.internal:9000/",
            "http://db.internal:9001/health",
            "http://lb.evil/",
            "http://db.internal:9000/health/..",
            "http://db.internal:9000/health/../admin",
            "http://db.internal:9000/health/..;/admin",
            "http://db.internal:9000/health/%2e%2e/admin",
            "http://db.internal:9000/health/.%2E/admin",
            "http://db.internal:9000/health/..%2Fadmin",
            "http://db.internal:9000/health/..\\admin",
            "http://lb/..",
            "/x",
            "127.0.0.1:80",
        ];
        for url in bad {
            assert!(allowed(&ctx, url).is_err(), "{url}");
        }
    }
}
