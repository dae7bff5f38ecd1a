//! `tidegate docs`: the six deliverables as files.

use std::path::{Path, PathBuf};

use clap::Args;
use serde::Serialize;
use tidegate_protocol::{Digest, RolloutId};

use super::call::Link;
use super::exit::Exit;
use super::output::read;
use super::table::Table;
use super::{Context, files, render};
use crate::operator::client::Part;
use crate::operator::doc::PaperDoc;
use crate::operator::msg::{ErrorCode, ErrorDoc, Request};

/// Most papers of one rollout.
const PAPERS_MAX: usize = 256;
/// Longest name of one.
const NAME_BYTES_MAX: usize = 120;

#[derive(Debug, Args)]
pub(super) struct Papers {
    /// Which rollout, as `rollout start` printed it
    #[arg(value_name = "ID")]
    id: RolloutId,
    /// Where they go: made if need be; files of the same names are replaced, each whole
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
}

pub(super) const HELP: &str = "\
The papers are made from the journal alone: the same journal makes the same bytes, at any time, also while the rollout
runs. Markdown to read, self-contained HTML to print and sign, JSON for scripts, JUnit XML of the smoke tests.

Examples:
  tidegate docs shop-1 --out papers/shop-1
  tidegate docs shop-1 --out papers --output json | jq -r '.[] | \"\\(.sha256)  \\(.name)\"'";

/// A paper that was written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct WrittenDoc {
    name: String,
    bytes: u64,
    sha256: Digest,
}

/// All papers of a rollout.
pub(super) async fn all(context: &Context, id: RolloutId) -> Result<Vec<PaperDoc>, ErrorDoc> {
    let link = Link::open(context).await?;
    let mut answers = link.stream(context, &Request::RolloutDocs { id }).await?;
    let mut papers: Vec<PaperDoc> = Vec::new();
    loop {
        match answers.next().await? {
            Part::Document(json) if papers.len() < PAPERS_MAX => papers.push(read(&json)?),
            Part::Document(_) => return Err(ErrorDoc::new(ErrorCode::Internal, format!("over {PAPERS_MAX} papers came"))),
            Part::Event(_) => {}
            Part::End(_) => break,
        }
    }
    link.close().await;
    Ok(papers)
}

pub(super) async fn run(context: &Context, args: Papers) -> Result<Exit, ErrorDoc> {
    let papers = all(context, args.id).await?;
    let dir = args.out.clone();
    let written = tokio::task::spawn_blocking(move || write(&dir, &papers))
        .await
        .map_err(|e| ErrorDoc::new(ErrorCode::Internal, "write the papers").cause(e.to_string()))??;
    context.output.value(&written, |written, color| shown(written, color))?;
    context.output.note(&format!("{} paper(s) are in {}", written.len(), args.out.display()));
    Ok(Exit::Done)
}

/// All names are good before anything is written.
fn write(dir: &Path, papers: &[PaperDoc]) -> Result<Vec<WrittenDoc>, ErrorDoc> {
    for (i, paper) in papers.iter().enumerate() {
        let again = papers.iter().take(i).any(|p| p.name.eq_ignore_ascii_case(&paper.name));
        if again || !is_plain_name(&paper.name) {
            return Err(ErrorDoc::new(ErrorCode::Internal, "nothing was written: the controller names a paper as no paper is named")
                .cause(format!("{:?}", super::table::clean(&paper.name, 200)))
                .fix("find out who runs that controller"));
        }
    }
    std::fs::create_dir_all(dir).map_err(|e| files::cannot_write(dir, &e))?;
    let mut written = Vec::new();
    for paper in papers {
        let bytes = paper.text.as_bytes();
        files::replace(&dir.join(&paper.name), bytes)?;
        written.push(WrittenDoc {
            name: paper.name.clone(),
            bytes: u64::try_from(bytes.len()).unwrap_or(u64::MAX),
            sha256: Digest::of(bytes),
        });
    }
    Ok(written)
}

/// Names a file in the directory and nothing else, on any system.
fn is_plain_name(name: &str) -> bool {
    let ok = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'_' | b'.');
    !name.is_empty() && name.len() <= NAME_BYTES_MAX && !name.starts_with(['.', '-']) && name.bytes().all(ok)
}

fn shown(written: &[WrittenDoc], color: bool) -> String {
    let mut table = Table::new(["NAME", "SIZE", "SHA256"]);
    for paper in written {
        table.row([paper.name.as_str().into(), render::bytes(paper.bytes).into(), paper.sha256.to_string().into()]);
    }
    if table.is_empty() { "no paper\n".into() } else { table.render(color) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paper(name: &str, text: &str) -> PaperDoc {
        PaperDoc { name: name.into(), text: text.into() }
    }

    #[test]
    fn papers_are_written_whole_and_replace_older_ones() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("a/b");
        write(&out, &[paper("1-x.md", "old")]).unwrap();
        // A link of that name is replaced, not followed.
        std::os::unix::fs::symlink(dir.path().join("elsewhere"), out.join("2-y.html")).unwrap();
        let written = write(&out, &[paper("1-x.md", "new"), paper("2-y.html", "é")]).unwrap();
        assert_eq!(std::fs::read_to_string(out.join("1-x.md")).unwrap(), "new");
        assert!(!dir.path().join("elsewhere").exists());
        assert_eq!(std::fs::read_dir(&out).unwrap().count(), 2);
        let seen: Vec<(&str, u64, Digest)> = written.iter().map(|w| (w.name.as_str(), w.bytes, w.sha256)).collect();
        assert_eq!(seen, [("1-x.md", 3, Digest::of(b"new")), ("2-y.html", 2, Digest::of("é".as_bytes()))]);
    }

    #[test]
    fn a_name_that_leads_elsewhere_writes_nothing_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("out");
        let long = "a".repeat(121);
        for bad in
            ["", ".", "..", "../x", "/etc/x", "a/b", "a\\b", ".bashrc", "-rf", "a b", "a\n", "a\0", "é.md", "1-x.md", "1-X.md", &long]
        {
            let error = write(&out, &[paper("1-x.md", ""), paper(bad, "")]).unwrap_err();
            assert_eq!(error.code, ErrorCode::Internal, "{bad:?}");
            assert!(!out.exists(), "{bad:?}");
        }
    }
}
