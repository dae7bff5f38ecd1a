//! The bytes of a bundle: tar headers that follow from name and size alone.
//!
//! Writer and reader share these functions, so that a header which differs in
//! any bit from what we write is found without interpreting it.

use tidegate_protocol::Digest;

/// tar's unit.
pub(super) const BLOCK: usize = 512;
/// The first member.
pub(super) const MANIFEST: &str = "release.json";
const PAX_NAME: &str = "pax/release.json";

/// The name of a file's member.
pub(super) fn member(digest: &Digest) -> String {
    format!("files/{digest}")
}

/// The header block of a member.
pub(super) fn header(name: &str, size: u64) -> [u8; BLOCK] {
    block(name, size, tar::EntryType::Regular)
}

/// What precedes the manifest's header: a pax comment with its digest, in the way
/// `git archive` notes a commit. Every tar reads past it.
pub(super) fn preamble(manifest: &Digest) -> [u8; 2 * BLOCK] {
    // "LEN comment=HEX\n", LEN counting itself: 2 + 1 + 8 + 64 + 1.
    let record = format!("76 comment={manifest}\n");
    let mut out = [0; 2 * BLOCK];
    let (head, body) = out.split_at_mut(BLOCK);
    head.copy_from_slice(&block(PAX_NAME, record.len() as u64, tar::EntryType::XHeader));
    for (to, from) in body.iter_mut().zip(record.bytes()) {
        *to = from;
    }
    out
}

/// Zero bytes after a member's data.
pub(super) const fn padding(size: u64) -> usize {
    // Below 512, so that it fits.
    ((BLOCK as u64 - size % BLOCK as u64) % BLOCK as u64) as usize
}

/// What ends the file.
pub(super) const END: [u8; 2 * BLOCK] = [0; 2 * BLOCK];

fn block(name: &str, size: u64, kind: tar::EntryType) -> [u8; BLOCK] {
    let mut header = tar::Header::new_ustar();
    // Names are ours: plain ASCII, below 100 bytes.
    for (to, from) in header.as_old_mut().name.iter_mut().zip(name.bytes()) {
        *to = from;
    }
    header.set_entry_type(kind);
    header.set_size(size);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_cksum();
    *header.as_bytes()
}

/// Name and size of a header that is not the expected one, for the error.
pub(super) fn describe(bytes: &[u8; BLOCK]) -> (String, Option<u64>) {
    let mut header = tar::Header::new_ustar();
    header.as_mut_bytes().copy_from_slice(bytes);
    let name: String = String::from_utf8_lossy(&header.path_bytes()).chars().filter(|c| !c.is_control()).take(120).collect();
    (name, header.size().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stock_tar_reads_what_we_write() {
        let manifest = b"{}";
        let mut bytes = preamble(&Digest::of(manifest)).to_vec();
        bytes.extend_from_slice(&header(MANIFEST, manifest.len() as u64));
        bytes.extend_from_slice(manifest);
        bytes.resize(bytes.len() + padding(manifest.len() as u64), 0);
        bytes.extend_from_slice(&END);
        assert_eq!(bytes.len() % BLOCK, 0);
        let mut archive = tar::Archive::new(&bytes[..]);
        let mut entries = archive.entries().unwrap();
        let mut first = entries.next().unwrap().unwrap();
        assert_eq!(first.path().unwrap().to_str(), Some(MANIFEST));
        assert_eq!(first.size(), 2);
        let pax: Vec<(String, String)> = first
            .pax_extensions()
            .unwrap()
            .unwrap()
            .map(|p| p.unwrap())
            .map(|p| (p.key().unwrap().into(), p.value().unwrap().into()))
            .collect();
        assert_eq!(pax, [("comment".to_string(), Digest::of(manifest).to_string())]);
        assert!(entries.next().is_none());
    }

    #[test]
    fn sizes_beyond_octal_are_kept() {
        let size = 40 * 1024 * 1024 * 1024;
        assert_eq!(describe(&header("files/x", size)), ("files/x".into(), Some(size)));
    }

    #[test]
    fn padding_fills_blocks() {
        assert_eq!([0, 1, 511, 512, 513].map(padding), [0, 511, 1, 0, 511]);
    }
}
