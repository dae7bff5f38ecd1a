//! Telling people: Slack, e-mail, PagerDuty, webhooks.
//!
//! Owns: the routes of controller.toml and their secrets, what each channel is
//! sent, what its answer means, and the outbox that keeps trying. Must not: decide
//! what is told to whom (`tidegate_rollout::notices` does), or remember anything
//! over a restart: what the journal has no word on is submitted again.
//!
//! | answer | means |
//! |---|---|
//! | 2xx | taken |
//! | 429 | later, when `Retry-After` says; the whole route waits |
//! | 5xx, 408, a time-out, no connection | later: 1 s, doubling, at most 5 min, for a day |
//! | any other, a redirect, a secret that cannot be read | the route is out of order for this rollout |

mod config;
mod email;
mod outbox;
mod pagerduty;
mod secret;
mod send;
mod slack;
mod webhook;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use tidegate_protocol::Timestamp;
use tidegate_rollout::notices::{Notice, Severity};
use tidegate_rollout::process::{Topic, Via};
use tokio::task::JoinSet;
use tokio::time::timeout;

use self::config::Channel;
pub use self::config::Routes;
pub use self::outbox::{Outbox, Outcome};
use self::send::Sent;
use crate::sources::Http;

/// One try, from the name's look-up to the last byte.
const TRY_MAX: Duration = Duration::from_secs(20);

/// How a route answered a test.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouteResult {
    /// Its name.
    pub route: String,
    /// Its kind; none if there is no such route.
    pub via: Option<Via>,
    /// It took the message.
    pub ok: bool,
    /// What it said, or what is wrong.
    pub detail: String,
}

/// Speaks to all routes; cheap to clone.
#[derive(Clone, Debug)]
pub struct Notifier {
    routes: Arc<Routes>,
    http: Arc<Http>,
    /// Of one try.
    patience: Duration,
}

impl Notifier {
    /// With the routes of controller.toml.
    #[must_use]
    pub fn new(routes: Routes) -> Self {
        Self { routes: Arc::new(routes), http: Arc::new(Http::new([])), patience: TRY_MAX }
    }

    /// Names and kinds.
    #[must_use]
    pub fn known(&self) -> BTreeMap<String, Via> {
        self.routes.known()
    }

    /// Sends a test message over each of these routes, or over all if none is
    /// named, once. PagerDuty gets a change event: it checks the key and wakes
    /// nobody.
    pub async fn test(&self, routes: &[String]) -> Vec<RouteResult> {
        let known = self.known();
        let mut names: Vec<String> = if routes.is_empty() { known.keys().cloned().collect() } else { routes.to_vec() };
        let mut seen = std::collections::BTreeSet::new();
        names.retain(|name| seen.insert(name.clone()));
        let mut running = JoinSet::new();
        let mut out: BTreeMap<String, RouteResult> = BTreeMap::new();
        for name in &names {
            let via = known.get(name).copied();
            let detail = "its test ended early".to_owned();
            out.insert(name.clone(), RouteResult { route: name.clone(), via, ok: false, detail });
            let (own, name) = (self.clone(), name.clone());
            running.spawn(async move {
                let sent = own.send(&name, &test_notice(&name)).await;
                (name, sent)
            });
        }
        while let Some(done) = running.join_next().await {
            let Ok((name, sent)) = done else { continue };
            let Some(result) = out.get_mut(&name) else { continue };
            (result.ok, result.detail) = match sent {
                Sent::Taken => (true, "taken".to_owned()),
                Sent::Dead(why) | Sent::Later { why, .. } => (false, why),
            };
        }
        names.iter().filter_map(|name| out.remove(name)).collect()
    }

    /// One try.
    async fn send(&self, route: &str, notice: &Notice) -> Sent {
        let Some(channel) = self.routes.get(route) else {
            let known: Vec<String> = self.known().into_keys().collect();
            let known = if known.is_empty() { "it has none".to_owned() } else { format!("it has {}", known.join(", ")) };
            return Sent::Dead(format!("controller.toml has no route {route:?}; {known}"));
        };
        let sent = async {
            match channel {
                Channel::Slack(slack) => slack::send(&self.http, slack, notice).await,
                Channel::Email(email) => email::send(email, route, notice).await,
                Channel::Pagerduty(pagerduty) => pagerduty::send(&self.http, pagerduty, notice).await,
                Channel::Webhook(webhook) => webhook::send(&self.http, webhook, notice).await,
            }
        };
        timeout(self.patience, sent)
            .await
            .unwrap_or_else(|_| Sent::Later { why: format!("no answer within {} ms", self.patience.as_millis()), after: None })
    }
}

fn unix_now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

#[expect(clippy::expect_used, reason = "a constant name is well-formed")]
fn test_notice(route: &str) -> Notice {
    let at = Timestamp(u64::try_from(unix_now().as_millis()).unwrap_or(u64::MAX));
    let key = format!("test-{}", at.0);
    Notice {
        rollout: "notify-test".parse().expect("a rollout's id"),
        thread: key.clone(),
        key,
        since: at,
        topic: Topic::Started,
        severity: Severity::Info,
        title: format!("Tidegate: test of route {route}"),
        text: format!("This is a test of route {route}. Nothing happened, and nothing is to be done."),
        at,
        release: "none".into(),
        environment: None,
        raises: None,
        resolves: Vec::new(),
    }
}

#[cfg(test)]
mod tests;
