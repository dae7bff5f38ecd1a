//! From release.toml and its trees to a bundle.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use tempfile::{NamedTempFile, TempDir};
use tidegate_protocol::release::{Argv, Component, FileEntry, FileRef, MANIFEST_SCHEMA, Proof, Release, Runbook, Service, Task};
use tidegate_protocol::{Digest, ReleaseId, limits};
use toml::Spanned;

use super::error::BundleError;
use super::resolve::TreeFile;
use super::source::{ComponentToml, ReleaseToml, Source, TaskToml};
use super::{Progress, format, tree, walk};

/// Notes and runbooks are texts.
const TEXT_BYTES_MAX: u64 = 16 << 20;
const RELEASE_TOML_BYTES_MAX: u64 = 4 << 20;

/// What was packed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packed {
    /// `name@version`.
    pub release: ReleaseId,
    /// sha256 of the manifest.
    pub digest: Digest,
    /// Distinct files.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// The bundle.
    pub bundle: PathBuf,
}

/// Packs the release that `file` (release.toml) describes into the bundle `out`,
/// which appears whole or not at all.
///
/// # Errors
/// [`BundleError`]; nothing was written.
pub fn pack(file: &Path, out: &Path, progress: Progress<'_>) -> Result<Packed, BundleError> {
    let read = |source| BundleError::Read { path: file.to_path_buf(), source };
    if fs::metadata(file).map_err(read)?.len() > RELEASE_TOML_BYTES_MAX {
        return Err(BundleError::Syntax { file: file.to_path_buf(), message: "over 4 MiB: this is not a release.toml".into() });
    }
    let text = fs::read_to_string(file).map_err(read)?;
    let source = Source { file, text: &text };
    let parsed = source.parse()?;
    let place = match out.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let write = |source| BundleError::Write { path: out.to_path_buf(), source };
    // Beside the bundle: there is where the space is.
    let spool = TempDir::with_prefix_in(".tidegate-pack-", place).map_err(write)?;
    let mut packer = Packer { source, base: file.parent().unwrap_or(Path::new("")), spool: spool.path(), out, files: BTreeMap::new() };
    let release = packer.release(&parsed)?;
    release.check().map_err(|source| BundleError::Manifest { file: file.to_path_buf(), source })?;
    let manifest = serde_json::to_vec(&release).map_err(|e| write(io::Error::other(e)))?;
    if manifest.len() as u64 > limits::MANIFEST_BYTES_MAX {
        let what = format!("the manifest takes {} bytes, at most {} are allowed", manifest.len(), limits::MANIFEST_BYTES_MAX);
        return Err(BundleError::Tree { tree: file.to_path_buf(), what, fix: "ship fewer files, or split the release".into() });
    }
    let digest = Digest::of(&manifest);
    let bytes = packer.files.values().map(|f| f.size).sum();
    let mut bundle = NamedTempFile::new_in(place).map_err(write)?;
    write_bundle(&mut bundle, out, &manifest, &digest, &packer.files, progress)?;
    bundle.as_file().set_permissions(std::os::unix::fs::PermissionsExt::from_mode(0o644)).map_err(write)?;
    bundle.as_file().sync_all().map_err(write)?;
    bundle.persist(out).map_err(|e| write(e.error))?;
    File::open(place).and_then(|dir| dir.sync_all()).map_err(write)?;
    Ok(Packed { release: release.id(), digest, files: packer.files.len() as u64, bytes, bundle: out.to_path_buf() })
}

/// Where the bytes of a digest lie until they are in the bundle.
struct Bytes {
    at: PathBuf,
    size: u64,
}

struct Packer<'a> {
    source: Source<'a>,
    /// Paths in release.toml are relative to it.
    base: &'a Path,
    spool: &'a Path,
    out: &'a Path,
    files: BTreeMap<Digest, Bytes>,
}

impl Packer<'_> {
    fn release(&mut self, from: &ReleaseToml) -> Result<Release, BundleError> {
        let expires = from.expires.as_ref().map(|at| self.source.expires(at)).transpose()?;
        let tasks = from.task.iter().map(|task| self.task(task)).collect::<Result<_, _>>()?;
        let components = from.component.iter().map(|component| self.component(component)).collect::<Result<_, _>>()?;
        Ok(Release {
            schema: MANIFEST_SCHEMA,
            name: from.name.clone(),
            version: from.version.clone(),
            notes: self.text("notes", from.notes.as_ref())?,
            known_issues: from.known_issues.clone(),
            runbook: Runbook {
                deploy: self.text("runbook.deploy", from.runbook.deploy.as_ref())?,
                rollback: self.text("runbook.rollback", from.runbook.rollback.as_ref())?,
            },
            expires,
            floor: from.floor.clone(),
            tasks,
            components,
        })
    }

    fn component(&mut self, from: &ComponentToml) -> Result<Component, BundleError> {
        let name = from.name.get_ref();
        // What can be told from the text alone comes before reading the tree.
        let smoke: Vec<_> = from.smoke.iter().map(|smoke| self.source.smoke(smoke)).collect::<Result<_, _>>()?;
        if from.keep == 0 || from.keep > 100 {
            return Err(self.source.bad(
                &from.name,
                format!("component {name}: keep = {}", from.keep),
                "write 1 to 100; the release before is kept in any case",
            ));
        }
        let files = self.tree(&from.tree)?;
        let service = from.service.get_ref();
        let commands = [("check", &from.check), ("before", &from.before), ("after", &from.after)];
        for (key, argv) in commands {
            if let Some(argv) = argv {
                self.program(argv, argv.get_ref(), &format!("component {name}: {key}"), &files)?;
            }
        }
        match service {
            Service::Systemd(unit) => {
                self.source.template(&from.service, unit)?;
                if unit.is_empty() || unit.contains('/') || !unit.contains('.') {
                    return Err(self.source.bad(
                        &from.service,
                        format!("component {name}: {unit:?} is not a unit's name"),
                        "write it with its suffix, for example \"shop-api.service\"",
                    ));
                }
            }
            Service::Command { start, stop, status } => {
                for (key, argv) in [("start", start), ("stop", stop), ("status", status)] {
                    self.program(&from.service, argv, &format!("component {name}: service.command.{key}"), &files)?;
                }
            }
            Service::Supervised { run, env } => {
                self.program(&from.service, run, &format!("component {name}: service.supervised.run"), &files)?;
                env.values().try_for_each(|value| self.source.template(&from.service, value))?;
                let ships =
                    |arg: &String| arg.contains("${") || files.iter().any(|f| f.path.as_str() == arg.strip_prefix("./").unwrap_or(arg));
                if from.proof == Proof::Executable && !run.iter().any(ships) {
                    let what = format!(
                        "component {name}: no word of service.supervised.run is a file of the tree, so nothing could prove that this release runs"
                    );
                    return Err(self.source.bad(
                        &from.service,
                        what,
                        "run a file of the tree (or an interpreter with one), or write proof = \"none\"",
                    ));
                }
            }
        }
        for (at, smoke) in from.smoke.iter().filter_map(|s| s.exec.as_ref().map(|e| (&s.id, e))) {
            self.program(at, &smoke.run, &format!("smoke test {}: exec.run", at.get_ref()), &files)?;
        }
        let argv = |argv: &Option<Spanned<Argv>>| argv.as_ref().map(|a| a.get_ref().clone());
        Ok(Component {
            name: name.clone(),
            links: from.links.clone(),
            service: service.clone(),
            proof: from.proof,
            check: argv(&from.check),
            before: argv(&from.before),
            after: argv(&from.after),
            arch: from.arch.clone(),
            keep: from.keep,
            smoke,
            files,
        })
    }

    fn task(&mut self, from: &TaskToml) -> Result<Task, BundleError> {
        let on = from.on.get_ref();
        if let Err(e) = on.parse::<tidegate_rollout::Selector>() {
            return Err(self.source.bad(&from.on, format!("task {:?}: on: {e}", from.name), "write for example on = \"role=db\""));
        }
        let files = self.tree(&from.tree)?;
        self.program(&from.run, from.run.get_ref(), &format!("task {:?}: run", from.name), &files)?;
        if let Some(undo) = &from.undo {
            self.program(undo, undo.get_ref(), &format!("task {:?}: undo", from.name), &files)?;
        }
        Ok(Task {
            name: from.name.clone(),
            files,
            run: from.run.get_ref().clone(),
            undo: from.undo.as_ref().map(|u| u.get_ref().clone()),
            reversible: from.reversible,
            idempotent: from.idempotent,
            on: on.clone(),
        })
    }

    fn tree(&mut self, at: &Spanned<String>) -> Result<Vec<FileEntry>, BundleError> {
        let path = self.base.join(at.get_ref());
        self.outside(at, &path)?;
        let files = tree::read(&path, self.spool, None)?;
        for TreeFile { entry, bytes_at } in &files {
            self.files.entry(entry.digest).or_insert_with(|| Bytes { at: bytes_at.clone(), size: entry.size });
        }
        Ok(files.into_iter().map(|f| f.entry).collect())
    }

    /// A bundle inside a tree would be packed into the next one.
    fn outside(&self, at: &Spanned<String>, tree: &Path) -> Result<(), BundleError> {
        let place = self.spool.parent().and_then(|p| p.canonicalize().ok());
        match (tree.canonicalize(), place) {
            (Ok(tree), Some(place)) if tree.is_dir() && place.starts_with(&tree) => {
                let what = format!("the bundle {} would lie inside the tree {}", self.out.display(), at.get_ref());
                Err(self.source.bad(at, what, "write the bundle elsewhere with -o"))
            }
            _ => Ok(()),
        }
    }

    /// An argv whose program, if it is a path below the tree, is there and may run.
    /// Names without a slash and absolute paths may be commands of the host.
    fn program<T>(&self, at: &Spanned<T>, argv: &Argv, what: &str, files: &[FileEntry]) -> Result<(), BundleError> {
        argv.iter().try_for_each(|arg| self.source.template(at, arg))?;
        let Some(program) = argv.first().filter(|p| !p.is_empty()) else {
            return Err(self.source.bad(
                at,
                format!("{what} is empty"),
                "write a program and its arguments, for example [\"bin/api\", \"--port\", \"8080\"]",
            ));
        };
        if program.contains("${") || program.starts_with('/') {
            return Ok(());
        }
        let name = program.strip_prefix("./").unwrap_or(program);
        match files.iter().find(|f| f.path.as_str() == name) {
            Some(file) if file.mode & 0o111 == 0 => Err(self.source.bad(
                at,
                format!("{what}: {program:?} is not executable"),
                format!("run `chmod +x {name}` in the tree and pack again"),
            )),
            None if program.contains('/') => Err(self.source.bad(
                at,
                format!("{what}: {program:?} is not in the tree"),
                "correct the path (relative to the tree), or build the file into the tree",
            )),
            _ => Ok(()),
        }
    }

    fn text(&mut self, key: &str, at: Option<&Spanned<String>>) -> Result<Option<FileRef>, BundleError> {
        let Some(at) = at else { return Ok(None) };
        let path = self.base.join(at.get_ref());
        let shown = at.get_ref();
        match fs::metadata(&path) {
            Ok(meta) if meta.is_file() && meta.len() <= TEXT_BYTES_MAX => {}
            Ok(_) => return Err(self.source.bad(at, format!("{key}: {shown} is not a text of at most 16 MiB"), "name a plain text file")),
            Err(e) => {
                return Err(self.source.bad(
                    at,
                    format!("{key}: {shown}: {e}"),
                    "write the file, or correct the path; it is relative to release.toml",
                ));
            }
        }
        let mut file = File::open(&path).map_err(|source| BundleError::Read { path: path.clone(), source })?;
        let (digest, size) = walk::hash_copy(&mut file, &mut io::sink()).map_err(|e| e.at(&path, &path))?;
        let path_text = at.get_ref().clone();
        self.files.entry(digest).or_insert(Bytes { at: path, size });
        Ok(Some(FileRef { path: path_text, digest, size }))
    }
}

fn write_bundle(
    to: &mut NamedTempFile,
    out: &Path,
    manifest: &[u8],
    digest: &Digest,
    files: &BTreeMap<Digest, Bytes>,
    progress: Progress<'_>,
) -> Result<(), BundleError> {
    let write = |source| BundleError::Write { path: out.to_path_buf(), source };
    let total: u64 = files.values().map(|f| f.size).sum();
    let mut to = BufWriter::with_capacity(256 * 1024, to.as_file_mut());
    let mut parts = |parts: &[&[u8]]| parts.iter().try_for_each(|part| to.write_all(part)).map_err(write);
    let size = manifest.len() as u64;
    parts(&[&format::preamble(digest), &format::header(format::MANIFEST, size), manifest, zeros(size)])?;
    let mut done = 0;
    progress(done, total);
    for (wanted, bytes) in files {
        to.write_all(&format::header(&format::member(wanted), bytes.size)).map_err(write)?;
        // The tree was hashed a moment ago; what is packed is hashed again.
        let mut from = File::open(&bytes.at).map_err(|source| BundleError::Read { path: bytes.at.clone(), source })?;
        let (digest, size) = walk::hash_copy(&mut from, &mut to).map_err(|e| e.at(&bytes.at, out))?;
        if digest != *wanted || size != bytes.size {
            let what = "changed while it was packed".to_string();
            return Err(BundleError::Tree { tree: bytes.at.clone(), what, fix: "let the build end first, then pack again".into() });
        }
        to.write_all(zeros(size)).map_err(write)?;
        done += size;
        progress(done, total);
    }
    to.write_all(&format::END).and_then(|()| to.flush()).map_err(write)
}

fn zeros(size: u64) -> &'static [u8] {
    static ZEROS: [u8; format::BLOCK] = [0; format::BLOCK];
    ZEROS.get(..format::padding(size)).unwrap_or_default()
}
