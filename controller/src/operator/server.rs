//! One operator's connection: a request per stream, authorised, answered.
//!
//! Owns: what needs the store or the depot (tokens, releases, event streams).
//! Everything about hosts and rollouts goes to the core.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tidegate_net::{FrameReceiver, FrameSender, PeerIdentity, StreamError, Token, close, quinn};
use tidegate_protocol::limits::OPERATOR_FRAME_BYTES_MAX;
use tidegate_protocol::{Digest, HostName, Millis};
use tidegate_rollout::{Spec, SpecError};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::authorize::{Needs, allows, authorize};
use super::checks::{Checker, Checks};
use super::doc::{MissingDoc, RouteDoc, TokenDoc, VersionDoc, rfc3339};
use super::msg::{ErrorCode, ErrorDoc, Frame, MISSING_DIGESTS_MAX, Request};
use super::papers::ItemChange;
use super::{audit, follow, gates, papers, releases, sign};
use crate::approvers::Approvers;
use crate::clock::Clock;
use crate::core::{CoreHandle, Prepared, Stopping, check_labels, json};
use crate::depot::Depot;
use crate::environment::Environment;
use crate::notify::Notifier;
use crate::registry::Labels;
use crate::sources::Sources;
use crate::store::{FleetRecord, NewToken, Store};
use crate::windows;

/// From the stream's opening to the whole request.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
/// Requests at once, over all operators.
const REQUESTS_MAX: usize = 128;
/// Those that follow a rollout last as long as it does: they have places of their
/// own, so that no number of watchers keeps a pause or a rollback out.
const FOLLOWERS_MAX: usize = 512;
/// Longest life of a token.
const TOKEN_TTL_MAX: Millis = Millis::from_secs(30 * 86_400);
/// Most hosts of one token.
const TOKEN_USES_MAX: u32 = 100_000;
/// Most routes tested by one request.
const ROUTES_MAX: usize = 64;
/// Largest plan.toml, bytes.
const SPEC_BYTES_MAX: usize = 1024 * 1024;

/// What every operator's connection shares; cheap to clone.
#[derive(Clone, Debug)]
pub struct Operators {
    pub(super) core: CoreHandle,
    pub(super) store: Store,
    pub(super) depot: Arc<Depot>,
    pub(super) sources: Sources,
    pub(super) clock: Clock,
    /// None: nobody was named in controller.toml.
    pub(super) approvers: Option<Arc<Approvers>>,
    /// None: nobody is told.
    notifier: Option<Notifier>,
    /// What controller.toml demands, by environment.
    environments: Arc<BTreeMap<String, Environment>>,
    /// One paper at a time: what it is numbered and judged by is read before.
    pub(super) desk: Arc<Semaphore>,
    /// The journal is read whole by one at a time.
    pub(super) auditing: Arc<Semaphore>,
    ca_pin: Digest,
    places: Arc<Semaphore>,
    followers: Arc<Semaphore>,
}

/// How a request's stream ended, when not with an answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Ended {
    /// The operator is told.
    #[error(transparent)]
    Told(#[from] ErrorDoc),
    /// Nobody can be told.
    #[error(transparent)]
    Stream(#[from] StreamError),
}

impl From<Stopping> for Ended {
    fn from(error: Stopping) -> Self {
        Self::Told(ErrorDoc::new(ErrorCode::Unavailable, error.to_string()).fix("try again in a few seconds"))
    }
}

impl From<crate::store::StoreError> for Ended {
    fn from(error: crate::store::StoreError) -> Self {
        tracing::error!(error = %chain(&error), "the store failed a request");
        Self::Told(ErrorDoc::new(ErrorCode::Internal, "the controller's store failed").cause(chain(&error)))
    }
}

impl From<crate::depot::DepotError> for Ended {
    fn from(error: crate::depot::DepotError) -> Self {
        tracing::error!(error = %chain(&error), "the depot failed a request");
        Self::Told(ErrorDoc::new(ErrorCode::Internal, "the controller's depot failed").cause(chain(&error)))
    }
}

pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut out = error.to_string();
    let mut next = error.source();
    while let Some(error) = next {
        out.push_str(": ");
        out.push_str(&error.to_string());
        next = error.source();
    }
    out
}

impl Operators {
    /// For all operators of a controller. `ca_pin` goes into tokens.
    #[must_use]
    pub fn new(core: CoreHandle, store: Store, depot: Arc<Depot>, sources: Sources, clock: Clock, ca_pin: Digest) -> Self {
        Self {
            core,
            store,
            depot,
            sources,
            clock,
            approvers: None,
            notifier: None,
            environments: Arc::default(),
            desk: Arc::new(Semaphore::new(1)),
            auditing: Arc::new(Semaphore::new(1)),
            ca_pin,
            places: Arc::new(Semaphore::new(REQUESTS_MAX)),
            followers: Arc::new(Semaphore::new(FOLLOWERS_MAX)),
        }
    }

    /// Those who may approve.
    #[must_use]
    pub fn with_approvers(mut self, approvers: Option<Approvers>) -> Self {
        self.approvers = approvers.map(Arc::new);
        self
    }

    /// Who tells people.
    #[must_use]
    pub fn with_notifier(mut self, notifier: Notifier) -> Self {
        self.notifier = Some(notifier);
        self
    }

    /// In these environments.
    #[must_use]
    pub fn within(mut self, environments: BTreeMap<String, Environment>) -> Self {
        self.environments = Arc::new(environments);
        self
    }

    /// Serves one connection until it ends. Streams that still run end with it.
    pub async fn serve(&self, connection: quinn::Connection, identity: PeerIdentity) {
        let identity = Arc::new(identity);
        let mut running = JoinSet::new();
        loop {
            tokio::select! {
                accepted = connection.accept_bi() => {
                    let Ok((send, recv)) = accepted else { return };
                    let (this, identity) = (self.clone(), identity.clone());
                    running.spawn(async move { this.stream(send, recv, &identity).await });
                }
                Some(_) = running.join_next() => {}
            }
        }
    }

    async fn stream(&self, send: quinn::SendStream, recv: quinn::RecvStream, identity: &PeerIdentity) {
        let (mut send, mut recv) = (FrameSender::new(send), FrameReceiver::new(recv));
        let request = match timeout(REQUEST_TIMEOUT, recv.receive::<Request>(OPERATOR_FRAME_BYTES_MAX)).await {
            Ok(Ok(Some(request))) => request,
            Ok(Ok(None)) => return,
            Ok(Err(error)) => {
                tracing::debug!(%error, "an operator's request does not read");
                let _ = send.send.reset(close::PROTOCOL);
                return;
            }
            Err(_) => {
                let _ = send.send.reset(close::PROTOCOL);
                return;
            }
        };
        // The stream may end while we work (Ctrl-C): then the work is of no use.
        let gone = send.send.stopped();
        let result = tokio::select! {
            result = self.answer(&mut send, &mut recv, request, identity) => result,
            _ = gone => return,
        };
        match result {
            Ok(()) => {}
            Err(Ended::Told(error)) => {
                let _ = send.send(&Frame::Error(error), OPERATOR_FRAME_BYTES_MAX).await;
            }
            Err(Ended::Stream(error)) => tracing::debug!(%error, "an operator's stream broke"),
        }
        send.finish();
    }

    async fn answer(
        &self,
        send: &mut FrameSender,
        recv: &mut FrameReceiver,
        request: Request,
        identity: &PeerIdentity,
    ) -> Result<(), Ended> {
        if let Err(denied) = authorize(identity, &request) {
            tracing::warn!(operator = %identity.name, needs = ?denied.needs, "a request was denied");
            let error = ErrorDoc::new(ErrorCode::Denied, denied.to_string());
            return Err(error.fix("ask an admin of this fleet for a profile with that role").into());
        }
        let follows = matches!(
            request,
            Request::RolloutEvents { .. } | Request::RolloutWatch { .. } | Request::RolloutWait { .. } | Request::AuditExport { .. }
        );
        let places = if follows { &self.followers } else { &self.places };
        let Ok(_place) = timeout(REQUEST_TIMEOUT, places.acquire()).await else {
            return Err(ErrorDoc::new(ErrorCode::Unavailable, "too many requests at once; try again").into());
        };
        match request {
            Request::RolloutEvents { id } => follow::events(self, send, id).await,
            Request::RolloutWatch { id, after_seq, stop_at_person } => follow::watch(self, send, id, after_seq, stop_at_person).await,
            Request::RolloutDocs { id } => papers::documents(self, send, id).await,
            Request::AuditExport { after_seq, rollout } => audit::export(self, send, after_seq, rollout).await,
            Request::RolloutWait { id, until, timeout } => follow::wait(self, send, id, &until, timeout).await,
            request => {
                let document = self.document(recv, request, identity).await?;
                send.send(&Frame::Document(document), OPERATOR_FRAME_BYTES_MAX).await?;
                Ok(send.send(&Frame::End { exit: 0 }, OPERATOR_FRAME_BYTES_MAX).await?)
            }
        }
    }

    async fn document(&self, recv: &mut FrameReceiver, request: Request, identity: &PeerIdentity) -> Result<String, Ended> {
        let by = identity.name.as_str();
        match request {
            Request::Version => Ok(json(&VersionDoc { version: env!("CARGO_PKG_VERSION").into() })?),
            Request::TokenCreate { host, labels, ttl, uses } => self.token(by, host, labels, ttl, uses).await,
            Request::ReleaseMissing { digests } => {
                if digests.len() > MISSING_DIGESTS_MAX {
                    return Err(too_many("digests", digests.len(), MISSING_DIGESTS_MAX));
                }
                let depot = self.depot.clone();
                let missing = blocking(move || digests.into_iter().filter(|d| depot.lacks(*d)).collect()).await?;
                Ok(json(&MissingDoc { missing })?)
            }
            Request::ReleaseUpload { files } => releases::upload(self, recv, files).await,
            Request::ReleaseImport { manifest } => releases::import(self, manifest, by).await,
            Request::ReleaseList => releases::list(self).await,
            Request::ReleaseShow { release } => releases::show(self, release).await,
            Request::RolloutPlan { ref spec_text, ref file_name } => {
                // The plan names the URLs: who only looks does not make the controller call them.
                let may_call = allows(identity, Needs::Operator);
                let prepared = self.checked(self.prepare(spec_text, file_name).await?, may_call).await?;
                let document = self.core.ask(by, request, Some(Box::new(prepared))).await??;
                gates::tried(self, document, may_call).await
            }
            Request::RolloutStart { ref spec_text, ref file_name, .. } => {
                let prepared = self.checked(self.prepare(spec_text, file_name).await?, true).await?;
                Ok(self.core.ask(by, request, Some(Box::new(prepared))).await??)
            }
            Request::RolloutDrill { ref spec_text, ref file_name, ref scope, .. } => {
                let prepared = Prepared { drill: Some(scope.clone()), ..self.prepare(spec_text, file_name).await? };
                Ok(self.core.ask(by, request, Some(Box::new(prepared))).await??)
            }
            Request::RolloutReplay { id, spec_text, file_name } => {
                let prepared = self.prepare(&spec_text, &file_name).await?;
                gates::replayed(self, id, prepared).await
            }
            Request::Payload { id, purpose } => sign::payload(self, id, purpose).await,
            Request::RolloutSign { id, purpose, signature } => sign::sign(self, by, id, purpose, signature).await,
            Request::RolloutNote { id, text, resolves } => papers::note(self, by, id, text, resolves).await,
            Request::RolloutItem { id, item, what, owner, status, eta } => {
                papers::item(self, by, id, ItemChange { item, what, owner, status, eta }).await
            }
            Request::RolloutHandoff { id } => papers::handoff(self, id).await,
            Request::RolloutReview { id, review_text, file_name } => papers::review(self, by, id, review_text, &file_name).await,
            Request::RolloutClose { id } => papers::close(self, by, id).await,
            Request::NotifyTest { routes } => self.notify_test(by, &routes).await,
            Request::AuditVerify => audit::verify(self).await,
            other => Ok(self.core.ask(by, other, None).await??),
        }
    }

    async fn token(&self, by: &str, host: Option<HostName>, labels: Labels, ttl: Millis, uses: u32) -> Result<String, Ended> {
        let usage = |message: String| ErrorDoc::new(ErrorCode::Usage, message);
        check_labels(&labels)?;
        if ttl < Millis::from_secs(1) || ttl > TOKEN_TTL_MAX {
            return Err(usage(format!("--ttl {ttl}: from 1s to 30d is wanted")).into());
        }
        if uses == 0 || uses > TOKEN_USES_MAX {
            return Err(usage(format!("--uses {uses}: from 1 to {TOKEN_USES_MAX} is wanted")).into());
        }
        if host.is_some() && uses != 1 {
            return Err(usage("--uses goes with tokens that are not bound to one host".into()).fix("leave out --host or --uses").into());
        }
        let token = Token::generate(self.ca_pin).map_err(|e| ErrorDoc::new(ErrorCode::Internal, "no random bytes").cause(e.to_string()))?;
        let now = self.clock.now();
        let expires = now + ttl;
        self.store.add_token(NewToken { hash: token.secret_hash(), host, labels, expires, uses, by: by.into() }, now).await?;
        tracing::info!(by, "an enrolment token was made");
        Ok(json(&TokenDoc { token: token.to_string(), expires_at: rfc3339(expires) })?)
    }

    /// A test message over each route; how it went is journaled.
    async fn notify_test(&self, by: &str, routes: &[String]) -> Result<String, Ended> {
        let Some(notifier) = &self.notifier else { return Ok(json(&Vec::<RouteDoc>::new())?) };
        if routes.len() > ROUTES_MAX {
            return Err(too_many("routes", routes.len(), ROUTES_MAX));
        }
        let known = notifier.known();
        if let Some(route) = routes.iter().find(|r| !known.contains_key(*r)) {
            let shown: String = route.chars().filter(|c| !c.is_control()).take(64).collect();
            let names: Vec<&str> = known.keys().map(String::as_str).collect();
            let names = if names.is_empty() { "none".into() } else { names.join(", ") };
            return Err(ErrorDoc::new(ErrorCode::NotFound, format!("controller.toml has no route {shown:?}"))
                .cause(format!("it has: {names}"))
                .into());
        }
        let results = notifier.test(routes).await;
        let docs: Vec<RouteDoc> = results
            .into_iter()
            .map(|r| RouteDoc { via: r.via.map(|v| v.word().to_owned()).unwrap_or_default(), route: r.route, ok: r.ok, detail: r.detail })
            .collect();
        let record = |d: &RouteDoc| FleetRecord::RouteTested {
            route: d.route.clone(),
            via: d.via.clone(),
            ok: d.ok,
            detail: d.detail.clone(),
            by: by.to_owned(),
        };
        self.core.fleet(docs.iter().map(record).collect()).await?;
        Ok(json(&docs)?)
    }

    /// What plan and start need: read, looked up, off the core.
    async fn prepare(&self, spec_text: &str, file_name: &str) -> Result<Prepared, Ended> {
        if spec_text.len() > SPEC_BYTES_MAX {
            return Err(too_many("bytes of plan.toml", spec_text.len(), SPEC_BYTES_MAX));
        }
        let file_name: String = file_name.chars().filter(|c| !c.is_control()).take(256).collect();
        let spec = Spec::parse(spec_text, &file_name).map_err(|e: SpecError| ErrorDoc::new(ErrorCode::Usage, e.to_string()))?;
        let Some(row) = self.store.release(spec.release.clone()).await? else {
            return Err(ErrorDoc::new(ErrorCode::Refused, format!("no release {}", spec.release))
                .cause(format!("{file_name} names it, and it was not imported here"))
                .fix("`tidegate release list` shows what is there, `tidegate release import BUNDLE` adds one")
                .into());
        };
        let (depot, digest) = (self.depot.clone(), row.release.manifest);
        let (manifest, _) = blocking(move || depot.manifest(digest)).await??;
        windows::check(&spec.window, &spec.contact).map_err(|e| ErrorDoc::new(ErrorCode::Usage, format!("{file_name}: {e}")))?;
        Ok(Prepared { spec, release: row.release, manifest, drill: None, checks: Checks::default() })
    }

    /// With what is looked up outside of the core for its checklist.
    async fn checked(&self, prepared: Prepared, may_call: bool) -> Result<Prepared, Ended> {
        let mut dashboards = prepared.spec.dashboards.clone();
        let environment = prepared.spec.environment.as_ref().and_then(|name| self.environments.get(name));
        dashboards.extend(environment.into_iter().flat_map(|e| e.dashboards.iter().cloned()));
        let checker = Checker::new(self.depot.clone(), self.store.clone(), self.sources.clone());
        let checks = checker.check(&prepared.manifest, &dashboards, may_call).await?;
        Ok(Prepared { checks, ..prepared })
    }
}

pub(super) fn too_many(what: &str, count: usize, max: usize) -> Ended {
    ErrorDoc::new(ErrorCode::Usage, format!("{count} {what} are over the limit of {max}")).into()
}

/// Work that would hold up the runtime.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Ended> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|e| ErrorDoc::new(ErrorCode::Internal, "a task of the controller ended early").cause(e.to_string()).into())
}
