//! What the answer of an HTTP channel means.

use std::path::Path;
use std::time::Duration;

use super::config::Target;
use super::secret::{Secret, scrub};
use crate::sources::{Http, HttpError, Reply, chain, excerpt};

/// Longest that a `Retry-After` is followed; shortest; where it is none.
const AFTER_MAX: Duration = Duration::from_secs(900);
const AFTER_MIN: Duration = Duration::from_secs(1);
const AFTER_UNKNOWN: Duration = Duration::from_secs(30);
/// Of an answer, what is looked at; far more than what is shown.
const SAID_BYTES_MAX: usize = 16 * 1024;

/// What became of one try.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Sent {
    Taken,
    /// No use to try again.
    Dead(String),
    /// Not now. `after`: the other side says when; for the whole route.
    Later {
        why: String,
        after: Option<Duration>,
    },
}

/// Posts JSON; `secrets` are cut out of what comes back.
pub(crate) async fn post(
    http: &Http,
    target: &Target,
    ca_file: Option<&Path>,
    headers: &[(&'static str, String)],
    body: String,
    secrets: &[&Secret],
) -> Sent {
    match http.post(&target.base, &target.path, ca_file, headers, body).await {
        // Before it is cut: half a secret is one too.
        Ok(reply) => judge(&reply, |said| {
            let said = secrets.iter().fold(said.to_owned(), |said, secret| secret.scrub(&said));
            // A server may say the path back that it did not like.
            if target.path.len() > 1 { scrub(&said, &target.path) } else { said }
        }),
        Err(error) => failed(&error),
    }
}

pub(crate) fn judge(reply: &Reply, hide: impl Fn(&str) -> String) -> Sent {
    let status = reply.status.as_u16();
    if reply.status.is_success() {
        return Sent::Taken;
    }
    let said = excerpt(&hide(&String::from_utf8_lossy(reply.body.get(..SAID_BYTES_MAX).unwrap_or(&reply.body))));
    let why = if said.is_empty() { format!("HTTP {status}") } else { format!("HTTP {status}: {said}") };
    match status {
        429 => Sent::Later { why, after: Some(after(reply).unwrap_or(AFTER_UNKNOWN)) },
        408 | 500..=599 => Sent::Later { why, after: after(reply) },
        _ => Sent::Dead(why),
    }
}

/// Seconds; a date is taken as unknown.
fn after(reply: &Reply) -> Option<Duration> {
    let text = reply.retry_after.as_ref()?.trim();
    Some(text.parse().map_or(AFTER_UNKNOWN, Duration::from_secs).clamp(AFTER_MIN, AFTER_MAX))
}

fn failed(error: &HttpError) -> Sent {
    match error {
        // Where to is not said: it may repeat a secret.
        HttpError::Redirect { status, .. } => Sent::Dead(format!("HTTP {status}: a redirect, and a message is not sent elsewhere")),
        HttpError::File { .. } | HttpError::NoCertificate { .. } | HttpError::NoRoots | HttpError::Request(_) | HttpError::Setup(_) => {
            Sent::Dead(chain(error))
        }
        _ => Sent::Later { why: chain(error), after: None },
    }
}
