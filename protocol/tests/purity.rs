//! The pure crates stay pure: `no_std`, and nothing in their dependency tree
//! that could do I/O, read a clock or start a thread.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Crate and folder.
const PURE: [(&str, &str); 4] = [
    ("tidegate-protocol", "protocol"),
    ("tidegate-swap", "agent/swap"),
    ("tidegate-rollout", "controller/rollout"),
    ("tidegate-docs", "controller/docs"),
];

/// What every pure crate may have below it: the codec, serde, sha2, thiserror,
/// and what they bring.
const ALLOWED: &[&str] = &[
    "bincode",
    "unty",
    "serde",
    "serde_core",
    "serde_derive",
    "sha2",
    "digest",
    "block-buffer",
    "crypto-common",
    "hybrid-array",
    "typenum",
    "cfg-if",
    "cpufeatures",
    "libc",
    "thiserror",
    "thiserror-impl",
    "proc-macro2",
    "quote",
    "syn",
    "unicode-ident",
    "tidegate-protocol",
];
/// And the rollout besides, which reads plans and writes records; the documents
/// are made from those. Of jiff without its default features: a calendar, no
/// clock and no time zones.
const ALLOWED_ROLLOUT: &[&str] = &[
    "serde_json",
    "itoa",
    "memchr",
    "ryu",
    "zmij",
    "toml",
    "toml_datetime",
    "toml_parser",
    "toml_writer",
    "serde_spanned",
    "winnow",
    "jiff",
    "jiff-core",
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_path_buf()
}

fn normal_dependencies(package: &str) -> BTreeSet<String> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(["tree", "--offline", "--package", package, "--edges", "normal", "--prefix", "none", "--format", "{p}"])
        .current_dir(root())
        .output()
        .unwrap();
    assert!(output.status.success(), "cargo tree: {}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().filter_map(|line| line.split_whitespace().next()).map(String::from).collect()
}

#[test]
fn pure_crates_depend_on_pure_crates_only() {
    for (package, _) in PURE {
        let mut allowed: BTreeSet<&str> = ALLOWED.iter().copied().collect();
        allowed.insert(package);
        if ["tidegate-rollout", "tidegate-docs"].contains(&package) {
            allowed.extend(ALLOWED_ROLLOUT);
        }
        if package == "tidegate-docs" {
            allowed.insert("tidegate-rollout");
        }
        let tree = normal_dependencies(package);
        // A listing that is empty or of another package would allow everything.
        assert!(tree.contains(package) && tree.contains("serde"), "{package}: {tree:?}");
        let foreign: Vec<&String> = tree.iter().filter(|name| !allowed.contains(name.as_str())).collect();
        assert!(
            foreign.is_empty(),
            "{package} depends on {foreign:?}: a pure crate does no I/O; if the crate is pure too, add it to the list"
        );
    }
}

fn rust_files(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(rust_files(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files
}

/// Only for tests: `#[cfg(test)]` right above, or behind it.
fn is_test_only(lines: &[&str], at: usize) -> bool {
    at > 0 && lines[at - 1].trim() == "#[cfg(test)]"
}

#[test]
fn pure_crates_are_no_std() {
    for (package, folder) in PURE {
        let src = root().join(folder).join("src");
        let lib = fs::read_to_string(src.join("lib.rs")).unwrap();
        assert!(lib.lines().any(|line| line.trim() == "#![no_std]"), "{package}: lib.rs has no #![no_std]");
        for file in rust_files(&src) {
            let text = fs::read_to_string(&file).unwrap();
            let lines: Vec<&str> = text.lines().collect();
            for (at, line) in lines.iter().enumerate() {
                let code = line.split("//").next().unwrap_or_default();
                let std = code.contains("extern crate std") && !is_test_only(&lines, at);
                assert!(!std, "{}:{}: a pure crate must not bring std in", file.display(), at + 1);
            }
        }
    }
}
