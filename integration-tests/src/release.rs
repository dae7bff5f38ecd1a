//! Releases of the demo service, made from templates.
//!
//! Owns: laying out the trees and the release.toml that a build pipeline would
//! make. Packing and importing them is the CLI's job ([`crate::ask::Operator::import`]).

use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::Context;

use crate::bins::programs;

/// One component of a release: the demo service, unless said otherwise.
#[derive(Clone, Debug)]
pub struct Component {
    name: String,
    conf: Vec<String>,
    own_executable: bool,
    padding: usize,
    service: String,
    smoke: Vec<String>,
    lines: Vec<String>,
    files: Vec<(String, Vec<u8>, u32)>,
}

impl Component {
    /// The demo service under the agent's own supervision, on `${var.port}`, with
    /// an http smoke test of its greeting.
    #[must_use]
    pub fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            conf: Vec::new(),
            own_executable: true,
            padding: 0,
            service: r#"{ supervised = { run = ["bin/demo-service", "--port", "${var.port}"] } }"#.to_owned(),
            smoke: vec![http_smoke("port", "5s")],
            lines: Vec::new(),
            files: Vec::new(),
        }
    }

    /// A line of the service's configuration, such as `behaviour = bad`.
    #[must_use]
    pub fn conf(mut self, line: &str) -> Self {
        self.conf.push(line.to_owned());
        self
    }

    /// Looks at `${var.control}` while it runs.
    #[must_use]
    pub fn controlled(mut self) -> Self {
        self.service = self.service.replace(r#""${var.port}""#, r#""${var.port}", "--control", "${var.control}""#);
        self
    }

    /// The executable has the same bytes in every release that says so.
    #[must_use]
    pub fn shared_executable(mut self) -> Self {
        self.own_executable = false;
        self
    }

    /// A file of so many incompressible bytes more, other ones in each version.
    #[must_use]
    pub fn padding(mut self, bytes: usize) -> Self {
        self.padding = bytes;
        self
    }

    /// Listens on `${var.NAME}` instead of `${var.port}`.
    #[must_use]
    pub fn port_var(mut self, name: &str) -> Self {
        self.service = self.service.replace("${var.port}", &format!("${{var.{name}}}"));
        self.smoke = vec![http_smoke(name, "5s")];
        self
    }

    /// The value of `service` in release.toml.
    #[must_use]
    pub fn service(mut self, toml: &str) -> Self {
        toml.clone_into(&mut self.service);
        self
    }

    /// Replaces the smoke tests by the bodies of `[[component.smoke]]` tables.
    #[must_use]
    pub fn smoke(mut self, bodies: &[&str]) -> Self {
        self.smoke = bodies.iter().map(|body| (*body).to_owned()).collect();
        self
    }

    /// A line more in `[[component]]`.
    #[must_use]
    pub fn line(mut self, line: &str) -> Self {
        self.lines.push(line.to_owned());
        self
    }

    /// A file more in the tree.
    #[must_use]
    pub fn file(mut self, path: &str, bytes: &[u8], mode: u32) -> Self {
        self.files.push((path.to_owned(), bytes.to_owned(), mode));
        self
    }

    fn write_tree(&self, tree: &Path, version: &str) -> anyhow::Result<()> {
        let mut executable = read(&programs()?.demo_service)?;
        if self.own_executable {
            // An ELF file may have bytes after its end: another digest, the same program.
            executable.extend_from_slice(format!("\n{} {version}\n", self.name).as_bytes());
        }
        write(&tree.join("bin/demo-service"), &executable, 0o755)?;
        let conf = self.conf.iter().fold(format!("version = {version}\n"), |conf, line| conf + line + "\n");
        write(&tree.join("etc/service.conf"), conf.as_bytes(), 0o644)?;
        if self.padding > 0 {
            write(&tree.join("share/padding"), &noise(self.padding, version), 0o644)?;
        }
        for (path, bytes, mode) in &self.files {
            write(&tree.join(path), bytes, *mode)?;
        }
        Ok(())
    }

    fn table(&self) -> String {
        let mut toml = format!("\n[[component]]\nname = \"{0}\"\ntree = \"dist/{0}\"\nservice = {1}\n", self.name, self.service);
        for line in &self.lines {
            let _ = writeln!(toml, "{line}");
        }
        for smoke in &self.smoke {
            let _ = write!(toml, "[[component.smoke]]\n{smoke}\n");
        }
        toml
    }
}

/// The body of an http smoke test of the greeting on `${var.NAME}`.
#[must_use]
pub fn http_smoke(port_var: &str, retry_for: &str) -> String {
    format!(
        "id = \"SMK-001\"\nname = \"Homepage loads\"\n\
         http = {{ url = \"http://127.0.0.1:${{var.{port_var}}}/\", status = 200, body = \"Welcome to shop ${{version}}\" }}\n\
         timeout = \"1s\"\nretry_for = \"{retry_for}\""
    )
}

/// A task of a release: a shell script that notes each run in `${var.scratch}/tasks`.
#[derive(Clone, Debug)]
pub struct Task {
    name: String,
    run: String,
    undo: Option<String>,
    on: String,
    lines: Vec<String>,
}

impl Task {
    /// Runs `script` on the first host that `on` selects. In the script `$scratch`
    /// is a directory that everybody may write to, `$host` the host's name; its
    /// last line of output becomes the note.
    #[must_use]
    pub fn new(name: &str, on: &str, script: &str) -> Self {
        Self { name: name.to_owned(), run: script.to_owned(), undo: None, on: on.to_owned(), lines: Vec::new() }
    }

    /// With a script that takes it back.
    #[must_use]
    pub fn undo(mut self, script: &str) -> Self {
        self.undo = Some(script.to_owned());
        self
    }

    /// A line more in `[[task]]`.
    #[must_use]
    pub fn line(mut self, line: &str) -> Self {
        self.lines.push(line.to_owned());
        self
    }

    /// A name for files.
    fn slug(&self) -> String {
        self.name.chars().map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' }).collect()
    }

    fn write_tree(&self, tree: &Path) -> anyhow::Result<()> {
        let scripts = [("run", Some(&self.run)), ("undo", self.undo.as_ref())];
        for (what, script) in scripts.into_iter().filter_map(|(what, script)| Some((what, script?))) {
            // One line per run, appended at once: what ran, how often and where, by its own word.
            let text =
                format!("#!/bin/sh\nset -eu\nscratch=$1 host=$2\necho \"{} {what} $host\" >>\"$scratch/tasks\"\n{script}\n", self.slug());
            write(&tree.join("bin").join(what), text.as_bytes(), 0o755)?;
        }
        Ok(())
    }

    fn table(&self) -> String {
        let argv = |what: &str| format!(r#"["bin/{what}", "${{var.scratch}}", "${{host}}"]"#);
        let mut toml = format!(
            "\n[[task]]\nname = {:?}\ntree = \"dist/task-{}\"\nrun = {}\non = {:?}\n",
            self.name,
            self.slug(),
            argv("run"),
            self.on
        );
        if self.undo.is_some() {
            let _ = writeln!(toml, "undo = {}", argv("undo"));
        }
        for line in &self.lines {
            let _ = writeln!(toml, "{line}");
        }
        toml
    }
}

/// A release to be.
#[derive(Clone, Debug)]
pub struct Release {
    name: String,
    version: String,
    known_issues: String,
    components: Vec<Component>,
    tasks: Vec<Task>,
    lines: Vec<String>,
    files: Vec<(String, String)>,
}

impl Release {
    /// `shop@VERSION`, without components yet.
    #[must_use]
    pub fn new(version: &str) -> Self {
        Self {
            name: "shop".to_owned(),
            version: version.to_owned(),
            known_issues: "none".to_owned(),
            components: Vec::new(),
            tasks: Vec::new(),
            lines: Vec::new(),
            files: Vec::new(),
        }
    }

    /// `shop@VERSION` with one good component `api`.
    #[must_use]
    pub fn good(version: &str) -> Self {
        Self::new(version).component(Component::new("api"))
    }

    /// `shop@VERSION` whose one component `api` behaves as `conf` says.
    #[must_use]
    pub fn that(version: &str, conf: &[&str]) -> Self {
        Self::new(version).component(conf.iter().fold(Component::new("api"), |component, line| component.conf(line)))
    }

    /// `shop@VERSION` whose one component `api` behaves as `conf` says, and as
    /// told while it runs ([`crate::fleet::Host::tell`]).
    #[must_use]
    pub fn told(version: &str, conf: &[&str]) -> Self {
        Self::new(version).component(conf.iter().fold(Component::new("api").controlled(), |component, line| component.conf(line)))
    }

    /// Another name than `shop`.
    #[must_use]
    pub fn named(mut self, name: &str) -> Self {
        name.clone_into(&mut self.name);
        self
    }

    /// One component more; the order is the order of deployment.
    #[must_use]
    pub fn component(mut self, component: Component) -> Self {
        self.components.push(component);
        self
    }

    /// One task more; they run in this order.
    #[must_use]
    pub fn task(mut self, task: Task) -> Self {
        self.tasks.push(task);
        self
    }

    /// What is known to be wrong with it, other than none.
    #[must_use]
    pub fn known_issues(mut self, text: &str) -> Self {
        text.clone_into(&mut self.known_issues);
        self
    }

    /// A file beside release.toml.
    #[must_use]
    pub fn file(mut self, name: &str, text: &str) -> Self {
        self.files.push((name.to_owned(), text.to_owned()));
        self
    }

    /// Notes and both runbooks, with the version in each.
    #[must_use]
    pub fn documented(self) -> Self {
        let version = self.version.clone();
        self.file("NOTES.md", &format!("# Release {version}\n\n- Faster checkout\n"))
            .file("deploy.md", &format!("# Deploying {version}\n\n1. Look at the plan\n"))
            .file("rollback.md", &format!("# Rolling back {version}\n\n1. `tidegate rollout rollback`\n"))
            .line("notes = \"NOTES.md\"")
            .line("runbook = { deploy = \"deploy.md\", rollback = \"rollback.md\" }")
    }

    /// A line more at the top of release.toml.
    #[must_use]
    pub fn line(mut self, line: &str) -> Self {
        self.lines.push(line.to_owned());
        self
    }

    /// `name@version`.
    #[must_use]
    pub fn id(&self) -> String {
        format!("{}@{}", self.name, self.version)
    }

    /// Writes the trees and release.toml below `dir`; the path of the latter.
    ///
    /// # Errors
    /// The programs do not build, or the disk says no.
    pub fn write(&self, dir: &Path) -> anyhow::Result<PathBuf> {
        for component in &self.components {
            component.write_tree(&dir.join("dist").join(&component.name), &self.version)?;
        }
        for (name, text) in &self.files {
            write(&dir.join(name), text.as_bytes(), 0o644)?;
        }
        for task in &self.tasks {
            task.write_tree(&dir.join("dist").join(format!("task-{}", task.slug())))?;
        }
        let mut toml = format!("name = \"{}\"\nversion = \"{}\"\nknown_issues = {:?}\n", self.name, self.version, self.known_issues);
        for line in &self.lines {
            let _ = writeln!(toml, "{line}");
        }
        self.tasks.iter().for_each(|task| toml.push_str(&task.table()));
        self.components.iter().for_each(|component| toml.push_str(&component.table()));
        let path = dir.join("release.toml");
        write(&path, toml.as_bytes(), 0o644)?;
        Ok(path)
    }
}

/// Bytes that do not compress and that two seeds do not share (xorshift64*).
#[must_use]
pub fn noise(bytes: usize, seed: &str) -> Vec<u8> {
    let mut state =
        seed.bytes().fold(0x9e37_79b9_7f4a_7c15_u64, |state, byte| (state ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)) | 1;
    let mut noise = Vec::with_capacity(bytes + 8);
    while noise.len() < bytes {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        noise.extend_from_slice(&state.wrapping_mul(0x2545_f491_4f6c_dd1d).to_le_bytes());
    }
    noise.truncate(bytes);
    noise
}

fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("reading {}", path.display()))
}

/// Writes a file with its directories.
///
/// # Errors
/// The disk says no.
pub fn write(path: &Path, bytes: &[u8], mode: u32) -> anyhow::Result<()> {
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir).with_context(|| format!("making {}", dir.display()))?;
    }
    fs::write(path, bytes).with_context(|| format!("writing {}", path.display()))?;
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).with_context(|| format!("the mode of {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn noise_differs_by_seed_and_has_the_size_asked_for() {
        assert_eq!(noise(1001, "a").len(), 1001);
        assert_eq!(noise(64, "a"), noise(64, "a"));
        assert_ne!(noise(64, "a"), noise(64, "b"));
    }
}
