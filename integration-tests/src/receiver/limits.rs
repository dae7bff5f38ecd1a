//! What the real services take, by their published limits.
//!
//! Slack: docs.slack.dev, incoming webhooks and the reference of blocks.
//! PagerDuty: developer.pagerduty.com, Events API v2 and change events.

use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};

use ring::hmac;
use serde_json::{Map, Value};

use super::WEBHOOK_SECRET;

/// Slack: longest `text`, characters.
const SLACK_TEXT_MAX: usize = 40_000;
const SLACK_BLOCKS_MAX: usize = 50;
const SLACK_SECTION_MAX: usize = 3_000;
const SLACK_HEADER_MAX: usize = 150;
const SLACK_FIELDS_MAX: usize = 10;
const SLACK_FIELD_MAX: usize = 2_000;
/// PagerDuty: largest event, bytes.
const PAGERDUTY_BYTES_MAX: usize = 512 * 1024;
const PAGERDUTY_SUMMARY_MAX: usize = 1_024;
const PAGERDUTY_DEDUP_MAX: usize = 255;
const PAGERDUTY_KEY_LEN: usize = 32;
/// The header that carries time and signature.
const WEBHOOK_SIGNATURE: &str = "tidegate-signature";
/// Seconds after which a signed time is taken for a replay.
const WEBHOOK_AGE_MAX: u64 = 60;

/// What is asked, by its path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// An incoming webhook of Slack.
    Slack,
    /// `/v2/enqueue`.
    PagerDuty,
    /// `/v2/change/enqueue`.
    PagerDutyChange,
    /// A generic webhook.
    Webhook,
    /// A page.
    Page,
}

type Checked = Result<(), String>;

impl Kind {
    /// By the path.
    #[must_use]
    pub fn of(path: &str) -> Self {
        let beginnings = [
            ("/slack", Self::Slack),
            ("/v2/enqueue", Self::PagerDuty),
            ("/v2/change/enqueue", Self::PagerDutyChange),
            ("/webhook", Self::Webhook),
        ];
        beginnings.into_iter().find(|(beginning, _)| path.starts_with(beginning)).map_or(Self::Page, |(_, kind)| kind)
    }

    pub(super) fn fine(self) -> u16 {
        match self {
            Self::PagerDuty | Self::PagerDutyChange => 202,
            Self::Slack | Self::Webhook | Self::Page => 200,
        }
    }

    /// What the real service says with a status.
    pub(super) fn body(self, status: u16) -> String {
        let slack = match status {
            200 => "ok",
            400 => "invalid_payload",
            403 => "action_prohibited",
            404 => "no_service",
            410 => "channel_is_archived",
            429 => "rate_limited",
            _ => "rollup_error",
        };
        match (self, status) {
            (Self::Slack, _) => slack.to_owned(),
            (Self::PagerDuty, 202) => r#"{"status":"success","message":"Event processed","dedup_key":"k"}"#.to_owned(),
            (Self::PagerDutyChange, 202) => r#"{"status":"success","message":"Change event processed"}"#.to_owned(),
            (Self::PagerDuty | Self::PagerDutyChange, 400) => {
                r#"{"status":"invalid event","message":"Event object is invalid","errors":["invalid"]}"#.to_owned()
            }
            (Self::PagerDuty | Self::PagerDutyChange, 429) => {
                r#"{"status":"throttle exceeded","message":"Requests for this service are arriving too quickly"}"#.to_owned()
            }
            _ => format!("status {status}\n"),
        }
    }

    /// Why the real service would refuse it.
    pub(super) fn problem(self, method: &str, headers: &BTreeMap<String, String>, body: &[u8], json: &Value) -> Option<String> {
        if self == Self::Page {
            return None;
        }
        let checked = envelope(method, headers, json).and_then(|object| match self {
            Self::Slack => slack(object),
            Self::PagerDuty => pagerduty(object, body),
            Self::PagerDutyChange => change(object, body),
            Self::Webhook => webhook(headers, body),
            Self::Page => Ok(()),
        });
        checked.err()
    }
}

fn wanted(holds: bool, otherwise: impl FnOnce() -> String) -> Checked {
    if holds { Ok(()) } else { Err(otherwise()) }
}

fn envelope<'a>(method: &str, headers: &BTreeMap<String, String>, json: &'a Value) -> Result<&'a Map<String, Value>, String> {
    wanted(method == "POST", || format!("{method} where POST is due"))?;
    let kind = headers.get("content-type").map_or("", String::as_str);
    wanted(kind.starts_with("application/json"), || format!("content type {kind:?}"))?;
    json.as_object().ok_or_else(|| "no JSON object".to_owned())
}

fn string<'a>(object: &'a Map<String, Value>, key: &str, longest: usize) -> Result<&'a str, String> {
    let text = object.get(key).and_then(Value::as_str).ok_or_else(|| format!("no text `{key}`"))?;
    let length = text.chars().count();
    wanted(length > 0 && length <= longest, || format!("`{key}` has {length} characters, 1 to {longest} are taken"))?;
    Ok(text)
}

fn known(object: &Map<String, Value>, keys: &[&str]) -> Checked {
    let unknown = object.keys().find(|key| !keys.contains(&key.as_str()));
    wanted(unknown.is_none(), || format!("an unknown key {unknown:?}"))
}

fn slack(object: &Map<String, Value>) -> Checked {
    string(object, "text", SLACK_TEXT_MAX)?;
    let Some(blocks) = object.get("blocks") else { return Ok(()) };
    let blocks = blocks.as_array().ok_or("`blocks` is no list")?;
    wanted(blocks.len() <= SLACK_BLOCKS_MAX, || format!("{} blocks", blocks.len()))?;
    blocks.iter().try_for_each(slack_block)
}

fn slack_block(block: &Value) -> Checked {
    let block = block.as_object().ok_or("a block is no object")?;
    let text = |value: &Value, longest: usize, kinds: &[&str]| -> Checked {
        let object = value.as_object().ok_or("a text is no object")?;
        let kind = object.get("type").and_then(Value::as_str).unwrap_or_default();
        wanted(kinds.contains(&kind), || format!("a text of type {kind:?}"))?;
        string(object, "text", longest).map(drop)
    };
    match block.get("type").and_then(Value::as_str).unwrap_or_default() {
        "divider" => Ok(()),
        "header" => text(block.get("text").unwrap_or(&Value::Null), SLACK_HEADER_MAX, &["plain_text"]),
        "section" => {
            let fields = block.get("fields").map(|fields| fields.as_array().ok_or("`fields` is no list")).transpose()?;
            wanted(block.contains_key("text") || fields.is_some(), || "a section without text and fields".to_owned())?;
            if let Some(value) = block.get("text") {
                text(value, SLACK_SECTION_MAX, &["mrkdwn", "plain_text"])?;
            }
            let fields = fields.map(Vec::as_slice).unwrap_or_default();
            wanted(fields.len() <= SLACK_FIELDS_MAX, || format!("{} fields", fields.len()))?;
            fields.iter().try_for_each(|field| text(field, SLACK_FIELD_MAX, &["mrkdwn", "plain_text"]))
        }
        "context" => {
            let elements = block.get("elements").and_then(Value::as_array).ok_or("a context without elements")?;
            wanted((1..=10).contains(&elements.len()), || format!("{} elements", elements.len()))
        }
        other => Err(format!("a block of type {other:?}")),
    }
}

fn routing_key(object: &Map<String, Value>, body: &[u8]) -> Checked {
    wanted(body.len() <= PAGERDUTY_BYTES_MAX, || format!("{} bytes", body.len()))?;
    let key = string(object, "routing_key", PAGERDUTY_KEY_LEN)?;
    wanted(key.len() == PAGERDUTY_KEY_LEN && key.bytes().all(|c| c.is_ascii_alphanumeric()), || {
        "a routing key has 32 letters and digits".to_owned()
    })
}

fn pagerduty(object: &Map<String, Value>, body: &[u8]) -> Checked {
    routing_key(object, body)?;
    known(object, &["routing_key", "event_action", "dedup_key", "payload", "images", "links", "client", "client_url"])?;
    let action = string(object, "event_action", 16)?;
    wanted(["trigger", "acknowledge", "resolve"].contains(&action), || format!("event_action {action:?}"))?;
    if action != "trigger" || object.contains_key("dedup_key") {
        string(object, "dedup_key", PAGERDUTY_DEDUP_MAX)?;
    }
    let Some(payload) = object.get("payload") else {
        return wanted(action != "trigger", || "a trigger without payload".to_owned());
    };
    let payload = payload.as_object().ok_or("`payload` is no object")?;
    known(payload, &["summary", "source", "severity", "timestamp", "component", "group", "class", "custom_details"])?;
    string(payload, "summary", PAGERDUTY_SUMMARY_MAX)?;
    string(payload, "source", 4_096)?;
    let severity = string(payload, "severity", 16)?;
    wanted(["critical", "error", "warning", "info"].contains(&severity), || format!("severity {severity:?}"))?;
    timestamp(payload)
}

fn change(object: &Map<String, Value>, body: &[u8]) -> Checked {
    routing_key(object, body)?;
    known(object, &["routing_key", "payload", "links", "images"])?;
    let payload = object.get("payload").and_then(Value::as_object).ok_or("no payload")?;
    known(payload, &["summary", "source", "timestamp", "custom_details"])?;
    string(payload, "summary", PAGERDUTY_SUMMARY_MAX)?;
    timestamp(payload)
}

fn timestamp(payload: &Map<String, Value>) -> Checked {
    match payload.get("timestamp") {
        None => Ok(()),
        Some(value) => {
            let parsed = value.as_str().and_then(|text| text.parse::<jiff::Timestamp>().ok());
            wanted(parsed.is_some(), || format!("timestamp {value} is not RFC 3339"))
        }
    }
}

/// `t=UNIX,v1=HEX`: HEX is the HMAC-SHA256 of `UNIX.BODY`.
fn webhook(headers: &BTreeMap<String, String>, body: &[u8]) -> Checked {
    let given = headers.get(WEBHOOK_SIGNATURE).ok_or_else(|| format!("no {WEBHOOK_SIGNATURE}"))?;
    let parts = given.strip_prefix("t=").and_then(|rest| rest.split_once(",v1="));
    let (at, hex) = parts.ok_or_else(|| format!("the signature {given:?} is not t=UNIX,v1=HEX"))?;
    let seconds: u64 = at.parse().map_err(|_| format!("{at:?} is no time"))?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    wanted(now.abs_diff(seconds) <= WEBHOOK_AGE_MAX, || format!("signed at {seconds}, now it is {now}: it may be a replay"))?;
    let digit = |at: usize| hex.get(at..at + 2).and_then(|two| u8::from_str_radix(two, 16).ok());
    let tag: Option<Vec<u8>> = (0..hex.len()).step_by(2).map(digit).collect();
    let key = hmac::Key::new(hmac::HMAC_SHA256, WEBHOOK_SECRET.as_bytes());
    let signed: Vec<u8> = [at.as_bytes(), b".", body].concat();
    let holds = tag.is_some_and(|tag| hmac::verify(&key, &signed, &tag).is_ok());
    wanted(holds, || "the signature is not that of time and body".to_owned())?;
    wanted(headers.get("idempotency-key").is_some_and(|key| !key.is_empty()), || "no idempotency-key".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(path: &str, json: &Value) -> Option<String> {
        let body = json.to_string();
        let headers = BTreeMap::from([("content-type".to_owned(), "application/json".to_owned())]);
        Kind::of(path).problem("POST", &headers, body.as_bytes(), json)
    }

    #[test]
    fn what_slack_takes_and_what_not() {
        let section =
            |text: String| serde_json::json!({"text": "t", "blocks": [{"type": "section", "text": {"type": "mrkdwn", "text": text}}]});
        assert_eq!(problem("/slack/T/B/x", &section("a".repeat(3_000))), None);
        assert!(problem("/slack/T/B/x", &section("a".repeat(3_001))).is_some());
        assert!(problem("/slack/T/B/x", &serde_json::json!({"blocks": []})).is_some());
        assert!(problem("/slack/T/B/x", &serde_json::json!({"text": "a".repeat(40_001)})).is_some());
        let blocks = vec![serde_json::json!({"type": "divider"}); 51];
        assert!(problem("/slack/T/B/x", &serde_json::json!({"text": "t", "blocks": blocks})).is_some());
    }

    #[test]
    fn what_pagerduty_takes_and_what_not() {
        let good = serde_json::json!({"routing_key": "0123456789abcdef0123456789abcdef", "event_action": "trigger", "dedup_key": "k",
            "payload": {"summary": "s", "source": "tidegate", "severity": "critical", "timestamp": "2026-11-24T01:02:03Z"}});
        assert_eq!(problem("/v2/enqueue", &good), None);
        for (pointer, bad) in [
            ("/routing_key", serde_json::json!("short")),
            ("/event_action", serde_json::json!("page")),
            ("/dedup_key", serde_json::json!("k".repeat(256))),
            ("/payload/summary", serde_json::json!("s".repeat(1_025))),
            ("/payload/severity", serde_json::json!("fatal")),
            ("/payload/source", serde_json::json!("")),
            ("/payload/timestamp", serde_json::json!("yesterday")),
            ("/payload/custom_details", serde_json::json!("x".repeat(600_000))),
        ] {
            let mut event = good.clone();
            event["payload"]["custom_details"] = serde_json::json!({});
            *event.pointer_mut(pointer).unwrap() = bad;
            assert!(problem("/v2/enqueue", &event).is_some(), "{pointer}");
        }
        let resolve = serde_json::json!({"routing_key": "0123456789abcdef0123456789abcdef", "event_action": "resolve"});
        assert!(problem("/v2/enqueue", &resolve).is_some(), "a resolve needs its key");
        let change = serde_json::json!({"routing_key": "0123456789abcdef0123456789abcdef", "payload": {"summary": "s"}});
        assert_eq!(problem("/v2/change/enqueue", &change), None);
    }

    #[test]
    fn a_webhook_must_be_signed_over_its_time_and_body() {
        let body = br#"{"a":1}"#;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        let signed = |at: u64| {
            let key = hmac::Key::new(hmac::HMAC_SHA256, WEBHOOK_SECRET.as_bytes());
            let tag = hmac::sign(&key, &[at.to_string().as_bytes(), b".", body].concat());
            let hex: String = tag.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
            BTreeMap::from([
                (WEBHOOK_SIGNATURE.to_owned(), format!("t={at},v1={hex}")),
                ("idempotency-key".to_owned(), "run/started".to_owned()),
            ])
        };
        assert_eq!(webhook(&signed(now), body), Ok(()));
        assert!(webhook(&signed(now), br#"{"a":2}"#).is_err());
        assert!(webhook(&signed(now - 3_600), body).is_err());
        assert!(webhook(&BTreeMap::new(), body).is_err());
    }
}
