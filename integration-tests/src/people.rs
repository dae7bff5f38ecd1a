//! People with OpenSSH keys: approvers, the lead, operations.
//!
//! Owns: keys and the list of allowed signers, made by stock `ssh-keygen`, and
//! signing with it. Must not: use Tidegate's own signatures for anything.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, ensure};
use tempfile::TempDir;

use crate::output::Output;

const WITHIN: Duration = Duration::from_secs(30);
/// The namespace of the contract.
pub const NAMESPACE: &str = "tidegate-approval";

/// One person.
#[derive(Clone, Debug)]
pub struct Person {
    /// As the list of signers names them.
    pub principal: String,
    /// The private key's file.
    pub key: PathBuf,
    /// `SHA256:…`
    pub fingerprint: String,
    /// What they may approve.
    pub roles: Vec<String>,
}

impl Person {
    /// The private key's path as an argument.
    ///
    /// # Errors
    /// It is not UTF-8.
    pub fn key_path(&self) -> anyhow::Result<&str> {
        self.key.to_str().context("the key's path is not UTF-8")
    }

    /// Signs with stock `ssh-keygen -Y sign`; the armored signature's file.
    ///
    /// # Errors
    /// ssh-keygen says no.
    pub fn sign(&self, payload: &Path) -> anyhow::Result<PathBuf> {
        self.sign_as(payload, NAMESPACE)
    }

    /// The same in another namespace.
    ///
    /// # Errors
    /// ssh-keygen says no.
    pub fn sign_as(&self, payload: &Path, namespace: &str) -> anyhow::Result<PathBuf> {
        let signature = PathBuf::from(format!("{}.sig", payload.display()));
        let _ = fs::remove_file(&signature);
        let mut command = Command::new("ssh-keygen");
        command.args(["-Y", "sign", "-n", namespace, "-f"]).arg(&self.key).arg(payload);
        Output::of(command, WITHIN)?.expect_code(0)?;
        Ok(signature)
    }
}

/// Everybody, with their keys in a directory of its own.
#[derive(Debug)]
pub struct People {
    dir: TempDir,
    list: Vec<Person>,
}

/// Whom the guide wants: principal, type of key, roles.
const GUIDE: &[(&str, &str, &[&str])] = &[
    ("tina@example.com", "ed25519", &["tech-lead"]),
    ("sam@example.com", "ecdsa", &["security"]),
    ("olga@example.com", "ed25519", &["operations"]),
    ("pia@example.com", "rsa", &["product-owner"]),
    ("carl@example.com", "ed25519", &["cab"]),
    ("lead@example.com", "ed25519", &["lead"]),
    ("opslead@example.com", "ed25519", &["ops-lead"]),
    // Has a key that is listed, and no role.
    ("guest@example.com", "ed25519", &[]),
];

impl People {
    /// All that the guide wants, and a guest without any role.
    ///
    /// # Errors
    /// ssh-keygen says no.
    pub fn of_the_guide() -> anyhow::Result<Self> {
        let mut people =
            Self { dir: tempfile::Builder::new().prefix("tidegate-keys-").tempdir().context("a directory for keys")?, list: Vec::new() };
        for (principal, kind, roles) in GUIDE {
            let person = people.make(principal, kind, roles)?;
            people.list.push(person);
        }
        people.write_signers()?;
        Ok(people)
    }

    /// A key that no list knows.
    ///
    /// # Errors
    /// ssh-keygen says no.
    pub fn stranger(&self) -> anyhow::Result<Person> {
        self.make("stranger@example.com", "ed25519", &[])
    }

    fn make(&self, principal: &str, kind: &str, roles: &[&str]) -> anyhow::Result<Person> {
        let key = self.dir.path().join(principal);
        let mut command = Command::new("ssh-keygen");
        command.args(["-q", "-t", kind, "-N", "", "-C", principal, "-f"]).arg(&key);
        if kind == "rsa" {
            command.args(["-b", "2048"]);
        }
        Output::of(command, WITHIN)?.expect_code(0)?;
        let mut command = Command::new("ssh-keygen");
        command.arg("-lf").arg(key.with_file_name(format!("{principal}.pub")));
        let shown = Output::of(command, WITHIN)?.expect_code(0)?;
        let fingerprint = shown.stdout.split_whitespace().find(|word| word.starts_with("SHA256:")).context("no fingerprint")?.to_owned();
        let roles = roles.iter().map(|role| (*role).to_owned()).collect();
        Ok(Person { principal: principal.to_owned(), key, fingerprint, roles })
    }

    fn write_signers(&self) -> anyhow::Result<()> {
        let mut lines = String::new();
        for person in &self.list {
            let public = fs::read_to_string(person.key.with_file_name(format!("{}.pub", person.principal))).context("a public key")?;
            let mut words = public.split_whitespace();
            let (kind, blob) = (words.next().context("no type")?, words.next().context("no key")?);
            lines.push_str(&format!("{} namespaces=\"{NAMESPACE}\" {kind} {blob}\n", person.principal));
        }
        fs::write(self.allowed_signers(), lines).context("allowed_signers")
    }

    /// The list of signers.
    #[must_use]
    pub fn allowed_signers(&self) -> PathBuf {
        self.dir.path().join("allowed_signers")
    }

    /// Who has a role.
    ///
    /// # Errors
    /// Nobody has.
    pub fn with(&self, role: &str) -> anyhow::Result<&Person> {
        self.list.iter().find(|person| person.roles.iter().any(|r| r == role)).with_context(|| format!("nobody is {role}"))
    }

    /// By name.
    ///
    /// # Errors
    /// There is nobody.
    pub fn named(&self, principal: &str) -> anyhow::Result<&Person> {
        self.list.iter().find(|person| person.principal == principal).with_context(|| format!("nobody is {principal}"))
    }

    /// `[approvers]` of controller.toml.
    #[must_use]
    pub fn config(&self) -> String {
        let with_roles = self.list.iter().filter(|person| !person.roles.is_empty());
        let roles: Vec<String> = with_roles.map(|person| format!("{:?} = {:?}", person.principal, person.roles)).collect();
        format!("[approvers]\nallowed_signers = {:?}\nroles = {{ {} }}\n", self.allowed_signers().display().to_string(), roles.join(", "))
    }

    /// Stock `ssh-keygen -Y verify`: who signed `payload`.
    ///
    /// # Errors
    /// It says that the signature does not hold.
    pub fn verify(&self, principal: &str, payload: &str, signature: &str) -> anyhow::Result<()> {
        let file = self.dir.path().join(format!("{principal}.check.sig"));
        fs::write(&file, signature).context("the signature's file")?;
        let input = self.dir.path().join(format!("{principal}.check"));
        fs::write(&input, payload).context("the payload's file")?;
        // ssh-keygen reads what was signed from its standard input.
        let mut command = Command::new("sh");
        command.args(["-c", "exec ssh-keygen -Y verify -f \"$1\" -I \"$2\" -n \"$3\" -s \"$4\" <\"$5\"", "sh"]);
        command.arg(self.allowed_signers()).args([principal, NAMESPACE]).arg(&file).arg(&input);
        let output = Output::of(command, WITHIN)?;
        ensure!(output.code == 0, "stock ssh-keygen does not accept it: {output}");
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stock_ssh_keygen_signs_and_verifies_with_these_keys() {
        let people = People::of_the_guide().unwrap();
        let sam = people.with("security").unwrap();
        let payload = people.dir.path().join("payload");
        fs::write(&payload, "approve\n").unwrap();
        let signature = fs::read_to_string(sam.sign(&payload).unwrap()).unwrap();
        people.verify(&sam.principal, "approve\n", &signature).unwrap();
        assert!(people.verify(&sam.principal, "approve?\n", &signature).is_err());
        assert!(people.verify("tina@example.com", "approve\n", &signature).is_err());
        let stranger = people.stranger().unwrap();
        let foreign = fs::read_to_string(stranger.sign(&payload).unwrap()).unwrap();
        assert!(people.verify(&stranger.principal, "approve\n", &foreign).is_err());
        assert!(people.config().contains("\"sam@example.com\" = [\"security\"]"), "{}", people.config());
    }
}
