//! A log file, followed from an offset on: no line is lost to a rename, and a file
//! that was cut is read from its beginning. Blocks.

use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use crate::smoke::journal::Lines;

/// Read at one look.
const LOOK_BYTES: u64 = 1024 * 1024;
const CHUNK_BYTES: u64 = 64 * 1024;
/// Of the log before the beginning, as what was said before.
const BEFORE_BYTES: u64 = 64 * 1024;

/// Where to begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Begin {
    At(u64),
    /// Behind what is there.
    End,
}

/// A file that is read as it grows.
#[derive(Debug)]
pub(super) struct Follower {
    path: PathBuf,
    /// Held open, so that what is written before a rename is read after it.
    open: Option<Open>,
    begin: Begin,
    lines: Lines,
    /// It was cut or renamed since it was asked last.
    anew: bool,
}

#[derive(Debug)]
struct Open {
    file: File,
    id: (u64, u64),
    at: u64,
    /// Another file has its name: read to its end, and then that one.
    renamed: bool,
}

impl Follower {
    pub(super) fn new(path: PathBuf, begin: Begin) -> Self {
        Self { path, open: None, begin, lines: Lines::default(), anew: false }
    }

    /// Tells of each new line; true if there is more.
    ///
    /// # Errors
    /// The file cannot be read; one that is not there has no lines.
    pub(super) fn look(&mut self, each: &mut dyn FnMut(&str)) -> io::Result<bool> {
        let mut left = LOOK_BYTES;
        let mut bytes = Vec::new();
        while left > 0 {
            if self.open.is_none() {
                let Some(opened) = Open::new(&self.path, self.begin)? else { return Ok(false) };
                // The next file of this name is read whole.
                self.begin = Begin::At(0);
                self.open = Some(opened);
            }
            let Some(open) = &mut self.open else { return Ok(false) };
            if open.file.metadata()?.len() < open.at {
                open.at = 0;
                (self.lines, self.anew) = (Lines::default(), true);
            }
            bytes.clear();
            open.file.seek(SeekFrom::Start(open.at))?;
            (&open.file).take(left.min(CHUNK_BYTES)).read_to_end(&mut bytes)?;
            let read = bytes.len() as u64;
            open.at = open.at.saturating_add(read);
            left = left.saturating_sub(read);
            self.lines.take(&bytes, each);
            if read > 0 {
                continue;
            }
            if open.renamed {
                self.lines.end(each);
                (self.open, self.anew) = (None, true);
                continue;
            }
            open.renamed = match std::fs::metadata(&self.path) {
                Ok(now) => (now.dev(), now.ino()) != open.id,
                Err(error) if error.kind() == io::ErrorKind::NotFound => false,
                Err(error) => return Err(error),
            };
            if !open.renamed {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Whether the file began anew since this was asked last.
    pub(super) fn anew(&mut self) -> bool {
        std::mem::take(&mut self.anew)
    }
}

impl Open {
    fn new(path: &Path, begin: Begin) -> io::Result<Option<Self>> {
        let file = match File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let about = file.metadata()?;
        let at = match begin {
            Begin::At(at) if at <= about.len() => at,
            Begin::At(_) => 0,
            Begin::End => about.len(),
        };
        Ok(Some(Self { file, id: (about.dev(), about.ino()), at, renamed: false }))
    }
}

/// Tells of the lines before an offset (the file's end without one), as far as is
/// worth while; of a file that begins there, those of the one put aside.
///
/// # Errors
/// The file cannot be read; one that is not there has no lines.
pub(super) fn before(path: &Path, begin: Begin, each: &mut dyn FnMut(&str)) -> io::Result<()> {
    let (path, end) = match begin {
        Begin::At(0) => {
            let mut aside = path.as_os_str().to_owned();
            aside.push(".1");
            (PathBuf::from(aside), None)
        }
        Begin::At(at) => (path.to_owned(), Some(at)),
        Begin::End => (path.to_owned(), None),
    };
    let mut file = match File::open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    let length = file.metadata()?.len();
    let end = end.unwrap_or(length).min(length);
    let from = end.saturating_sub(BEFORE_BYTES);
    file.seek(SeekFrom::Start(from))?;
    let mut bytes = Vec::new();
    file.take(end - from).read_to_end(&mut bytes)?;
    let mut lines = Lines::default();
    // The first one is not whole, unless the file begins with it.
    let mut whole = from == 0;
    let each = &mut |line: &str| {
        if whole {
            each(line);
        }
        whole = true;
    };
    lines.take(&bytes, each);
    lines.end(each);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    fn looked(follower: &mut Follower) -> Vec<String> {
        let mut lines = Vec::new();
        while follower.look(&mut |line| lines.push(line.trim_end().to_owned())).unwrap() {}
        lines
    }

    fn append(path: &Path, text: &str) {
        let mut file = std::fs::OpenOptions::new().append(true).create(true).open(path).unwrap();
        file.write_all(text.as_bytes()).unwrap();
    }

    #[test]
    fn lines_come_whole_and_once() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        let mut follower = Follower::new(log.clone(), Begin::End);
        assert!(looked(&mut follower).is_empty(), "not there yet");
        append(&log, "old\none\ntw");
        let mut from = Follower::new(log.clone(), Begin::At(4));
        let mut end = Follower::new(log.clone(), Begin::End);
        assert_eq!(looked(&mut from), ["one"]);
        assert!(looked(&mut end).is_empty());
        append(&log, "o\nthree\n");
        assert_eq!(looked(&mut from), ["two", "three"]);
        assert_eq!(looked(&mut end), ["o", "three"]);
        assert!(looked(&mut from).is_empty());
        let long = "x".repeat(3 * 1024 * 1024);
        append(&log, &format!("{long}\nlast\n"));
        let lines = looked(&mut from);
        assert_eq!((lines.len(), lines[1].as_str()), (2, "last"));
        assert!(!from.anew());
    }

    #[test]
    fn nothing_is_lost_when_the_file_is_renamed_and_a_cut_one_is_read_from_its_beginning() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        append(&log, "one\n");
        let mut follower = Follower::new(log.clone(), Begin::At(0));
        assert_eq!(looked(&mut follower), ["one"]);
        append(&log, "two\nunfinished");
        std::fs::rename(&log, dir.path().join("log.1")).unwrap();
        assert_eq!(looked(&mut follower), ["two"], "no other file is there yet");
        append(&log, "three\n");
        assert_eq!(looked(&mut follower), ["unfinished", "three"]);
        assert!(follower.anew());
        append(&log, "four\n");
        File::create(&log).unwrap();
        append(&log, "five\n");
        assert_eq!(looked(&mut follower), ["five"]);
        assert!(follower.anew() && !follower.anew());
        let mut behind = Follower::new(log, Begin::At(1_000));
        assert_eq!(looked(&mut behind), ["five"], "an offset of the file before");
    }

    #[test]
    fn what_was_said_before_is_bounded_and_whole() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        let said = |begin| {
            let mut lines = Vec::new();
            before(&log, begin, &mut |line| lines.push(line.trim_end().to_owned())).unwrap();
            lines.retain(|line| !line.is_empty());
            lines
        };
        assert!(said(Begin::End).is_empty());
        append(&log, "one\ntwo\nthree\n");
        assert_eq!(said(Begin::End), ["one", "two", "three"]);
        assert_eq!(said(Begin::At(8)), ["one", "two"]);
        assert!(said(Begin::At(0)).is_empty());
        append(&dir.path().join("log.1"), "aside\n");
        assert_eq!(said(Begin::At(0)), ["aside"]);
        append(&log, &"0123456789abcde\n".repeat(10_000));
        let lines = said(Begin::End);
        assert!(lines.iter().all(|line| line == "0123456789abcde"));
        assert!(lines.len() as u64 >= BEFORE_BYTES / 16 - 1 && lines.len() as u64 <= BEFORE_BYTES / 16);
    }
}
