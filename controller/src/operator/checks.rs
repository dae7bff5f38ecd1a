//! What is looked up outside of the core before a plan's checklist is judged: files
//! of the depot, earlier runbooks, dashboards.
//!
//! Owns: bounded time and bounded reading. Must not: judge what was found.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::sync::Arc;
use std::time::Duration;

use tidegate_protocol::{Digest, Release};
use tidegate_rollout::readiness::Held;
use tokio::task::JoinSet;

use super::server::Ended;
use super::server::blocking;
use crate::depot::Depot;
use crate::sources::Sources;
use crate::store::Store;

/// Of one dashboard.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// Dashboards asked at once.
const ASKED_MAX: usize = 8;
/// Earlier releases whose runbooks are read, the newest ones.
const RELEASES_MAX: usize = 16;
/// So much of a text is read to see whether there is anything in it, bytes.
const TEXT_BYTES: u64 = 64 * 1024;

/// What was found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Checks {
    /// Of the plan's release.
    pub depot: Option<Held>,
    /// By URL: the status that it answered, or why it did not. Missing = not tried.
    pub dashboards: BTreeMap<String, Result<u16, String>>,
    /// Deployment runbooks of earlier releases of the same name, by manifest.
    pub runbooks: BTreeMap<Digest, Option<Digest>>,
}

/// Looks things up; cheap to clone.
#[derive(Clone, Debug)]
pub struct Checker {
    depot: Arc<Depot>,
    store: Store,
    sources: Sources,
}

impl Checker {
    /// With what the controller has.
    #[must_use]
    pub fn new(depot: Arc<Depot>, store: Store, sources: Sources) -> Self {
        Self { depot, store, sources }
    }

    /// Looks everything up for a release and the dashboards of plan and environment.
    /// `may_call`: whether whoever asks may have the URLs of a plan called.
    ///
    /// # Errors
    /// The store failed, or a task ended early.
    pub(crate) async fn check(&self, manifest: &Release, dashboards: &[String], may_call: bool) -> Result<Checks, Ended> {
        let name = manifest.name.clone();
        let mut rows = self.store.releases().await?;
        rows.retain(|row| row.release.id.name == name && row.release.id.version != manifest.version);
        rows.sort_by_key(|row| std::cmp::Reverse(row.imported_at));
        rows.truncate(RELEASES_MAX);
        let (depot, manifest) = (self.depot.clone(), manifest.clone());
        let looked = blocking(move || {
            let missing = depot.missing(&manifest.artifacts());
            let texts = [&manifest.notes, &manifest.runbook.deploy, &manifest.runbook.rollback];
            let blank: BTreeSet<Digest> = texts.into_iter().flatten().map(|f| f.digest).filter(|d| is_blank(&depot, *d)).collect();
            let runbook = |digest: Digest| match depot.manifest(digest) {
                Ok((release, _)) => Some((digest, release.runbook.deploy.map(|f| f.digest))),
                Err(error) => {
                    // Then the runbooks are not compared, and that is said.
                    tracing::warn!(%digest, %error, "the manifest of an earlier release cannot be read");
                    None
                }
            };
            (Held { missing, blank }, rows.into_iter().filter_map(|row| runbook(row.release.manifest)).collect())
        });
        let answers = async { if may_call { self.ask(dashboards).await } else { Ok(BTreeMap::new()) } };
        let ((held, runbooks), dashboards) = tokio::try_join!(looked, answers)?;
        Ok(Checks { depot: Some(held), dashboards, runbooks })
    }

    async fn ask(&self, dashboards: &[String]) -> Result<BTreeMap<String, Result<u16, String>>, Ended> {
        let mut left: Vec<String> = dashboards.iter().cloned().collect::<BTreeSet<_>>().into_iter().collect();
        let (mut flying, mut all) = (JoinSet::new(), BTreeMap::new());
        loop {
            while flying.len() < ASKED_MAX
                && let Some(url) = left.pop()
            {
                let sources = self.sources.clone();
                flying.spawn(async move {
                    let answer = sources.answers(&url, ANSWER_TIMEOUT).await;
                    (url, answer)
                });
            }
            match flying.join_next().await {
                None => return Ok(all),
                Some(Ok((url, answer))) => {
                    all.insert(url, answer);
                }
                Some(Err(error)) => {
                    // The one that ended early was not tried.
                    tracing::error!(%error, "a try of a dashboard ended early");
                }
            }
        }
    }
}

/// Nothing but white space. One that cannot be read is missing, not empty.
fn is_blank(depot: &Depot, digest: Digest) -> bool {
    let Ok(Some((file, size))) = depot.open_served(digest) else { return false };
    let mut text = Vec::new();
    size <= TEXT_BYTES && file.take(TEXT_BYTES).read_to_end(&mut text).is_ok() && text.trim_ascii().is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::test_manifest;
    use crate::store::ReleaseRow;
    use tidegate_protocol::release::FileRef;
    use tidegate_protocol::{ReleaseRef, Timestamp};

    fn text(depot: &Depot, text: &[u8]) -> FileRef {
        FileRef { path: "x.md".into(), digest: depot.put(text).unwrap(), size: text.len() as u64 }
    }

    #[tokio::test]
    async fn depot_texts_runbooks_and_dashboards_are_looked_at() {
        let dir = tempfile::tempdir().unwrap();
        let depot = Arc::new(Depot::open(dir.path()).unwrap());
        let (store, _) = Store::open(&dir.path().join("journal.db")).unwrap();
        // An earlier release, and one whose manifest was lost.
        let (_, mut old) = test_manifest("1");
        old.runbook.deploy = Some(text(&depot, b"how"));
        let old_digest = depot.put(&serde_json::to_vec(&old).unwrap()).unwrap();
        for (version, manifest) in [("1", old_digest), ("1.5", Digest::of(b"lost"))] {
            let release = ReleaseRef { id: format!("shop@{version}").parse().unwrap(), manifest };
            store.add_release(ReleaseRow { release, imported_at: Timestamp(1), imported_by: "ada".into() }).await.unwrap();
        }
        let (reference, mut new) = test_manifest("2");
        (new.notes, new.runbook.deploy) = (Some(text(&depot, b" \n\t\n")), Some(text(&depot, b"how")));
        depot.serve(reference.manifest, &new);
        let checker = Checker::new(depot.clone(), store, Sources::new([]));
        let page = "http://127.0.0.1:1/".to_owned();

        let found = checker.check(&new, std::slice::from_ref(&page), false).await.unwrap();
        let held = found.depot.unwrap();
        assert_eq!(held.missing, [new.components[0].files[0].digest], "the program itself was never brought");
        assert_eq!(held.blank, BTreeSet::from([new.notes.as_ref().unwrap().digest]));
        assert_eq!(found.runbooks, BTreeMap::from([(old_digest, old.runbook.deploy.as_ref().map(|f| f.digest))]));
        assert_eq!(found.dashboards, BTreeMap::new(), "whoever only looks has nothing called");
        let called = checker.check(&new, std::slice::from_ref(&page), true).await.unwrap();
        assert!(called.dashboards[&page].as_ref().is_err_and(|why| why.contains("connect")), "{:?}", called.dashboards);
    }
}
