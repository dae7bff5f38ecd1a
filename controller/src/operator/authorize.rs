//! Who may ask what: one function, asked for every request.

use tidegate_net::{PeerIdentity, Role};

use super::msg::Request;

/// What a request takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Needs {
    /// Looks only.
    Viewer,
    /// Moves releases and hosts.
    Operator,
    /// Lets others in.
    Admin,
}

impl Needs {
    const fn word(self) -> &'static str {
        match self {
            Self::Viewer => "viewer",
            Self::Operator => "operator",
            Self::Admin => "admin",
        }
    }

    /// What a request takes. Exhaustive: a new request does not compile without it.
    #[must_use]
    pub const fn of(request: &Request) -> Self {
        match request {
            Request::Version
            | Request::HostList { .. }
            | Request::HostShow { .. }
            | Request::HostExplain { .. }
            | Request::ReleaseList
            | Request::ReleaseShow { .. }
            | Request::RolloutPlan { .. }
            | Request::RolloutList
            | Request::RolloutStatus { .. }
            | Request::RolloutWatch { .. }
            | Request::RolloutEvents { .. }
            | Request::RolloutWait { .. }
            | Request::RolloutExplain { .. }
            | Request::RolloutReplay { .. }
            | Request::Payload { .. }
            | Request::RolloutHandoff { .. }
            | Request::RolloutDocs { .. }
            | Request::FreezeList { .. }
            | Request::AuditVerify
            | Request::AuditExport { .. } => Self::Viewer,
            Request::HostLabel { .. }
            | Request::HostDrain { .. }
            | Request::HostUndrain { .. }
            | Request::ReleaseMissing { .. }
            | Request::ReleaseUpload { .. }
            | Request::ReleaseImport { .. }
            | Request::RolloutStart { .. }
            | Request::RolloutVerb { .. }
            | Request::RolloutDeclare { .. }
            | Request::RolloutAttest { .. }
            | Request::RolloutDrill { .. }
            | Request::RolloutSign { .. }
            | Request::RolloutNote { .. }
            | Request::RolloutItem { .. }
            | Request::RolloutReview { .. }
            | Request::RolloutClose { .. }
            | Request::FreezeAdd { .. }
            | Request::FreezeRemove { .. }
            | Request::NotifyTest { .. } => Self::Operator,
            Request::TokenCreate { .. } => Self::Admin,
        }
    }
}

/// Not allowed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{name} has the role {roles}, this needs {needs}", roles = if roles.is_empty() { "of nobody".to_owned() } else { roles.join(", ") }, needs = needs.word())]
pub struct Denied {
    /// Who asked.
    pub name: String,
    /// What the certificate says.
    pub roles: Vec<String>,
    /// What it takes.
    pub needs: Needs,
}

/// Whether that certificate may do what takes that much.
#[must_use]
pub fn allows(identity: &PeerIdentity, needs: Needs) -> bool {
    let has = identity.operator_roles.iter().filter_map(|role| match role.as_str() {
        "viewer" => Some(Needs::Viewer),
        "operator" => Some(Needs::Operator),
        "admin" => Some(Needs::Admin),
        _ => None,
    });
    identity.role == Role::Operator && has.max().is_some_and(|has| has >= needs)
}

/// Whether that certificate may ask that.
///
/// # Errors
/// [`Denied`].
pub fn authorize(identity: &PeerIdentity, request: &Request) -> Result<(), Denied> {
    let needs = Needs::of(request);
    if allows(identity, needs) {
        Ok(())
    } else {
        Err(Denied { name: identity.name.clone(), roles: identity.operator_roles.clone(), needs })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;
    use tidegate_protocol::{Digest, HostName, Millis, RolloutId};
    use tidegate_rollout::process::Role as Approver;
    use tidegate_rollout::{DrillScope, Verb};

    use crate::operator::msg::Purpose;

    fn who(role: Role, roles: &[&str]) -> PeerIdentity {
        PeerIdentity {
            role,
            name: "someone".into(),
            operator_roles: roles.iter().map(|r| (*r).to_owned()).collect(),
            spki_sha256: Digest::of(b"key"),
            not_after_unix: i64::MAX,
            serial: "01".into(),
        }
    }

    /// Every request with what it takes, written out: the table is the statement.
    fn table() -> Vec<(Request, Needs)> {
        let host: HostName = "a".parse().unwrap();
        let id: RolloutId = "r".parse().unwrap();
        let (spec_text, file_name, reason) = (String::new(), String::new(), String::new());
        vec![
            (Request::Version, Needs::Viewer),
            (Request::TokenCreate { host: None, labels: BTreeMap::new(), ttl: Millis(1), uses: 1 }, Needs::Admin),
            (Request::HostList { selector: String::new() }, Needs::Viewer),
            (Request::HostShow { host: host.clone() }, Needs::Viewer),
            (Request::HostLabel { host: host.clone(), set: BTreeMap::new() }, Needs::Operator),
            (Request::HostDrain { host: host.clone(), reason: reason.clone() }, Needs::Operator),
            (Request::HostUndrain { host: host.clone(), reason: reason.clone() }, Needs::Operator),
            (Request::HostExplain { host }, Needs::Viewer),
            (Request::ReleaseMissing { digests: vec![] }, Needs::Operator),
            (Request::ReleaseUpload { files: vec![] }, Needs::Operator),
            (Request::ReleaseImport { manifest: vec![] }, Needs::Operator),
            (Request::ReleaseList, Needs::Viewer),
            (Request::ReleaseShow { release: "a@1".parse().unwrap() }, Needs::Viewer),
            (Request::RolloutPlan { spec_text: spec_text.clone(), file_name: file_name.clone() }, Needs::Viewer),
            (
                Request::RolloutStart { spec_text: spec_text.clone(), file_name: file_name.clone(), run_id: None, confirm: None },
                Needs::Operator,
            ),
            (Request::RolloutReplay { id: id.clone(), spec_text: spec_text.clone(), file_name: file_name.clone() }, Needs::Viewer),
            (Request::RolloutDrill { spec_text, file_name, run_id: None, scope: DrillScope::First }, Needs::Operator),
            (Request::RolloutList, Needs::Viewer),
            (Request::RolloutStatus { id: id.clone() }, Needs::Viewer),
            (Request::RolloutWatch { id: id.clone(), after_seq: 0, stop_at_person: false }, Needs::Viewer),
            (Request::RolloutEvents { id: id.clone() }, Needs::Viewer),
            (Request::RolloutWait { id: id.clone(), until: vec![], timeout: None }, Needs::Viewer),
            (Request::RolloutVerb { id: id.clone(), verb: Verb::Halt, reason: reason.clone() }, Needs::Operator),
            (Request::RolloutDeclare { id: id.clone(), what: String::new(), reason: reason.clone() }, Needs::Operator),
            (Request::RolloutAttest { id: id.clone(), item: String::new(), note: reason }, Needs::Operator),
            (Request::RolloutExplain { id: id.clone() }, Needs::Viewer),
            (Request::Payload { id: id.clone(), purpose: Purpose::Approve(Approver::Cab) }, Needs::Viewer),
            (Request::RolloutSign { id: id.clone(), purpose: Purpose::Approve(Approver::Cab), signature: String::new() }, Needs::Operator),
            (Request::RolloutNote { id: id.clone(), text: String::new(), resolves: None }, Needs::Operator),
            (Request::RolloutItem { id: id.clone(), item: None, what: None, owner: None, status: None, eta: None }, Needs::Operator),
            (Request::RolloutHandoff { id: id.clone() }, Needs::Viewer),
            (Request::RolloutReview { id: id.clone(), review_text: None, file_name: String::new() }, Needs::Operator),
            (Request::RolloutClose { id: id.clone() }, Needs::Operator),
            (Request::RolloutDocs { id: id.clone() }, Needs::Viewer),
            (
                Request::FreezeAdd { reason: String::new(), from: None, until: None, environment: None, selector: String::new() },
                Needs::Operator,
            ),
            (Request::FreezeList { all: true }, Needs::Viewer),
            (Request::FreezeRemove { freeze: 1, reason: String::new() }, Needs::Operator),
            (Request::NotifyTest { routes: vec![] }, Needs::Operator),
            (Request::AuditVerify, Needs::Viewer),
            (Request::AuditExport { after_seq: 0, rollout: Some(id) }, Needs::Viewer),
        ]
    }

    #[test]
    fn every_role_times_every_request() {
        let people = [
            (who(Role::Operator, &["viewer"]), Some(Needs::Viewer)),
            (who(Role::Operator, &["operator"]), Some(Needs::Operator)),
            (who(Role::Operator, &["admin"]), Some(Needs::Admin)),
            (who(Role::Operator, &["admin", "viewer"]), Some(Needs::Admin)),
            (who(Role::Operator, &[]), None),
            (who(Role::Operator, &["root"]), None),
            // Other kinds of certificates never, whatever they carry.
            (who(Role::Host, &["admin"]), None),
            (who(Role::Controller, &["admin"]), None),
        ];
        for (request, needs) in table() {
            for (person, has) in &people {
                assert_eq!(authorize(person, &request).is_ok(), has.is_some_and(|has| has >= needs), "{person:?} {request:?}");
            }
        }
    }
}
