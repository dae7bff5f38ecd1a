//! JSON over HTTP, signed: `Tidegate-Signature: t=UNIX,v1=HEX`, where HEX is the
//! HMAC-SHA256 of `UNIX.BODY` under the route's secret. `Idempotency-Key` is the
//! same whenever the same notice is sent again.

use ring::hmac;
use serde_json::{Value, json};
use tidegate_rollout::notices::Notice;
use tidegate_rollout::status::rfc3339;

use super::config::{Target, UrlAt, Webhook};
use super::secret::Secret;
use super::send::{Sent, post};
use crate::sources::Http;

/// Of the body.
const SCHEMA: u32 = 1;

pub(super) async fn send(http: &Http, webhook: &Webhook, notice: &Notice) -> Sent {
    let secret = match webhook.secret.read().await {
        Ok(secret) => secret,
        Err(why) => return Sent::Dead(why),
    };
    let (target, url) = match &webhook.url {
        UrlAt::Open(target) => (target.clone(), None),
        UrlAt::Secret(at) => {
            let read = at.read().await.and_then(|url| {
                let target = Target::parse(url.expose()).map_err(|why| format!("the URL in {at}: {why}"))?;
                Ok((target, Some(url)))
            });
            match read {
                Ok(read) => read,
                Err(why) => return Sent::Dead(why),
            }
        }
    };
    let body = payload(notice).to_string();
    let headers = [("tidegate-signature", signature(&secret, super::unix_now().as_secs(), &body)), ("idempotency-key", identity(notice))];
    let secrets: Vec<&Secret> = std::iter::once(&secret).chain(&url).collect();
    post(http, &target, webhook.ca_file.as_deref(), &headers, body, &secrets).await
}

/// One name for one notice, an id that is used again after a refusal included.
pub(super) fn identity(notice: &Notice) -> String {
    format!("{}/{}/{}", notice.rollout, notice.since.0, notice.key)
}

pub(super) fn signature(secret: &Secret, at: u64, body: &str) -> String {
    let key = hmac::Key::new(hmac::HMAC_SHA256, secret.expose().as_bytes());
    let tag = hmac::sign(&key, format!("{at}.{body}").as_bytes());
    let hex: String = tag.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    format!("t={at},v1={hex}")
}

pub(super) fn payload(notice: &Notice) -> Value {
    json!({
        "schema": SCHEMA,
        "id": identity(notice),
        "key": notice.key,
        "rollout": notice.rollout,
        "release": notice.release,
        "environment": notice.environment,
        "topic": notice.topic,
        "severity": notice.severity.word(),
        "title": notice.title,
        "text": notice.text,
        "at": rfc3339(notice.at.0),
        "raises": notice.raises,
        "resolves": notice.resolves,
    })
}
