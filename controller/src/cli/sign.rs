//! Signatures of people: approvals, overrides, the handoff.
//!
//! Owns: what a person is shown before a key is used, and that only what this
//! command asked for is signed, whatever the controller answers. Must not: decide
//! who may sign.

use std::path::PathBuf;

use clap::{ArgGroup, Args, Subcommand};
use tidegate_net::ssh::{NAMESPACE_APPROVAL, SIGNATURE_BYTES_MAX, SignError, sign};
use tidegate_protocol::{Digest, RolloutId};
use tidegate_rollout::process::{Override, Role};

use super::exit::Exit;
use super::output::{Format, read};
use super::rollout::Read;
use super::{Context, files, rollout, words};
use crate::operator::doc::PayloadDoc;
use crate::operator::msg::{ErrorCode, ErrorDoc, Purpose, Request};

/// A person's signature
#[derive(Debug, Subcommand)]
pub(super) enum Sign {
    /// Approve a rollout by signing its release and plan with an SSH key
    #[command(after_help = APPROVE_HELP, group = how_group().required(true))]
    Approve {
        /// Which, as `rollout start` printed it
        #[arg(value_name = "ID")]
        id: RolloutId,
        /// As what you approve
        #[arg(long, value_name = "ROLE", value_parser = words::role())]
        role: Role,
        #[command(flatten)]
        how: How,
        /// Sign only if the plan has this digest, as `rollout plan` printed it
        #[arg(long, value_name = "DIGEST", value_parser = rollout::digest)]
        confirm: Option<Digest>,
    },
    /// Let a rollout go forward though its window is closed or a freeze stands; signed, with a reason
    #[command(after_help = OVERRIDE_HELP, group = how_group().required(true))]
    Override {
        /// Which, as `rollout start` printed it
        #[arg(value_name = "ID")]
        id: RolloutId,
        /// What is gone past
        #[arg(long, value_name = "WHAT", value_parser = words::overridden())]
        what: Override,
        /// As what you sign
        #[arg(long, value_name = "ROLE", value_parser = words::overriding_role())]
        role: Role,
        /// Why; it is signed too
        #[arg(long, value_name = "TEXT", value_parser = words::said)]
        reason: String,
        #[command(flatten)]
        how: How,
    },
}

/// Where a signature comes from.
#[derive(Debug, Default, Args)]
pub(super) struct How {
    /// Sign with this private key (or the .pub file of a key that ssh-agent or a security key holds)
    #[arg(long, value_name = "SSH_KEY")]
    pub(super) key: Option<PathBuf>,
    /// Take a signature that was made elsewhere over --print-payload; - reads stdin
    #[arg(long, value_name = "FILE")]
    pub(super) signature: Option<PathBuf>,
    /// Only print the bytes to sign; on stderr, the ssh-keygen command that signs them
    #[arg(long)]
    pub(super) print_payload: bool,
}

/// One of them.
pub(super) fn how_group() -> ArgGroup {
    ArgGroup::new("how").args(["key", "signature", "print_payload"])
}

const APPROVE_HELP: &str = "\
The signature covers the digests of release and plan: any change of either needs new approvals. The key must stand for
that role in the controller's list of approvers, and whoever started the rollout does not approve it. Nothing is asked
when stdin is not a terminal; on one, a key may ask for its passphrase, PIN or touch.

Examples:
  tidegate rollout approve shop-1 --role security --key ~/.ssh/id_ed25519
  tidegate rollout approve shop-1 --role tech-lead --key ~/.ssh/id_ed25519_sk.pub --confirm $DIGEST
  tidegate rollout approve shop-1 --role operations --print-payload > payload        # then, where the key is:
  ssh-keygen -Y sign -n tidegate-approval -f ~/.ssh/id_ed25519 payload               # writes payload.sig
  tidegate rollout approve shop-1 --role operations --signature payload.sig";

const OVERRIDE_HELP: &str = "\
It goes into the journal and the documents with your name and reason. What fails is not overridden: checks, gates,
triggers and approvals stay as they are.

Examples:
  tidegate rollout override shop-1 --what window --role operations --key ~/.ssh/id_ed25519 --reason \"fix for INC-77\"
  tidegate rollout override shop-1 --what freeze --role cab --key ~/.ssh/id_ed25519 --reason \"agreed in CAB of 12-23\"";

impl Sign {
    /// A signature made elsewhere, or that there is a key to sign with.
    pub(super) fn read(&self) -> Result<Option<Read>, ErrorDoc> {
        let (Self::Approve { how, .. } | Self::Override { how, .. }) = self;
        how.read()
    }
}

impl How {
    pub(super) fn read(&self) -> Result<Option<Read>, ErrorDoc> {
        if let Some(key) = &self.key {
            let found = std::fs::metadata(key);
            if !found.as_ref().is_ok_and(std::fs::Metadata::is_file) {
                let cause = found.err().map_or_else(|| "it is not a file".to_string(), |e| e.to_string());
                return Err(ErrorDoc::new(ErrorCode::Usage, format!("no key at {}", key.display()))
                    .cause(cause)
                    .fix("give --key the path of your private SSH key, or of the .pub file of one in ssh-agent"));
            }
        }
        let Some(path) = &self.signature else { return Ok(None) };
        let text = files::text(path, SIGNATURE_BYTES_MAX as u64, "SSH signature")?;
        if !text.trim_start().starts_with("-----BEGIN SSH SIGNATURE-----") {
            return Err(ErrorDoc::new(ErrorCode::Usage, format!("{}: not an SSH signature", path.display()))
                .fix("make it with `ssh-keygen -Y sign -n tidegate-approval -f KEY FILE`, FILE from --print-payload"));
        }
        Ok(Some(Read { text, name: path.display().to_string() }))
    }
}

pub(super) async fn run(context: &Context, verb: Sign, given: Option<Read>) -> Result<Exit, ErrorDoc> {
    let (id, purpose, how, confirm) = match verb {
        Sign::Approve { id, role, how, confirm } => (id, Purpose::Approve(role), how, confirm),
        Sign::Override { id, what, role, reason, how } => (id, Purpose::Override { what, role, reason }, how, None),
    };
    let expected = Expected { plan: confirm, handoff: None };
    match signature(context, &id, &purpose, how, given, &expected).await? {
        None => Ok(Exit::Done),
        Some(signature) => rollout::spoken(context, &id, Request::RolloutSign { id: id.clone(), purpose, signature }).await,
    }
}

/// Digests that the payload must carry.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Expected {
    pub(super) plan: Option<Digest>,
    pub(super) handoff: Option<Digest>,
}

/// The signature, by the key or as given; none if the payload was only printed.
pub(super) async fn signature(
    context: &Context,
    id: &RolloutId,
    purpose: &Purpose,
    how: How,
    given: Option<Read>,
    expected: &Expected,
) -> Result<Option<String>, ErrorDoc> {
    // Without the payload nothing can be compared with what is expected.
    if let (Some(given), None) = (&given, expected.plan) {
        return Ok(Some(given.text.clone()));
    }
    let answer = context.ask(Request::Payload { id: id.clone(), purpose: purpose.clone() }).await?;
    let doc: PayloadDoc = read(&answer)?;
    check(&doc, id, purpose, expected)?;
    if let Some(given) = given {
        return Ok(Some(given.text));
    }
    let output = &context.output;
    let Some(key) = how.key else {
        // Exactly the bytes: no heading, no end of line of our own.
        if output.format == Format::Human {
            output.stdout(&doc.payload)?;
        } else {
            output.value(&doc, |_, _| String::new())?;
        }
        output.note(&format!("sign it with: ssh-keygen -Y sign -n {NAMESPACE_APPROVAL} -f KEY FILE"));
        return Ok(None);
    };
    output.note(&format!("{} signs in the namespace {NAMESPACE_APPROVAL}:", key.display()));
    doc.payload.lines().for_each(|line| output.note(&format!("  {line}")));
    let shown = key.display().to_string();
    let signed = tokio::task::spawn_blocking(move || sign(&key, NAMESPACE_APPROVAL, doc.payload.as_bytes()))
        .await
        .map_err(|e| ErrorDoc::new(ErrorCode::Internal, "sign").cause(e.to_string()))?;
    signed.map(Some).map_err(|e| not_signed(&e, &shown))
}

fn not_signed(error: &SignError, key: &str) -> ErrorDoc {
    let code = match error {
        SignError::Read { .. } | SignError::TooLarge { .. } | SignError::Exposed { .. } => ErrorCode::Usage,
        _ => ErrorCode::Internal,
    };
    let doc = ErrorDoc::new(code, format!("not signed with {key}")).fix(error.to_string());
    match std::error::Error::source(error) {
        Some(source) => doc.cause(source.to_string()),
        None => doc,
    }
}

/// That the controller asks for exactly this signature. Whoever holds the
/// controller must not get a person's key to say anything else.
fn check(doc: &PayloadDoc, id: &RolloutId, purpose: &Purpose, expected: &Expected) -> Result<(), ErrorDoc> {
    let strange = |what: &str| {
        ErrorDoc::new(ErrorCode::Internal, format!("nothing was signed: the controller asks for {what}"))
            .cause(format!("its text is {:?}", super::table::clean(&doc.payload, 600)))
            .fix("use a `tidegate` of the controller's version; if it is, find out who runs that controller")
    };
    if doc.namespace != NAMESPACE_APPROVAL {
        return Err(strange("a signature in another namespace"));
    }
    let digest_of = |line: &str, head: &str| line.strip_prefix(head).and_then(|d| d.parse::<Digest>().ok());
    let (head, role) = match purpose {
        Purpose::Approve(role) => ("tidegate-approval v1", role.word()),
        Purpose::Override { role, .. } => ("tidegate-override v1", role.word()),
        Purpose::Handoff(role) => ("tidegate-handoff v1", role.word()),
    };
    let lines: Vec<&str> = doc.payload.strip_suffix('\n').unwrap_or_default().split('\n').collect();
    let (begin, rest) = lines.split_at_checked(3).ok_or_else(|| strange("another text"))?;
    if begin != [head, &format!("rollout: {id}"), &format!("role: {role}")] {
        return Err(strange("another rollout, role or purpose"));
    }
    if doc.payload.chars().any(|c| c != '\n' && c.is_control()) {
        return Err(strange("control characters"));
    }
    match (purpose, rest) {
        (Purpose::Handoff(_), [document]) => {
            let document = digest_of(document, "handoff: sha256:").ok_or_else(|| strange("another text"))?;
            if expected.handoff.is_some_and(|e| e != document) {
                return Err(ErrorDoc::new(ErrorCode::Conflict, "not signed: the handoff changed while it was looked at")
                    .fix(format!("look at it again: tidegate rollout handoff {id}")));
            }
            Ok(())
        }
        (Purpose::Approve(_), [release, plan]) => approved(release, plan, expected, &strange),
        (Purpose::Override { what, reason, .. }, [release, plan, over, why]) => {
            let said: String = reason.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
            if *over != format!("override: {}", what.word()) || *why != format!("reason: {said}") {
                return Err(strange("another override or reason"));
            }
            approved(release, plan, expected, &strange)
        }
        _ => Err(strange("another text")),
    }
}

fn approved(release: &str, plan: &str, expected: &Expected, strange: &dyn Fn(&str) -> ErrorDoc) -> Result<(), ErrorDoc> {
    let named = release.strip_prefix("release: ").and_then(|r| r.rsplit_once(" sha256:"));
    let digest = plan.strip_prefix("plan: sha256:").and_then(|d| d.parse::<Digest>().ok());
    let (Some((_, manifest)), Some(digest)) = (named, digest) else { return Err(strange("another text")) };
    if manifest.parse::<Digest>().is_err() {
        return Err(strange("another text"));
    }
    match expected.plan {
        Some(wanted) if wanted != digest => Err(ErrorDoc::new(ErrorCode::Refused, "not signed: the rollout has another plan")
            .cause(format!("its digest is {digest}, {wanted} was to be approved"))
            .fix("look at the plan that was started: tidegate rollout status, and rollout plan -f plan.toml")),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tidegate_rollout::process::SignRole;

    const A: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";

    fn doc(payload: String) -> PayloadDoc {
        PayloadDoc { schema: 1, namespace: NAMESPACE_APPROVAL.into(), payload }
    }

    fn text(head: &str, role: &str) -> String {
        format!("tidegate-{head} v1\nrollout: shop-1\nrole: {role}\nrelease: shop@2.1.0 sha256:{A}\nplan: sha256:{A}\n")
    }

    #[test]
    fn only_what_was_asked_for_is_signed() {
        let id: RolloutId = "shop-1".parse().unwrap();
        let security = Purpose::Approve(Role::Security);
        let none = Expected::default();
        let good = doc(text("approval", "security"));
        check(&good, &id, &security, &none).unwrap();
        let wrong = [
            doc(text("approval", "operations")),
            doc(text("override", "security")),
            doc(text("approval", "security").replace("shop-1", "shop-2")),
            doc(text("approval", "security") + "more: x\n"),
            doc(text("approval", "security").trim_end().into()),
            doc(text("approval", "security").replace("shop@", "\u{1b}[2J")),
            doc(text("approval", "security").replace("plan: sha256:", "plan: ")),
            doc(String::new()),
            PayloadDoc { namespace: "tidegate-release".into(), ..good.clone() },
        ];
        for other in wrong {
            assert!(check(&other, &id, &security, &none).is_err(), "{other:?}");
        }
        let other = Expected { plan: Some(Digest::of(b"other plan")), handoff: None };
        assert_eq!(check(&good, &id, &security, &other).unwrap_err().code, ErrorCode::Refused);
    }

    #[test]
    fn an_override_signs_its_reason_and_a_handoff_its_document() {
        let id: RolloutId = "shop-1".parse().unwrap();
        let none = Expected::default();
        let purpose = |reason: &str| Purpose::Override { what: Override::Window, role: Role::Operations, reason: reason.into() };
        let over = doc(text("override", "operations") + "override: window\nreason: INC-77 now\n");
        check(&over, &id, &purpose("INC-77\tnow"), &none).unwrap();
        assert!(check(&over, &id, &purpose("INC-78"), &none).is_err());
        let handoff = doc(format!("tidegate-handoff v1\nrollout: shop-1\nrole: lead\nhandoff: sha256:{A}\n"));
        let seen = |d: Digest| Expected { plan: None, handoff: Some(d) };
        check(&handoff, &id, &Purpose::Handoff(SignRole::Lead), &seen(A.parse().unwrap())).unwrap();
        let changed = check(&handoff, &id, &Purpose::Handoff(SignRole::Lead), &seen(Digest::of(b"x"))).unwrap_err();
        assert_eq!(changed.code, ErrorCode::Conflict);
        assert!(check(&handoff, &id, &Purpose::Handoff(SignRole::OpsLead), &none).is_err());
    }
}
