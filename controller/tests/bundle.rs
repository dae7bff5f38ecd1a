//! Packing and reading bundles through the public functions, on real files.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a panic here is a failed test")]

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use tempfile::TempDir;
use tidegate_controller::bundle::{Bundle, BundleError, Packed, pack};
use tidegate_protocol::release::{Proof, Service, SmokeCheck, Suite};
use tidegate_protocol::{Digest, Millis};

const HEAD: &str = "name = \"shop\"\nversion = \"2.1.0\"\n";
const SERVICE: &str = "service = { supervised = { run = [\"bin/api\", \"--port\", \"8080\"] } }\n";
const SMOKE: &str = "[[component.smoke]]\nid = \"SMK-001\"\nname = \"Homepage\"\n";

/// Name, type, link target, mode, bytes.
type TarEntry<'a> = (&'a str, tar::EntryType, &'a str, u32, &'a [u8]);

struct Build {
    dir: TempDir,
}

impl Build {
    /// A build's output: an executable, a configuration file, and its notes.
    fn new() -> Self {
        let build = Self { dir: tempfile::tempdir().unwrap() };
        build.file("dist/api/bin/api", b"#!/bin/sh\nexec true\n", 0o775);
        build.file("dist/api/etc/api.conf", b"port = 8080\n", 0o600);
        build.file("NOTES.md", b"# 2.1.0\n", 0o644);
        build
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn file(&self, name: &str, bytes: &[u8], mode: u32) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, bytes).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
    }

    /// release.toml: the head, then one component with `more` in it.
    fn release(&self, head: &str, more: &str) -> PathBuf {
        let path = self.path("release.toml");
        fs::write(&path, format!("{HEAD}{head}[[component]]\nname = \"api\"\n{more}")).unwrap();
        path
    }

    fn pack(&self, head: &str, more: &str) -> Result<Packed, BundleError> {
        pack(&self.release(head, more), &self.path("out.tidegate"), &mut |_, _| {})
    }

    /// The refusal as a person reads it: message and fix.
    fn refusal(&self, head: &str, more: &str) -> String {
        let err = self.pack(head, more).expect_err(more);
        assert!(!self.path("out.tidegate").exists(), "a refused release left a bundle: {more}");
        let left: Vec<_> = fs::read_dir(self.dir.path())
            .unwrap()
            .map(|e| e.unwrap().file_name())
            .filter(|n| n.to_string_lossy().starts_with('.'))
            .collect();
        assert!(left.is_empty(), "{left:?}");
        assert!(err.is_input(), "{err}");
        let source = std::error::Error::source(&err).map(|e| format!(": {e}")).unwrap_or_default();
        format!("{err}{source}; fix: {}", err.fix())
    }

    /// A tar at `dist/api.tar`.
    fn tar(&self, entries: &[TarEntry<'_>]) {
        let mut builder = tar::Builder::new(fs::File::create(self.path("dist/api.tar")).unwrap());
        for (name, kind, link, mode, bytes) in entries {
            let mut header = tar::Header::new_gnu();
            // Written raw: the crate's own setters refuse what is tested here.
            for (to, from) in header.as_old_mut().name.iter_mut().zip(name.bytes()) {
                *to = from;
            }
            for (to, from) in header.as_old_mut().linkname.iter_mut().zip(link.bytes()) {
                *to = from;
            }
            header.set_entry_type(*kind);
            header.set_size(bytes.len() as u64);
            header.set_mode(*mode);
            header.set_cksum();
            builder.append(&header, *bytes).unwrap();
        }
        builder.finish().unwrap();
    }
}

fn open(path: &Path) -> Result<Bundle, BundleError> {
    Bundle::open(path, &mut |_, _| {})
}

#[test]
fn what_was_packed_is_read_back() {
    let build = Build::new();
    symlink("../etc/api.conf", build.path("dist/api/bin/conf")).unwrap();
    let head = "notes = \"NOTES.md\"\nknown_issues = \"none\"\nexpires = \"2027-01-31\"\nfloor = \"2.0.0\"\n[[task]]\nname = \"migrate\"\ntree = \"dist/api\"\nrun = [\"bin/api\", \"up\"]\nundo = [\"bin/api\", \"down\"]\non = \"role=db\"\n";
    let more = format!(
        "tree = \"dist/api\"\nlinks = {{ \"/usr/local/bin/api\" = \"bin/api\" }}\ncheck = [\"bin/api\", \"--check\"]\narch = \"x86_64\"\n{SERVICE}{SMOKE}http = {{ url = \"http://127.0.0.1:${{var.port}}/\", body = \"Welcome\" }}\n\
         [[component.smoke]]\nid = \"S2\"\nname = \"log\"\nsuite = \"integration\"\njournal = {{ deny = [\"panic\"], for = \"10s\" }}\ntimeout = \"2s\"\nretry_for = \"0s\"\n"
    );
    let packed = build.pack(head, &more).unwrap();
    assert_eq!((packed.release.to_string().as_str(), packed.files), ("shop@2.1.0", 3));
    let bundle = open(&packed.bundle).unwrap();
    assert_eq!(bundle.digest, packed.digest);
    assert_eq!(Digest::of(&bundle.manifest), packed.digest);
    let release = &bundle.release;
    assert_eq!(release.notes.as_ref().unwrap().digest, Digest::of(b"# 2.1.0\n"));
    assert_eq!(release.expires.as_deref(), Some("2027-01-31"));
    let api = &release.components[0];
    let files: Vec<(&str, u32, u64)> = api.files.iter().map(|f| (f.path.as_str(), f.mode, f.size)).collect();
    // The link inside the tree is a copy now; modes are masked.
    assert_eq!(files, [("bin/api", 0o555, 20), ("bin/conf", 0o444, 12), ("etc/api.conf", 0o444, 12)]);
    assert_eq!(api.files[1].digest, api.files[2].digest);
    assert_eq!((api.keep, api.proof), (3, Proof::Executable));
    assert!(matches!(&api.service, Service::Supervised { run, .. } if run[0] == "bin/api"));
    let smoke = &api.smoke[0];
    assert_eq!((smoke.suite, smoke.timeout, smoke.retry_for), (Suite::Critical, Millis(5_000), Millis(30_000)));
    assert!(matches!(&smoke.check, SmokeCheck::Http { status: 200, body: Some(body), .. } if body == "Welcome"));
    assert_eq!((api.smoke[1].suite, api.smoke[1].timeout, api.smoke[1].retry_for), (Suite::Integration, Millis(2_000), Millis(0)));
    assert_eq!((release.tasks[0].reversible, release.tasks[0].idempotent, release.tasks[0].files.len()), (true, false, 3));
    // Offsets lead to the bytes.
    let bytes = fs::read(&packed.bundle).unwrap();
    for file in &bundle.files {
        let (from, to) = (file.offset as usize, (file.offset + file.size) as usize);
        assert_eq!(Digest::of(&bytes[from..to]), file.digest);
    }
    // Any tar lists it.
    let mut archive = tar::Archive::new(&bytes[..]);
    let names: Vec<String> = archive.entries().unwrap().map(|e| e.unwrap().path().unwrap().display().to_string()).collect();
    assert_eq!(names[0], "release.json");
    assert_eq!(names.len(), 4);
    assert!(names[1..].is_sorted() && names[1..].iter().all(|n| n.starts_with("files/")));
}

#[test]
fn the_same_input_gives_the_same_bytes() {
    let (one, two) = (Build::new(), Build::new());
    let more = format!("tree = \"dist/api\"\n{SERVICE}");
    let (first, second) = (one.pack("", &more).unwrap(), two.pack("", &more).unwrap());
    assert_eq!(fs::read(&first.bundle).unwrap(), fs::read(&second.bundle).unwrap());
    two.file("dist/api/etc/api.conf", b"port = 8081\n", 0o644);
    let third = two.pack("", &more).unwrap();
    assert_ne!(third.digest, first.digest);
}

#[test]
fn archives_hold_what_directories_hold() {
    let more = |tree: &str| format!("tree = \"{tree}\"\n{SERVICE}");
    let build = Build::new();
    symlink("../etc/api.conf", build.path("dist/api/bin/conf")).unwrap();
    let wanted = build.pack("", &more("dist/api")).unwrap();
    for (suffix, flag) in [("tar", "-cf"), ("tar.gz", "-czf"), ("tgz", "-czf")] {
        let archive = build.path(&format!("dist/api.{suffix}"));
        let status =
            std::process::Command::new("tar").arg(flag).arg(&archive).arg("-C").arg(build.path("dist/api")).arg(".").status().unwrap();
        assert!(status.success());
        let packed = build.pack("", &more(&format!("dist/api.{suffix}"))).unwrap();
        assert_eq!(packed.digest, wanted.digest, "{suffix}");
    }
    let tar = fs::read(build.path("dist/api.tar")).unwrap();
    fs::write(build.path("dist/api.tar.zst"), zstd::encode_all(&tar[..], 3).unwrap()).unwrap();
    assert_eq!(build.pack("", &more("dist/api.tar.zst")).unwrap().digest, wanted.digest);
}

#[test]
fn release_toml_is_refused_with_line_and_fix() {
    let build = Build::new();
    build.file("dist/api/bin/data", b"x", 0o644);
    fs::create_dir(build.path("dist/empty")).unwrap();
    let tree = "tree = \"dist/api\"\n";
    let run = |argv: &str| format!("{tree}service = {{ supervised = {{ run = {argv} }} }}\n");
    let smoke = |check: &str| format!("{tree}{SERVICE}{SMOKE}{check}");
    let cases: Vec<(&str, String, &[&str])> = vec![
        ("typo = 1\n", format!("{tree}{SERVICE}"), &["line 3", "typo", "expected one of"]),
        ("", format!("{tree}{SERVICE}cheque = [\"x\"]\n"), &["line 7", "cheque"]),
        ("", format!("{tree}service = {{ sysv = \"api\" }}\n"), &["line 6", "sysv"]),
        ("", SERVICE.into(), &["tree"]),
        ("", format!("tree = \"dist/none\"\n{SERVICE}"), &["dist/none", "does not exist", "build it"]),
        ("", format!("tree = \"dist/empty\"\n{SERVICE}"), &["dist/empty", "no file"]),
        ("", format!("tree = \"NOTES.md\"\n{SERVICE}"), &["NOTES.md", "neither a directory nor", ".tar.gz"]),
        ("", format!("tree = \".\"\n{SERVICE}"), &["line 5", "inside the tree", "elsewhere"]),
        ("", run("[\"bin/server\"]"), &["line 6", "bin/server", "not in the tree"]),
        ("", run("[\"bin/data\"]"), &["line 6", "bin/data", "not executable", "chmod +x"]),
        ("", run("[]"), &["line 6", "empty"]),
        ("", run("[\"python3\", \"app.py\"]"), &["line 6", "proof = \"none\""]),
        ("", run("[\"bin/api\", \"${var}\"]"), &["line 6", "${var}", "${var.NAME}"]),
        ("", format!("{tree}{SERVICE}check = [\"bin/check\"]\n"), &["line 7", "check", "bin/check", "not in the tree"]),
        ("", format!("{tree}{SERVICE}keep = 0\n"), &["keep = 0", "1 to 100"]),
        ("", format!("{tree}{SERVICE}links = {{ \"bin/x\" = \"bin/api\" }}\n"), &["bin/x", "absolute"]),
        ("", format!("{tree}service = {{ systemd = \"api\" }}\n"), &["unit's name", "shop-api.service"]),
        ("", smoke(""), &["line 8", "SMK-001", "asserts nothing", "http, tcp"]),
        ("", smoke("tcp = { address = \"127.0.0.1:1\" }\nexec = { run = [\"bin/api\"] }\n"), &["more than one check"]),
        ("", smoke("http = { url = \"https://127.0.0.1/\" }\n"), &["line 8", "https", "http port on loopback"]),
        ("", smoke("http = { url = \"127.0.0.1\" }\n"), &["not an http URL", "http://127.0.0.1:8080/health"]),
        ("", smoke("http = { url = \"http://127.0.0.1/\", body = \"\" }\n"), &["asserts nothing"]),
        ("", smoke("http = { url = \"http://127.0.0.1/\", status = 20 }\n"), &["20 is not an http status"]),
        ("", smoke("tcp = { address = \"127.0.0.1\" }\n"), &["HOST:PORT"]),
        ("", smoke("exec = { run = [\"bin/smoke\"] }\n"), &["SMK-001", "bin/smoke", "not in the tree"]),
        ("", smoke("journal = { deny = [] }\n"), &["asserts nothing", "deny"]),
        ("", smoke("systemd = { max_restarts = 0 }\n"), &["SMK-001", "systemd unit"]),
        ("", smoke("file = { path = \"etc/api.conf\", sha256 = \"abc\" }\n"), &["line 10", "64 lower-case hex"]),
        ("", smoke("tcp = { address = \"127.0.0.1:1\" }\ntimeout = \"5\"\n"), &["line 11", "timeout", "\"30s\""]),
        ("expires = \"2027-02-30\"\n", format!("{tree}{SERVICE}"), &["line 3", "2027-02-30", "YYYY-MM-DD"]),
        ("expires = \"2027-1-3\"\n", format!("{tree}{SERVICE}"), &["line 3", "2027-1-3", "YYYY-MM-DD"]),
        ("notes = \"MISSING.md\"\n", format!("{tree}{SERVICE}"), &["line 3", "MISSING.md", "relative to release.toml"]),
        (
            "[[task]]\nname = \"m\"\ntree = \"dist/api\"\nrun = [\"bin/api\"]\non = \"=\"\n",
            format!("{tree}{SERVICE}"),
            &["line 7", "selector", "role=db"],
        ),
        ("", format!("{tree}{SERVICE}[[component]]\nname = \"api\"\n{tree}{SERVICE}"), &["api", "twice"]),
        ("", format!("{tree}{SERVICE}{SMOKE}tcp = {{ address = \"a:1\" }}\n{SMOKE}tcp = {{ address = \"a:1\" }}\n"), &["SMK-001", "twice"]),
    ];
    for (head, more, wanted) in cases {
        let said = build.refusal(head, &more);
        assert!(said.contains("release.toml") || said.contains("dist/") || said.contains("NOTES.md"), "no file named: {said}");
        for part in wanted {
            assert!(said.contains(part), "{part:?} not in: {said}");
        }
    }
}

#[test]
fn directories_are_refused_by_entry() {
    let more = format!("tree = \"dist/api\"\n{SERVICE}");
    type Spoil = fn(&Build);
    let cases: [(Spoil, &str, &str); 7] = [
        (|b| symlink("/etc/passwd", b.path("dist/api/x")).unwrap(), "\"x\"", "absolute"),
        (|b| symlink("../../NOTES.md", b.path("dist/api/x")).unwrap(), "\"x\"", "out of the tree"),
        (|b| symlink("etc", b.path("dist/api/x")).unwrap(), "\"x\"", "directory"),
        (|b| symlink("nothing", b.path("dist/api/x")).unwrap(), "\"x\"", "does not exist"),
        (|b| b.file("dist/api/bin/su", b"x", 0o4755), "\"bin/su\"", "chmod"),
        (|b| drop(std::os::unix::net::UnixListener::bind(b.path("dist/api/sock")).unwrap()), "\"sock\"", "socket"),
        (|b| b.file("dist/api/a\nb", b"x", 0o644), "a\\nb", "rename"),
    ];
    for (spoil, entry, wanted) in cases {
        let build = Build::new();
        spoil(&build);
        let said = build.refusal("", &more);
        assert!(said.contains(entry) && said.contains(wanted), "{said}");
    }
}

#[test]
fn archives_are_refused_by_entry() {
    use tar::EntryType as T;
    let more = format!("tree = \"dist/api.tar\"\n{SERVICE}");
    let api = ("bin/api", T::Regular, "", 0o755, &b"x"[..]);
    let cases: Vec<(Vec<TarEntry<'_>>, &str, &str)> = vec![
        (vec![api, ("/etc/passwd", T::Regular, "", 0o644, b"x")], "\"/etc/passwd\"", "out of the tree"),
        (vec![api, ("bin/../../x", T::Regular, "", 0o644, b"x")], "\"bin/../../x\"", "out of the tree"),
        (vec![api, ("bin/api", T::Regular, "", 0o755, b"y")], "\"bin/api\"", "twice"),
        (vec![api, ("./bin//api", T::Regular, "", 0o755, b"y")], "\"bin/api\"", "twice"),
        (vec![api, ("bin/api/x", T::Regular, "", 0o644, b"y")], "\"bin/api/x\"", "not a directory"),
        (vec![api, ("up", T::Symlink, "..", 0o777, b""), ("up/x", T::Regular, "", 0o644, b"y")], "\"up/x\"", "not a directory"),
        (vec![api, ("x", T::Symlink, "/etc/passwd", 0o777, b"")], "\"x\"", "absolute"),
        (vec![api, ("x", T::Link, "bin/api", 0o755, b"")], "\"x\"", "--hard-dereference"),
        (vec![api, ("null", T::Char, "", 0o666, b"")], "\"null\"", "device"),
        (vec![api, ("pipe", T::Fifo, "", 0o666, b"")], "\"pipe\"", "fifo"),
        (vec![api, ("su", T::Regular, "", 0o4755, b"x")], "\"su\"", "setuid"),
    ];
    for (entries, entry, wanted) in cases {
        let build = Build::new();
        build.tar(&entries);
        let said = build.refusal("", &more);
        assert!(said.contains(entry) && said.contains(wanted), "{entry}: {said}");
    }
    let build = Build::new();
    build.tar(&[api]);
    let whole = fs::read(build.path("dist/api.tar")).unwrap();
    fs::write(build.path("dist/api.tar"), &whole[..513]).unwrap();
    let said = build.refusal("", &more);
    assert!(said.contains("api.tar"), "{said}");
    fs::write(build.path("dist/api.tar"), b"this is no archive at all").unwrap();
    assert!(build.refusal("", &more).contains("tar archive"));
}

#[test]
fn every_flipped_byte_and_every_cut_is_found() {
    let build = Build::new();
    let packed = build.pack("", &format!("tree = \"dist/api\"\n{SERVICE}")).unwrap();
    let bytes = fs::read(&packed.bundle).unwrap();
    let bad = build.path("bad.tidegate");
    // A prime step meets headers, data and padding of every entry.
    for at in (0..bytes.len()).step_by(7) {
        let mut spoilt = bytes.clone();
        spoilt[at] ^= 0x01;
        fs::write(&bad, &spoilt).unwrap();
        let err = open(&bad).expect_err(&format!("byte {at}"));
        assert!(err.is_input() && err.to_string().contains("bad.tidegate"), "{err}");
    }
    for cut in (0..bytes.len()).step_by(97) {
        fs::write(&bad, &bytes[..cut]).unwrap();
        assert!(open(&bad).is_err(), "cut at {cut}");
    }
}

#[test]
fn extra_and_missing_entries_are_named() {
    let build = Build::new();
    let packed = build.pack("", &format!("tree = \"dist/api\"\n{SERVICE}")).unwrap();
    let bundle = open(&packed.bundle).unwrap();
    let bytes = fs::read(&packed.bundle).unwrap();
    let bad = build.path("bad.tidegate");
    let check = |bytes: &[u8], wanted: &[&str]| {
        fs::write(&bad, bytes).unwrap();
        let said = open(&bad).unwrap_err().to_string();
        wanted.iter().for_each(|w| assert!(said.contains(w), "{w:?} not in {said}"));
    };
    let second = bundle.files[1];
    let cut_at = second.offset as usize - 512;
    let end_at = cut_at + 512 + (second.size as usize).next_multiple_of(512);
    let missing = [&bytes[..cut_at], &bytes[end_at..]].concat();
    check(&missing, &[&second.digest.to_string(), "missing"]);
    let extra = [&bytes[..end_at], &bytes[cut_at..end_at], &bytes[end_at..]].concat();
    check(&extra, &[&second.digest.to_string(), "not in the manifest"]);
    let trailing = [&bytes[..], b"x"].concat();
    check(&trailing, &["after the end mark"]);
    let swapped = {
        let first = bundle.files[0];
        let first_at = first.offset as usize - 512;
        [&bytes[..first_at], &bytes[cut_at..end_at], &bytes[first_at..cut_at], &bytes[end_at..]].concat()
    };
    check(&swapped, &["stands where"]);
    check(b"PK\x03\x04 this is something else", &["release.json"]);
    assert!(matches!(open(&build.path("none")), Err(BundleError::Read { .. })));
}
