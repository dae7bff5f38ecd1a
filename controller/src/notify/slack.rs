//! Incoming webhooks of Slack: `text` always, blocks for those that show them.

use serde_json::{Value, json};
use tidegate_rollout::notices::Notice;
use tidegate_rollout::status::rfc3339;

use super::config::{Slack, Target};
use super::send::{Sent, post};
use crate::sources::Http;

/// Slack takes 40,000; more than this nobody reads.
const TEXT_CHARS_MAX: usize = 3_000;
const SECTION_CHARS_MAX: usize = 3_000;
const HEADER_CHARS_MAX: usize = 150;

pub(super) async fn send(http: &Http, slack: &Slack, notice: &Notice) -> Sent {
    let url = match slack.url.read().await {
        Ok(url) => url,
        Err(why) => return Sent::Dead(why),
    };
    let target = match Target::parse(url.expose()) {
        Ok(target) => target,
        Err(why) => return Sent::Dead(format!("the URL in {}: {why}", slack.url)),
    };
    post(http, &target, slack.ca_file.as_deref(), &[], payload(notice).to_string(), &[&url]).await
}

pub(super) fn payload(notice: &Notice) -> Value {
    let about = format!("{} · {} · rollout {} · {}", notice.topic.word(), notice.severity.word(), notice.rollout, rfc3339(notice.at.0));
    json!({
        "text": escaped(&format!("{}\n{}", notice.title, notice.text), TEXT_CHARS_MAX),
        "blocks": [
            {"type": "header", "text": {"type": "plain_text", "text": escaped(&notice.title, HEADER_CHARS_MAX), "emoji": false}},
            {"type": "section", "text": {"type": "mrkdwn", "text": escaped(&notice.text, SECTION_CHARS_MAX)}},
            {"type": "context", "elements": [{"type": "mrkdwn", "text": escaped(&about, SECTION_CHARS_MAX)}]},
        ],
    })
}

/// Nothing in it is a mention or a link; at most so many characters, and never half
/// an escape.
pub(super) fn escaped(text: &str, most: usize) -> String {
    let (mut out, mut length) = (String::with_capacity(text.len()), 0);
    for c in text.chars() {
        let mut own = [0; 4];
        let piece: &str = match c {
            '&' => "&amp;",
            '<' => "&lt;",
            '>' => "&gt;",
            c => c.encode_utf8(&mut own),
        };
        let chars = piece.chars().count();
        // Room for the sign that something is missing.
        if length + chars >= most {
            out.push('…');
            return out;
        }
        out.push_str(piece);
        length += chars;
    }
    out
}
