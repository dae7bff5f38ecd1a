//! PagerDuty's Events API v2: incidents by deduplication key, and change events,
//! which inform and wake nobody.

use serde_json::{Value, json};
use tidegate_rollout::notices::Notice;
use tidegate_rollout::process::Topic;
use tidegate_rollout::status::rfc3339;

use super::config::{Pagerduty, Target};
use super::secret::Secret;
use super::send::{Sent, post};
use crate::sources::Http;

const KEY_CHARS: usize = 32;
const SUMMARY_CHARS_MAX: usize = 1_024;
const DEDUP_CHARS_MAX: usize = 255;

/// Which of the two doors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Door {
    Event,
    Change,
}

impl Door {
    const fn path(self) -> &'static str {
        match self {
            Self::Event => "/v2/enqueue",
            Self::Change => "/v2/change/enqueue",
        }
    }
}

/// Sent once more from the beginning if one of them fails: a repeated event falls
/// into the same incident.
pub(super) async fn send(http: &Http, pagerduty: &Pagerduty, notice: &Notice) -> Sent {
    let key = match pagerduty.key.read().await {
        Ok(key) => key,
        Err(why) => return Sent::Dead(why),
    };
    if key.expose().len() != KEY_CHARS || !key.expose().bytes().all(|c| c.is_ascii_alphanumeric()) {
        return Sent::Dead(format!(
            "{} is not a routing key of the Events API v2: those have {KEY_CHARS} letters and digits",
            pagerduty.key
        ));
    }
    for (door, event) in events(notice, &key) {
        let path = format!("{}{}", pagerduty.url.path, door.path());
        let target = Target { base: pagerduty.url.clone(), path };
        let sent = post(http, &target, pagerduty.ca_file.as_deref(), &[], event.to_string(), &[&key]).await;
        if sent != Sent::Taken {
            return sent;
        }
    }
    Sent::Taken
}

pub(super) fn events(notice: &Notice, key: &Secret) -> Vec<(Door, Value)> {
    let key = key.expose();
    let summary = cut(&notice.title, SUMMARY_CHARS_MAX);
    let source = format!("tidegate rollout {}", notice.rollout);
    let details = json!({
        "text": notice.text,
        "rollout": notice.rollout,
        "release": notice.release,
        "environment": notice.environment,
        "event": notice.key,
    });
    let mut out: Vec<(Door, Value)> = Vec::new();
    for over in &notice.resolves {
        out.push((Door::Event, json!({"routing_key": key, "event_action": "resolve", "dedup_key": cut(over, DEDUP_CHARS_MAX)})));
    }
    if let Some(raises) = &notice.raises {
        let payload = json!({
            "summary": summary,
            "source": source,
            "severity": notice.severity.word(),
            "timestamp": rfc3339(notice.at.0),
            "component": notice.release,
            "group": notice.environment.as_deref().unwrap_or("tidegate"),
            "class": notice.topic.word(),
            "custom_details": details,
        });
        out.push((
            Door::Event,
            json!({"routing_key": key, "event_action": "trigger", "dedup_key": cut(raises, DEDUP_CHARS_MAX), "client": "Tidegate", "payload": payload}),
        ));
    }
    let informs = match notice.topic {
        Topic::Started | Topic::Stage | Topic::Completed => true,
        // Back, all of it.
        Topic::Rollback => notice.raises.is_none(),
        Topic::Issue | Topic::Paused => false,
    };
    if informs {
        let payload = json!({"summary": summary, "source": source, "timestamp": rfc3339(notice.at.0), "custom_details": details});
        out.push((Door::Change, json!({"routing_key": key, "payload": payload})));
    }
    out
}

fn cut(text: &str, most: usize) -> String {
    text.chars().take(most).collect()
}
