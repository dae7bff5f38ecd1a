//! Alerts that fire, as Alertmanager's API (version 2) lists them.
//!
//! <https://github.com/prometheus/alertmanager/blob/main/api/v2/openapi.yaml>

use std::collections::BTreeMap;

use hyper::StatusCode;
use serde::Deserialize;

use super::base::Base;
use super::http::Http;
use super::{chain, excerpt, read_off};

#[derive(Deserialize)]
struct Alert {
    fingerprint: String,
    labels: BTreeMap<String, String>,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
}

/// Alerts that fire and match, silenced and inhibited ones left out: fingerprint →
/// `name (labels): summary`.
pub(super) async fn alerts(http: &Http, base: &Base, matchers: &[String]) -> Result<BTreeMap<String, String>, String> {
    let asked = format!("{base}: the list of alerts");
    let mut query = vec![("active", "true"), ("silenced", "false"), ("inhibited", "false")];
    query.extend(matchers.iter().map(|m| ("filter", m.as_str())));
    let reply = http.ask(base, "/api/v2/alerts", &query).await.map_err(|e| format!("{asked} was not answered: {}", chain(&e)))?;
    read_off(reply, move |reply| read(reply.status, &reply.body, &asked)).await?
}

fn read(status: StatusCode, body: &[u8], asked: &str) -> Result<BTreeMap<String, String>, String> {
    if !status.is_success() {
        return Err(format!("{asked} was answered with HTTP {}: {}", status.as_u16(), excerpt(&String::from_utf8_lossy(body))));
    }
    let alerts: Vec<Alert> = serde_json::from_slice(body)
        .map_err(|e| format!("{asked} was answered with what is not Alertmanager's JSON ({e}): is the URL right?"))?;
    Ok(alerts.into_iter().map(|a| (a.fingerprint.chars().take(64).collect(), text(&a))).collect())
}

fn text(alert: &Alert) -> String {
    let name = alert.labels.get("alertname").map_or("alert", String::as_str);
    let rest: Vec<String> = alert.labels.iter().filter(|(k, _)| *k != "alertname").map(|(k, v)| format!("{k}={v}")).collect();
    let labels = if rest.is_empty() { String::new() } else { format!(" ({})", rest.join(", ")) };
    let summary = alert.annotations.get("summary").or_else(|| alert.annotations.get("description"));
    excerpt(&format!("{name}{labels}{}", summary.map_or_else(String::new, |s| format!(": {s}"))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alerts_read_as_people_would_say_them() {
        let body = r#"[{"fingerprint":"f1","labels":{"alertname":"High5xx","job":"shop","instance":"a"},"annotations":{"summary":"many\nerrors"},"status":{"state":"active"}},
            {"fingerprint":"f2","labels":{"alertname":"Bare"}}]"#;
        let alerts = read(StatusCode::OK, body.as_bytes(), "A").unwrap();
        assert_eq!(alerts["f1"], "High5xx (instance=a, job=shop): many errors");
        assert_eq!(alerts["f2"], "Bare");
        assert_eq!(read(StatusCode::OK, b"[]", "A").unwrap(), BTreeMap::new());
        let refused = read(StatusCode::BAD_REQUEST, b"\"bad matcher format: x\"", "A").unwrap_err();
        assert!(refused.contains("HTTP 400") && refused.contains("bad matcher format"), "{refused}");
        assert!(read(StatusCode::OK, b"{}", "A").unwrap_err().contains("is the URL right?"));
    }
}
