//! What every observer works with: the host, what is measured, and since when.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use super::subject::Subject;
use crate::context::{Context, Installed};
use crate::service::{Process, Services, unix_ms};
use crate::smoke::http::{self, Target};

/// Said while nothing is installed.
pub(super) const NOT_INSTALLED: &str = "not installed yet";

/// One observer's place.
pub(super) struct Bench {
    pub(super) ctx: Arc<Context>,
    pub(super) services: Services,
    pub(super) subject: watch::Receiver<Subject>,
    pub(super) every: Duration,
    /// When this observer began, Unix milliseconds.
    pub(super) began: u64,
    /// The process that is counted for.
    counted: Option<Process>,
}

impl Bench {
    pub(super) fn new(ctx: Arc<Context>, services: Services, subject: watch::Receiver<Subject>, every: Duration) -> Self {
        Self { ctx, services, subject, every, began: unix_ms(), counted: None }
    }

    /// Waits until the component was looked at; false if nobody looks any more.
    pub(super) async fn ready(&mut self) -> bool {
        self.subject.wait_for(|subject| subject.seen).await.is_ok()
    }

    /// What is seen now.
    pub(super) fn now(&mut self) -> Subject {
        self.subject.borrow_and_update().clone()
    }

    /// Waits for another sight; for ever if nobody looks any more.
    pub(super) async fn changed(&mut self) {
        if self.subject.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Whether counting begins anew: another main process than before. One that is
    /// gone is only replaced by the next.
    pub(super) fn another(&mut self, subject: &Subject) -> bool {
        let Some(process) = subject.process else { return false };
        let before = self.counted.replace(process);
        before.is_some_and(|before| before != process)
    }

    /// Whether the process that is counted for is gone, and none has been seen since.
    pub(super) fn ended(&self, subject: &Subject) -> bool {
        self.counted.is_some_and(|counted| subject.process != Some(counted) || !counted.alive())
    }

    /// When counting began: with this observer, or with a process that is younger.
    pub(super) fn since(&self) -> u64 {
        self.counted.map_or(self.began, |process| process.started_at_unix_ms.max(self.began))
    }

    /// When the service's own counting began.
    pub(super) fn since_process(&self) -> u64 {
        self.counted.map_or(self.began, |process| process.started_at_unix_ms)
    }

    pub(super) fn expand(&self, installed: &Installed, text: &str) -> Result<String, String> {
        self.ctx.expand_in(installed, text).map_err(|e| e.to_string())
    }

    /// A URL that local policy allows, as it is written and where it leads.
    pub(super) fn target(&self, installed: Option<&Installed>, url: &str) -> Result<(String, Target), String> {
        let installed = installed.ok_or_else(|| NOT_INSTALLED.to_owned())?;
        let url = self.expand(installed, url)?;
        let target = http::allowed(&self.ctx, &url)?;
        Ok((url, target))
    }
}
