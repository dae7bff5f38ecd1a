//! The process around a rollout, as an operator and the people of it go through
//! it: signatures, attestations, freezes, handoff, review, documents, the audit.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, ensure};
use serde_json::Value;

use crate::ask::Operator;
use crate::bins::programs;
use crate::fleet::Fleet;
use crate::output::Output;
use crate::people::Person;
use crate::wait::{Look, wait_until};

/// For a command that waits for nothing.
const COMMAND_WITHIN: Duration = Duration::from_secs(60);

impl Operator {
    /// `rollout approve --key`: signed by the CLI.
    ///
    /// # Errors
    /// The command does not end.
    pub fn approve(&self, id: &str, role: &str, person: &Person) -> anyhow::Result<Output> {
        self.cli(&["rollout", "approve", id, "--role", role, "--key", person.key_path()?])
    }

    /// `rollout approve --print-payload`, stock `ssh-keygen -Y sign`, `rollout
    /// approve --signature`.
    ///
    /// # Errors
    /// A command does not end, or nothing is printed to be signed.
    pub fn approve_stock(&self, id: &str, role: &str, person: &Person) -> anyhow::Result<Output> {
        self.sign_stock(&["rollout", "approve", id, "--role", role], person)
    }

    /// Any command that takes `--print-payload` and `--signature`, signed by stock
    /// ssh-keygen.
    ///
    /// # Errors
    /// A command does not end, or nothing is printed to be signed.
    pub fn sign_stock(&self, command: &[&str], person: &Person) -> anyhow::Result<Output> {
        let print: Vec<&str> = command.iter().copied().chain(["--print-payload"]).collect();
        let payload = self.cli(&print)?.expect_code(0)?.stdout;
        let file = self.text_file("payload", &payload)?;
        let signature = person.sign(Path::new(&file))?;
        let signature = signature.to_str().context("the signature's path is not UTF-8")?;
        let sign: Vec<&str> = command.iter().copied().chain(["--signature", signature]).collect();
        self.cli(&sign)
    }

    /// `rollout override`.
    ///
    /// # Errors
    /// The command does not end.
    pub fn go_past(&self, id: &str, what: &str, role: &str, person: &Person, reason: &str) -> anyhow::Result<Output> {
        self.cli(&["rollout", "override", id, "--what", what, "--role", role, "--reason", reason, "--key", person.key_path()?])
    }

    /// `rollout handoff`, without signing: `{document, open, signed}`.
    ///
    /// # Errors
    /// It is refused.
    pub fn handoff(&self, id: &str) -> anyhow::Result<Value> {
        self.json(&["rollout", "handoff", id])
    }

    /// Names of what is open at the handoff.
    ///
    /// # Errors
    /// It is refused.
    pub fn open_items(&self, id: &str) -> anyhow::Result<Vec<String>> {
        let handoff = self.handoff(id)?;
        let open = handoff["open"].as_array().with_context(|| format!("no list `open` in {handoff:#}"))?;
        Ok(open.iter().filter_map(|entry| Some(entry["item"].as_str()?.to_owned())).collect())
    }

    /// `freeze add`; its number.
    ///
    /// # Errors
    /// It is refused.
    pub fn freeze(&self, reason: &str, args: &[&str]) -> anyhow::Result<String> {
        let words: Vec<&str> = ["freeze", "add", "--reason", reason].into_iter().chain(args.iter().copied()).collect();
        let freeze = self.json(&words)?;
        Ok(freeze["freeze"].as_u64().with_context(|| format!("no number in {freeze:#}"))?.to_string())
    }

    /// `audit verify`: exit code and document.
    ///
    /// # Errors
    /// It prints no JSON.
    pub fn audit(&self, args: &[&str]) -> anyhow::Result<(i32, Value)> {
        let words: Vec<&str> = ["audit", "verify", "--output", "json"].into_iter().chain(args.iter().copied()).collect();
        let output = self.cli(&words)?;
        let doc = output.json()?;
        Ok((output.code, doc))
    }

    /// `audit export`, one record an entry.
    ///
    /// # Errors
    /// It fails, or a line is no JSON.
    pub fn export(&self, args: &[&str]) -> anyhow::Result<Vec<Value>> {
        let words: Vec<&str> = ["audit", "export"].into_iter().chain(args.iter().copied()).collect();
        self.cli(&words)?.expect_code(0)?.ndjson()
    }

    /// The six deliverables in all formats, in a directory of their own.
    ///
    /// # Errors
    /// They are not made.
    pub fn papers(&self, id: &str) -> anyhow::Result<Papers> {
        let dir = self.fresh("papers");
        let out = dir.to_str().context("the papers' path is not UTF-8")?;
        self.cli(&["docs", id, "--out", out])?.expect_code(0)?;
        Papers::read(&dir)
    }

    /// Does what must be done, however often the controller is away meanwhile.
    ///
    /// # Errors
    /// It does not get done.
    pub fn insist(&self, args: &[&str], within: Duration) -> anyhow::Result<Output> {
        wait_until(&args.join(" "), within, || {
            let output = self.cli(args)?;
            Ok(if output.code == 0 { Look::Done(output) } else { Look::NotYet(output.to_string()) })
        })
    }
}

/// Documents as they lie in a directory, by file name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Papers {
    /// Where.
    pub dir: PathBuf,
    files: BTreeMap<String, String>,
}

impl Papers {
    fn read(dir: &Path) -> anyhow::Result<Self> {
        let mut files = BTreeMap::new();
        for entry in fs::read_dir(dir).with_context(|| format!("reading {}", dir.display()))? {
            let path = entry.context("an entry")?.path();
            let name = path.file_name().and_then(|name| name.to_str()).context("a file's name")?.to_owned();
            files.insert(name, fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?);
        }
        Ok(Self { dir: dir.to_owned(), files })
    }

    /// All names.
    #[must_use]
    pub fn names(&self) -> Vec<&str> {
        self.files.keys().map(String::as_str).collect()
    }

    /// All of them.
    pub fn each(&self) -> impl Iterator<Item = (&str, &str)> {
        self.files.iter().map(|(name, text)| (name.as_str(), text.as_str()))
    }

    /// The file whose name begins and ends so.
    ///
    /// # Errors
    /// There is none.
    pub fn file(&self, begins: &str, ends: &str) -> anyhow::Result<(&str, &str)> {
        let found = self.each().find(|(name, _)| name.starts_with(begins) && name.ends_with(ends));
        found.with_context(|| format!("no {begins}…{ends} among {:?}", self.names()))
    }

    /// The Markdown of a deliverable, by its number.
    ///
    /// # Errors
    /// There is none.
    pub fn markdown(&self, number: u8) -> anyhow::Result<&str> {
        Ok(self.file(&format!("{number}-"), ".md")?.1)
    }

    /// The JSON of a deliverable, by its number.
    ///
    /// # Errors
    /// There is none.
    pub fn json(&self, number: u8) -> anyhow::Result<Value> {
        let (name, text) = self.file(&format!("{number}-"), ".json")?;
        serde_json::from_str(text).with_context(|| format!("{name} is no JSON"))
    }

    /// The Markdown of a deliverable says all of these.
    ///
    /// # Errors
    /// Which it does not say.
    pub fn expect(&self, number: u8, needles: &[&str]) -> anyhow::Result<()> {
        let text = self.markdown(number)?;
        let missing: Vec<&&str> = needles.iter().filter(|needle| !text.contains(**needle)).collect();
        ensure!(missing.is_empty(), "deliverable {number} does not say {missing:?}:\n{text}");
        Ok(())
    }
}

impl Fleet {
    /// `tidegate-agent status` of `hosts[index]`: what the host knows by itself.
    ///
    /// # Errors
    /// It cannot say.
    pub fn agent_status(&self, index: usize) -> anyhow::Result<Value> {
        let host = self.hosts.get(index).context("no such host")?;
        let mut command = Command::new(&programs()?.agent);
        command.arg("status").arg("--config").arg(host.dir.join("agent.toml")).args(["--output", "json"]);
        Output::of(command, COMMAND_WITHIN)?.expect_code(0)?.json()
    }

    /// What the tasks of all rollouts said of themselves, one line a run: `NAME run
    /// HOST`, `NAME undo HOST`.
    #[must_use]
    pub fn tasks_run(&self) -> Vec<String> {
        let text = fs::read_to_string(self.scratch().join("tasks")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    /// Every file of the fleet that holds one of these words: logs, journals,
    /// ledgers, everything.
    ///
    /// # Errors
    /// A directory is not readable.
    pub fn files_with(&self, words: &[&str]) -> anyhow::Result<Vec<PathBuf>> {
        let mut found = Vec::new();
        let mut dirs = vec![self.dir().to_owned()];
        while let Some(dir) = dirs.pop() {
            for entry in fs::read_dir(&dir).with_context(|| format!("reading {}", dir.display()))? {
                let entry = entry.context("an entry")?;
                let kind = entry.file_type().context("its type")?;
                if kind.is_dir() {
                    dirs.push(entry.path());
                } else if kind.is_file() {
                    let bytes = fs::read(entry.path()).unwrap_or_default();
                    if words.iter().any(|word| contains(&bytes, word.as_bytes())) {
                        found.push(entry.path());
                    }
                }
            }
        }
        Ok(found)
    }
}

fn contains(bytes: &[u8], word: &[u8]) -> bool {
    let Some(first) = word.first() else { return false };
    let mut rest = bytes;
    while let Some(at) = rest.iter().position(|byte| byte == first) {
        let Some(from) = rest.get(at..) else { return false };
        if from.starts_with(word) {
            return true;
        }
        rest = from.get(1..).unwrap_or_default();
    }
    false
}
