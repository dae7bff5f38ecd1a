//! People's signatures: what each has to cover, and whether it counts.
//!
//! Owns: which text is signed for what, and the way from a signature to a record.
//! Must not: know keys or roles (that is [`crate::approvers`]), or decide what an
//! approval lets go on.

use std::sync::Arc;

use tidegate_protocol::RolloutId;
use tidegate_rollout::process::{Override, Role, Signed, approval_payload, override_payload};

use super::doc::{PayloadDoc, SCHEMA};
use super::msg::{ErrorCode, ErrorDoc, Purpose};
use super::papers;
use super::server::{Ended, Operators, blocking};
use crate::approvers::{Approvers, Duty, Wanted};
use crate::core::{Looked, Paperwork, json, no_rollout, said};

/// The text that a signature for that purpose covers.
pub(super) async fn payload(ctx: &Operators, id: RolloutId, purpose: Purpose) -> Result<String, Ended> {
    let looked = look(ctx, &id).await?;
    let payload = match text(&id, &looked, &purpose)? {
        Some(text) => text,
        None => papers::handoff_text(ctx, &id, &looked, &purpose).await?,
    };
    Ok(json(&PayloadDoc { schema: SCHEMA, namespace: tidegate_net::ssh::NAMESPACE_APPROVAL.into(), payload })?)
}

/// Takes a signature in, if it counts.
pub(super) async fn sign(ctx: &Operators, by: &str, id: RolloutId, purpose: Purpose, signature: String) -> Result<String, Ended> {
    let looked = look(ctx, &id).await?;
    let Some(payload) = text(&id, &looked, &purpose)? else {
        return papers::sign_off(ctx, by, id, &purpose, signature).await;
    };
    let (duty, not) = match &purpose {
        // Nobody approves what is theirs; going past a window is for whoever answers for it.
        Purpose::Approve(role) => (Duty::Approve(*role), owners(&looked)),
        Purpose::Override { role, .. } => (Duty::Approve(*role), Vec::new()),
        Purpose::Handoff(role) => (Duty::Sign(*role), Vec::new()),
    };
    let signed = verified(ctx, by, Asked { duty, payload, not, also: None }, signature).await?;
    let paper = match purpose {
        Purpose::Override { what, role, reason } => Paperwork::Overridden { what, role, signed, reason: said(reason, "--reason")? },
        Purpose::Approve(role) => Paperwork::Approved(role, signed),
        Purpose::Handoff(_) => return Err(ErrorDoc::new(ErrorCode::Internal, "a sign-off took the way of an approval").into()),
    };
    Ok(ctx.core.paper(id, looked.first_seq, paper).await??)
}

/// What is asked of a signature, owned: it is judged on another thread.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) duty: Duty,
    pub(super) payload: String,
    pub(super) not: Vec<String>,
    pub(super) also: Option<String>,
}

/// The signature as it is journaled.
pub(super) async fn verified(ctx: &Operators, by: &str, asked: Asked, signature: String) -> Result<Signed, Ended> {
    let approvers: Arc<Approvers> = ctx.approvers.clone().ok_or_else(|| {
        ErrorDoc::new(ErrorCode::Refused, "nobody may sign here: controller.toml has no [approvers]")
            .fix("add [approvers] with allowed_signers = \"FILE\" and roles = { \"dana@example.com\" = [\"tech-lead\"] }, and restart the controller")
    })?;
    let now = ctx.clock.now();
    let (signer, signature) = blocking(move || {
        let not: Vec<&str> = asked.not.iter().map(String::as_str).collect();
        let wanted = Wanted { duty: asked.duty, payload: &asked.payload, not: &not, also: asked.also.as_deref() };
        approvers.verify(wanted, &signature, now).map(|signer| (signer, signature))
    })
    .await??;
    Ok(Signed { principal: signer.principal, key: signer.key.to_string(), signature, brought_by: by.to_owned() })
}

pub(super) async fn look(ctx: &Operators, id: &RolloutId) -> Result<Looked, Ended> {
    Ok(ctx.core.look(id.clone()).await?.ok_or_else(|| no_rollout(id))?)
}

/// Whoever started it and whoever leads it.
fn owners(looked: &Looked) -> Vec<String> {
    std::iter::once(looked.by.clone()).chain(looked.plan.lead.clone()).filter(|name| !name.is_empty()).collect()
}

/// The text of approvals and overrides; none for the handoff, which is a document.
fn text(id: &RolloutId, looked: &Looked, purpose: &Purpose) -> Result<Option<String>, ErrorDoc> {
    let plan = &looked.plan;
    match purpose {
        Purpose::Approve(role) => {
            wanted(id, looked, *role)?;
            Ok(Some(approval_payload(id, plan, *role)))
        }
        Purpose::Override { what, role, reason } => {
            may_override(*what, *role)?;
            Ok(Some(override_payload(id, plan, *what, *role, &said(reason.clone(), "--reason")?)))
        }
        Purpose::Handoff(_) => Ok(None),
    }
}

fn wanted(id: &RolloutId, looked: &Looked, role: Role) -> Result<(), ErrorDoc> {
    let approvals = &looked.plan.process.approvals;
    if approvals.iter().any(|a| a.role == role) {
        return Ok(());
    }
    let roles: Vec<&str> = approvals.iter().map(|a| a.role.word()).collect();
    let roles = if roles.is_empty() { "none at all".to_owned() } else { roles.join(", ") };
    Err(ErrorDoc::new(ErrorCode::Conflict, format!("rollout {id} wants no approval of {role}")).cause(format!("it wants: {roles}")))
}

fn may_override(what: Override, role: Role) -> Result<(), ErrorDoc> {
    if what.roles().contains(&role) {
        return Ok(());
    }
    let roles: Vec<&str> = what.roles().iter().map(|r| r.word()).collect();
    Err(ErrorDoc::new(ErrorCode::Refused, format!("{role} does not go past a {}", what.word()))
        .fix(format!("sign as {}", roles.join(" or "))))
}
