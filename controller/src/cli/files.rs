//! Files that a person names: read whole and bounded, written whole or not at all.

use std::io::{Read, Write};
use std::path::Path;

use crate::operator::msg::{ErrorCode, ErrorDoc};

/// Text of a file, or of stdin for `-`.
///
/// # Errors
/// It is not there, too large or no text: a usage error.
pub(super) fn text(path: &Path, bytes_max: u64, what: &str) -> Result<String, ErrorDoc> {
    let name = path.display();
    let cannot = |e: std::io::Error| {
        ErrorDoc::new(ErrorCode::Usage, format!("read {name}")).cause(e.to_string()).fix("check that the path is right and readable")
    };
    let mut bytes = Vec::new();
    let limit = bytes_max.saturating_add(1);
    if path == Path::new("-") {
        std::io::stdin().lock().take(limit).read_to_end(&mut bytes).map_err(cannot)?;
    } else {
        std::fs::File::open(path).and_then(|f| f.take(limit).read_to_end(&mut bytes)).map_err(cannot)?;
    }
    if u64::try_from(bytes.len()).unwrap_or(u64::MAX) > bytes_max {
        return Err(ErrorDoc::new(ErrorCode::Usage, format!("{name}: over {} KiB: this is no {what}", bytes_max / 1024)));
    }
    String::from_utf8(bytes).map_err(|_| ErrorDoc::new(ErrorCode::Usage, format!("{name}: not UTF-8 text: this is no {what}")))
}

/// A file of this text, whole, in place of one of the same name.
///
/// # Errors
/// It cannot be written there.
pub(super) fn replace(path: &Path, bytes: &[u8]) -> Result<(), ErrorDoc> {
    let temporary = laid_down(path, bytes)?;
    temporary.persist(path).map_err(|e| cannot_write(path, &e.error))?;
    Ok(())
}

/// The same, unless there is one of that name: what a person wrote is not lost.
///
/// # Errors
/// It is there already, or it cannot be written.
pub(super) fn create(path: &Path, bytes: &[u8]) -> Result<(), ErrorDoc> {
    let temporary = laid_down(path, bytes)?;
    match temporary.persist_noclobber(path) {
        Ok(_) => Ok(()),
        Err(e) if e.error.kind() == std::io::ErrorKind::AlreadyExists => {
            Err(ErrorDoc::new(ErrorCode::Usage, format!("{} is there already", path.display()))
                .fix("name another file with -o, or move it"))
        }
        Err(e) => Err(cannot_write(path, &e.error)),
    }
}

/// An empty file beside `path`, which becomes it later.
///
/// # Errors
/// The directory cannot be written to.
pub(super) fn beside(path: &Path) -> Result<tempfile::NamedTempFile, ErrorDoc> {
    use std::os::unix::fs::PermissionsExt;
    let dir = path.parent().filter(|d| !d.as_os_str().is_empty()).unwrap_or(Path::new("."));
    // As any program's file would be: the umask has its say.
    let mode = std::fs::Permissions::from_mode(0o666);
    let made = tempfile::Builder::new().prefix(".tidegate-").permissions(mode).tempfile_in(dir);
    made.map_err(|e| cannot_write(path, &e))
}

fn laid_down(path: &Path, bytes: &[u8]) -> Result<tempfile::NamedTempFile, ErrorDoc> {
    let mut temporary = beside(path)?;
    temporary.write_all(bytes).and_then(|()| temporary.as_file().sync_all()).map_err(|e| cannot_write(path, &e))?;
    Ok(temporary)
}

pub(super) fn cannot_write(path: &Path, error: &std::io::Error) -> ErrorDoc {
    ErrorDoc::new(ErrorCode::Internal, format!("write {}", path.display()))
        .cause(error.to_string())
        .fix("check that the directory is there, writable, and has room")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_appear_whole_and_what_is_there_is_kept_when_asked() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("review.toml");
        create(&path, b"one").unwrap();
        let error = create(&path, b"two").unwrap_err();
        assert_eq!(error.code.exit(), 2);
        assert_eq!(text(&path, 10, "review").unwrap(), "one");
        replace(&path, b"three").unwrap();
        assert_eq!(text(&path, 5, "review").unwrap(), "three");
        assert!(text(&path, 4, "review").unwrap_err().message.contains("this is no review"));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "a temporary file was left");
        assert_eq!(replace(&dir.path().join("none/x"), b"").unwrap_err().code.exit(), 1);
    }
}
