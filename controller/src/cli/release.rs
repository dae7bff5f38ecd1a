//! `tidegate release`: packing on any machine, importing into the controller.

use std::path::{Path, PathBuf};

use clap::Subcommand;
use serde::Serialize;
use tidegate_protocol::{Digest, ReleaseId};

use super::exit::Exit;
use super::{Context, live, render, upload};
use crate::bundle::{self, Bundle, BundleError};
use crate::operator::doc::{ImportDoc, ReleaseDoc, ReleaseShowDoc, SCHEMA};
use crate::operator::msg::{ErrorCode, ErrorDoc, Request};

/// Pack, import and look at releases
#[derive(Debug, Subcommand)]
pub(super) enum Release {
    /// Pack the trees that release.toml names into one bundle; needs no controller
    #[command(after_help = PACK_HELP)]
    Pack {
        /// What to pack
        #[arg(short = 'f', long = "file", value_name = "release.toml")]
        file: PathBuf,
        /// Where the bundle goes; it appears whole or not at all
        #[arg(short = 'o', long = "out", value_name = "BUNDLE")]
        out: PathBuf,
    },
    /// Verify a bundle and bring it to the controller; files it has are not sent again
    #[command(after_help = IMPORT_EXAMPLES)]
    Import {
        /// Made by `release pack`
        #[arg(value_name = "BUNDLE")]
        bundle: PathBuf,
    },
    /// List the controller's releases
    List,
    /// Show one release
    Show {
        /// Which, for example shop@2.1.0
        #[arg(value_name = "NAME@VERSION")]
        release: ReleaseId,
    },
}

const PACK_HELP: &str = "\
release.toml:
  name = \"shop\"
  version = \"2.1.0\"
  notes = \"NOTES.md\"                             # optional: known_issues, runbook, expires, floor
  [[component]]                                  # order here = order of deployment
  name = \"api\"
  tree = \"dist/api\"                              # a directory, .tar, .tar.gz or .tar.zst
  service = { systemd = \"shop-api.service\" }     # or command = { start, stop, status }
                                                 # or supervised = { run, env }
  check = [\"bin/api\", \"--check-config\"]          # optional: before, after, links, arch, keep, proof
  [[component.smoke]]
  id = \"SMK-001\"
  name = \"Homepage loads\"
  http = { url = \"http://127.0.0.1:8080/\" }      # or tcp, exec, systemd, journal, file
  timeout = \"5s\"
  retry_for = \"30s\"
Strings of service, check and smoke may use ${host}, ${component}, ${version}, ${label.NAME}, ${var.NAME}.
The same input gives the same bundle, byte by byte.

Examples:
  tidegate release pack -f release.toml -o shop-2.1.0.tidegate";

const IMPORT_EXAMPLES: &str = "\
Examples:
  tidegate release import shop-2.1.0.tidegate
  tidegate release import shop-2.1.0.tidegate --output json | jq .new_bytes";

/// What `release pack` prints.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct PackDoc {
    schema: u32,
    release: ReleaseId,
    digest: Digest,
    files: u64,
    bytes: u64,
    bundle: String,
}

/// Needs no controller, and no runtime.
pub(super) fn pack(output: &super::Output, file: &Path, out: &Path) -> Result<Exit, ErrorDoc> {
    let bar = live::byte_bar(output, "packing");
    let packed = bundle::pack(file, out, &mut |done, total| {
        bar.set_length(total);
        bar.set_position(done);
    });
    bar.finish_and_clear();
    let packed = packed.map_err(|e| bad_bundle(&e))?;
    let doc = PackDoc {
        schema: SCHEMA,
        release: packed.release,
        digest: packed.digest,
        files: packed.files,
        bytes: packed.bytes,
        bundle: packed.bundle.display().to_string(),
    };
    output.value(&doc, |doc, _| {
        format!(
            "packed {} ({}) into {}: {} file(s), {}\n",
            doc.release,
            doc.digest.short(),
            doc.bundle,
            doc.files,
            render::bytes(doc.bytes)
        )
    })?;
    Ok(Exit::Done)
}

/// Verified before the controller is asked for anything.
pub(super) fn open(output: &super::Output, path: &Path) -> Result<Bundle, ErrorDoc> {
    let bar = live::byte_bar(output, "verifying");
    let bundle = Bundle::open(path, &mut |done, total| {
        bar.set_length(total);
        bar.set_position(done);
    });
    bar.finish_and_clear();
    bundle.map_err(|e| bad_bundle(&e))
}

/// Those verbs that ask the controller; `bundle` is what `import` verified.
pub(super) async fn run(context: &Context, verb: Release, bundle: Option<Bundle>) -> Result<Exit, ErrorDoc> {
    let output = &context.output;
    match verb {
        Release::Pack { file, out } => return pack(output, &file, &out),
        Release::Import { .. } => {
            let bundle = bundle.ok_or_else(|| ErrorDoc::new(ErrorCode::Internal, "the bundle was not read"))?;
            let answer = upload::import(context, bundle).await?;
            output.document(&answer, |doc: &ImportDoc, color| render::import(doc, color))?;
            output.note("note: the release is not signed; hosts that demand signatures would refuse it");
        }
        Release::List => {
            let answer = context.ask(Request::ReleaseList).await?;
            output.document(&answer, |releases: &Vec<ReleaseDoc>, color| render::releases(releases, color))?;
        }
        Release::Show { release } => {
            let answer = context.ask(Request::ReleaseShow { release }).await?;
            output.document(&answer, |doc: &ReleaseShowDoc, color| render::release(doc, color))?;
        }
    }
    Ok(Exit::Done)
}

fn bad_bundle(error: &BundleError) -> ErrorDoc {
    let code = if error.is_input() { ErrorCode::Usage } else { ErrorCode::Internal };
    let doc = ErrorDoc::new(code, error.to_string()).fix(error.fix());
    match std::error::Error::source(error) {
        Some(source) => doc.cause(source.to_string()),
        None => doc,
    }
}
