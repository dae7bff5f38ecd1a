//! Who may approve what: `[approvers]` of controller.toml, and whether a signature
//! is one of theirs.
//!
//! Owns: roles by principal, and the rule that nobody approves what is theirs.
//! Must not: know what is signed, or when an approval is due. The file of keys is
//! read anew for each signature: whoever is taken out of it signs nothing more.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde::Deserialize;
use tidegate_net::ssh::{AllowedSigners, NAMESPACE_APPROVAL, PRINCIPAL_BYTES_MAX, SIGNATURE_BYTES_MAX, Signer, verify};
use tidegate_protocol::Timestamp;
use tidegate_rollout::process::{Role, SignRole};

use crate::operator::msg::{ErrorCode, ErrorDoc};

/// Most principals with a role.
const PRINCIPALS_MAX: usize = 1_000;

/// `[approvers]` as checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Approvers {
    /// OpenSSH's `allowed_signers`.
    file: PathBuf,
    /// By principal.
    roles: BTreeMap<String, BTreeSet<Duty>>,
}

/// What a principal may sign.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Duty {
    /// Approvals, and going past windows and freezes.
    Approve(Role),
    /// The handoff.
    Sign(SignRole),
}

impl Duty {
    /// As controller.toml writes it.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Approve(role) => role.word(),
            Self::Sign(role) => role.word(),
        }
    }

    fn all() -> impl Iterator<Item = Self> {
        Role::ALL.iter().map(|r| Self::Approve(*r)).chain([SignRole::Lead, SignRole::OpsLead].map(Self::Sign))
    }

    fn parse(word: &str) -> Result<Self, String> {
        Self::all().find(|d| d.word() == word).ok_or_else(|| {
            let known: Vec<&str> = Self::all().map(Self::word).collect();
            format!("{word:?} is not a role: {}", known.join(", "))
        })
    }
}

/// `[approvers]` as written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ApproversFile {
    allowed_signers: PathBuf,
    roles: BTreeMap<String, Words>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "a role, or a list of roles")]
enum Words {
    One(String),
    Many(Vec<String>),
}

/// What a signature is asked for.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    /// As what it counts.
    pub duty: Duty,
    /// What it must cover.
    pub payload: &'a str,
    /// Those who must not have made it: the rollout is theirs.
    pub not: &'a [&'a str],
    /// Somebody who may sign without a role in controller.toml.
    pub also: Option<&'a str>,
}

impl Approvers {
    /// Checks what was written; a relative file is relative to controller.toml.
    ///
    /// # Errors
    /// One sentence: what is wrong and what to write.
    pub(crate) fn parse(file: ApproversFile, dir: &Path) -> Result<Self, String> {
        if file.roles.is_empty() {
            return Err("roles is empty, so nobody may approve: write for example \"dana@example.com\" = [\"tech-lead\"]".into());
        }
        if file.roles.len() > PRINCIPALS_MAX {
            return Err(format!("roles has {} principals, at most {PRINCIPALS_MAX} are taken", file.roles.len()));
        }
        let mut roles = BTreeMap::new();
        for (principal, words) in file.roles {
            let plain = |c: char| !c.is_control() && !c.is_whitespace() && !matches!(c, '*' | '?' | '!' | ',' | '"');
            if principal.is_empty() || principal.len() > PRINCIPAL_BYTES_MAX || !principal.chars().all(plain) {
                return Err(format!("roles: {principal:?} is no principal: write one name as in the file of signers, without patterns"));
            }
            let words = match words {
                Words::One(word) => vec![word],
                Words::Many(words) => words,
            };
            if words.is_empty() {
                return Err(format!("roles: {principal:?} has no role; name one, or leave it out"));
            }
            let duties: Result<BTreeSet<Duty>, String> = words.iter().map(|word| Duty::parse(word)).collect();
            roles.insert(principal, duties.map_err(|e| format!("roles: {e}"))?);
        }
        Ok(Self { file: dir.join(file.allowed_signers), roles })
    }

    /// The file of signers reads. Blocks.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn check(&self) -> Result<(), tidegate_net::ssh::SignersError> {
        AllowedSigners::load(&self.file).map(|_| ())
    }

    /// Who signed, if the signature counts. Blocks: reads the file of signers.
    ///
    /// # Errors
    /// Whose it is and why it does not count, with what to do.
    pub fn verify(&self, wanted: Wanted<'_>, armored: &str, now: Timestamp) -> Result<Signer, ErrorDoc> {
        let signers = AllowedSigners::load(&self.file).map_err(|e| {
            refused("the file of allowed signers cannot be used, so nothing can be approved")
                .cause(e.to_string())
                .fix("mend [approvers] allowed_signers")
        })?;
        self.judge(&signers, wanted, armored, now)
    }

    fn judge(&self, signers: &AllowedSigners, wanted: Wanted<'_>, armored: &str, now: Timestamp) -> Result<Signer, ErrorDoc> {
        if armored.len() > SIGNATURE_BYTES_MAX {
            return Err(ErrorDoc::new(ErrorCode::Usage, format!("a signature of {} bytes; at most {SIGNATURE_BYTES_MAX}", armored.len())));
        }
        let ask = |principal: Option<&str>| verify(signers, armored, NAMESPACE_APPROVAL, wanted.payload.as_bytes(), principal, now.0);
        let role = wanted.duty.word();
        let signer = ask(None).map_err(|e| {
            refused(format!("the signature does not count as {role}"))
                .cause(e.to_string())
                .fix("sign the text that is shown now, whole, with a key of the allowed signers")
        })?;
        // A pattern in the file may mean many people: asked by name, each of them.
        if let Some(own) = wanted.not.iter().find(|name| ask(Some(name)).is_ok()) {
            return Err(refused(format!("{own} must not approve as {role}: the rollout is theirs (key {})", signer.key))
                .cause("nobody approves what they started or lead")
                .fix(format!("somebody else with the role {role} signs")));
        }
        let has = |name: &str| self.roles.get(name).is_some_and(|duties| duties.contains(&wanted.duty)) || wanted.also == Some(name);
        let named = signer.principals.iter().find(|name| has(name)).cloned();
        match named {
            Some(principal) => Ok(Signer { principal, ..signer }),
            None => {
                let may: Vec<&str> = self.roles.iter().filter(|(_, d)| d.contains(&wanted.duty)).map(|(n, _)| n.as_str()).collect();
                let may = if may.is_empty() { "nobody has it yet".to_owned() } else { format!("it has: {}", may.join(", ")) };
                Err(refused(format!("{} (key {}) does not have the role {role}", signer.principals.join(", "), signer.key))
                    .cause(may)
                    .fix("somebody with that role signs, or controller.toml gives it to this principal under [approvers] roles"))
            }
        }
    }
}

fn refused(message: impl Into<String>) -> ErrorDoc {
    ErrorDoc::new(ErrorCode::Refused, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Approvers, String> {
        let file: ApproversFile = toml::from_str(text).map_err(|e| e.to_string())?;
        Approvers::parse(file, Path::new("/etc/x"))
    }

    #[test]
    fn roles_are_words_or_lists_of_them() {
        let good =
            parse("allowed_signers = \"s\"\nroles = { \"dana@example.com\" = [\"tech-lead\", \"cab\"], lee = \"ops-lead\" }\n").unwrap();
        assert_eq!(good.file, Path::new("/etc/x/s"));
        assert_eq!(good.roles["dana@example.com"], BTreeSet::from([Duty::Approve(Role::TechLead), Duty::Approve(Role::Cab)]));
        assert_eq!(good.roles["lee"], BTreeSet::from([Duty::Sign(SignRole::OpsLead)]));
    }

    #[test]
    fn what_cannot_be_meant_is_refused_by_name() {
        for (text, wanted) in [
            ("allowed_signers = \"s\"\nroles = {}\n", "nobody may approve"),
            ("allowed_signers = \"s\"\nroles = { a = \"boss\" }\n", "\"boss\" is not a role: tech-lead"),
            ("allowed_signers = \"s\"\nroles = { a = [] }\n", "has no role"),
            ("allowed_signers = \"s\"\nroles = { \"*@example.com\" = \"cab\" }\n", "without patterns"),
            ("allowed_signers = \"s\"\nroles = { a = 3 }\n", "a role, or a list of roles"),
            ("allowed_signers = \"s\"\nrole = { a = \"cab\" }\nroles = { a = \"cab\" }\n", "role"),
            ("roles = { a = \"cab\" }\n", "allowed_signers"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(wanted), "{text}: {error}");
        }
    }

    /// Keys of people, and a file that lists them.
    struct People {
        dir: tempfile::TempDir,
        lines: String,
    }

    impl People {
        fn new(names: &[(&str, &str)]) -> Self {
            let mut people = Self { dir: tempfile::tempdir().unwrap(), lines: String::new() };
            for (key, principals) in names {
                let path = people.dir.path().join(key);
                let done = std::process::Command::new("ssh-keygen")
                    .args(["-q", "-t", "ed25519", "-N", "", "-C", key, "-f"])
                    .arg(&path)
                    .status()
                    .expect("ssh-keygen; install openssh-client");
                assert!(done.success());
                let public = std::fs::read_to_string(path.with_extension("pub")).unwrap();
                people.lines.push_str(&format!("{principals} namespaces=\"{NAMESPACE_APPROVAL}\" {public}"));
            }
            people
        }

        fn sign(&self, key: &str, payload: &str) -> String {
            tidegate_net::ssh::sign(&self.dir.path().join(key), NAMESPACE_APPROVAL, payload.as_bytes()).unwrap()
        }

        fn judge(&self, key: &str, duty: Duty, payload: &str, over: &str, not: &[&str]) -> Result<Signer, ErrorDoc> {
            let file = self.dir.path().join("signers");
            std::fs::write(&file, &self.lines).unwrap();
            let roles = "roles = { dana = [\"tech-lead\", \"cab\"], lee = \"security\", ops = \"ops-lead\" }";
            let approvers = parse(&format!("allowed_signers = \"{}\"\n{roles}\n", file.display())).unwrap();
            let also = (duty == Duty::Sign(SignRole::Lead)).then_some("kim");
            let wanted = Wanted { duty, payload, not, also };
            approvers.verify(wanted, &self.sign(key, over), Timestamp(1_800_000_000_000))
        }
    }

    const TECH: Duty = Duty::Approve(Role::TechLead);

    #[test]
    fn only_the_role_the_text_and_somebody_else_count() {
        let people = People::new(&[("dana", "dana"), ("lee", "lee"), ("both", "kim,dana"), ("all", "*")]);
        let (text, other) = ("plan a\n", "plan b\n");
        let good = people.judge("dana", TECH, text, text, &["admin"]).unwrap();
        assert_eq!(good.principal, "dana");
        // Listed under two names: the one with the role counts.
        assert_eq!(people.judge("both", TECH, text, text, &[]).unwrap().principal, "dana");
        assert_eq!(people.judge("both", Duty::Sign(SignRole::Lead), text, text, &[]).unwrap().principal, "kim", "the plan names its lead");

        let edited = people.judge("dana", TECH, text, other, &[]).unwrap_err();
        assert_eq!(edited.code, ErrorCode::Refused);
        assert!(edited.cause.as_deref().unwrap().contains("does not fit the message"), "{edited:?}");
        let role = people.judge("lee", TECH, text, text, &[]).unwrap_err();
        assert!(role.message.contains("lee") && role.message.contains("SHA256:") && role.message.contains("tech-lead"), "{role:?}");
        assert!(role.cause.as_deref().unwrap().contains("dana"), "{role:?}");
        // Whose it is does not approve it: by name, by another name of the key, by a pattern.
        for key in ["dana", "both", "all"] {
            let own = people.judge(key, TECH, text, text, &["admin", "dana"]).unwrap_err();
            assert!(own.message.contains("must not approve"), "{key}: {own:?}");
        }
        assert!(people.judge("both", TECH, text, text, &["kim"]).unwrap_err().message.starts_with("kim must not"));
        // A pattern is nobody's name, whatever roles there are.
        assert!(people.judge("all", TECH, text, text, &[]).unwrap_err().message.contains("does not have the role"));
    }

    #[test]
    fn whoever_is_taken_out_of_the_file_signs_nothing_more() {
        let mut people = People::new(&[("dana", "dana"), ("lee", "lee")]);
        assert!(people.judge("dana", TECH, "x", "x", &[]).is_ok());
        people.lines = people.lines.lines().filter(|l| !l.starts_with("dana")).map(|l| format!("{l}\n")).collect();
        let gone = people.judge("dana", TECH, "x", "x", &[]).unwrap_err();
        assert!(gone.cause.as_deref().unwrap().contains("is not in"), "{gone:?}");
    }
}
