//! OpenSSH signatures, in both directions against the stock `ssh-keygen`.
// A panic in a helper is a failed test too.
#![allow(clippy::unwrap_used)]

use std::collections::HashMap;
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant, SystemTime};

use tempfile::TempDir;
use tidegate_net::ssh::{
    AllowedSigners, NAMESPACE_APPROVAL as NS, NAMESPACE_RELEASE, SignError, Signer, VerifyError, fingerprint, sign, verify,
};

const MESSAGE: &[u8] = b"release sha256:aa\nplan sha256:bb\n";
/// 2026-06-01 00:00:00 UTC, milliseconds.
const NOW: u64 = 1_780_272_000_000;

/// Runs an OpenSSH tool, with no terminal to ask on.
fn ssh(program: &str, args: &[&str], input: &[u8]) -> Output {
    let mut command = Command::new(program);
    command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).env_remove("SSH_AUTH_SOCK");
    let mut child = command.spawn().unwrap_or_else(|error| panic!("{program}: {error}; install openssh-client"));
    // A tool that does not read its input closes it early.
    let _ = child.stdin.take().unwrap().write_all(input);
    child.wait_with_output().unwrap()
}

fn keygen(args: &[&str], input: &[u8]) -> String {
    let output = ssh("ssh-keygen", args, input);
    assert!(output.status.success(), "ssh-keygen {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

struct Keys {
    dir: TempDir,
}

impl Keys {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }

    /// A new key pair; `kind` as in `ssh-keygen -t`, with the bits behind a colon.
    fn make(&self, name: &str, kind: &str) -> PathBuf {
        self.make_with(name, kind, "")
    }

    fn make_with(&self, name: &str, kind: &str, passphrase: &str) -> PathBuf {
        let (kind, bits) = kind.split_once(':').unwrap_or((kind, "256"));
        keygen(&["-q", "-t", kind, "-b", bits, "-N", passphrase, "-C", &format!("{name}'s key"), "-f", &self.text(name)], b"");
        self.path(name)
    }

    fn public(&self, name: &str) -> String {
        fs::read_to_string(self.path(&format!("{name}.pub"))).unwrap().trim().to_owned()
    }

    /// What the stock tool signs.
    fn stock(&self, name: &str, namespace: &str, message: &[u8], options: &[&str]) -> String {
        let key = self.text(name);
        keygen(&[&["-Y", "sign", "-n", namespace, "-f", &key], options].concat(), message)
    }

    /// What the stock tool says of a signature.
    fn stock_accepts(&self, signers: &str, principal: &str, namespace: &str, signature: &str, message: &[u8]) -> bool {
        fs::write(self.path("signers"), signers).unwrap();
        fs::write(self.path("sig"), signature).unwrap();
        let (file, sig) = (self.text("signers"), self.text("sig"));
        // The same time for both.
        let args = ["-Y", "verify", "-f", &file, "-I", principal, "-n", namespace, "-s", &sig, "-Overify-time=20260601Z"];
        ssh("ssh-keygen", &args, message).status.success()
    }
}

fn signers(text: &str) -> AllowedSigners {
    AllowedSigners::parse(text, "allowed_signers").unwrap()
}

fn check(text: &str, signature: &str) -> Result<Signer, VerifyError> {
    verify(&signers(text), signature, NS, MESSAGE, None, NOW)
}

#[test]
fn what_stock_ssh_keygen_signs_is_verified() {
    let keys = Keys::new();
    for (name, kind) in [("e", "ed25519"), ("p256", "ecdsa:256"), ("p384", "ecdsa:384"), ("r2", "rsa:2048"), ("r3", "rsa:3072")] {
        keys.make(name, kind);
        for hash in ["sha256", "sha512"] {
            let signature = keys.stock(name, NS, MESSAGE, &[&format!("-Ohashalg={hash}")]);
            let signer = check(&format!("ada@example.com {}\n", keys.public(name)), &signature).unwrap();
            assert_eq!(signer.principal, "ada@example.com");
            assert_eq!(signer.principals, ["ada@example.com"]);
            assert_eq!(signer.comment, format!("{name}'s key"));
            assert_eq!(format!("{} {}", signer.public_key, signer.comment), keys.public(name));
            let listed = keygen(&["-lf", &keys.text(name)], b"");
            assert_eq!(listed.split(' ').nth(1).unwrap(), signer.key.to_string(), "{listed}");
            assert_eq!(fingerprint(&signature).unwrap(), signer.key);
            let wrong = verify(&signers(&format!("a {}", keys.public(name))), &signature, NS, b"another plan", None, NOW);
            assert_eq!(wrong, Err(VerifyError::Broken { fingerprint: signer.key }), "{kind}");
        }
    }
}

#[test]
fn what_is_signed_here_is_verified_by_stock_ssh_keygen() {
    let keys = Keys::new();
    // RSA is signed by ssh-keygen, as is a key in the old PEM format.
    for (name, kind) in [("e", "ed25519"), ("p256", "ecdsa:256"), ("p384", "ecdsa:384"), ("r", "rsa:2048"), ("pem", "ecdsa:256")] {
        let path = keys.make(name, kind);
        if name == "pem" {
            keygen(&["-q", "-p", "-m", "PEM", "-N", "", "-f", &keys.text(name)], b"");
            assert!(fs::read_to_string(&path).unwrap().contains("BEGIN EC PRIVATE KEY"));
        }
        for message in [MESSAGE, b"", &[0xff; 70_000]] {
            let signature = sign(&path, NS, message).unwrap();
            let list = format!("ada {}\n", keys.public(name));
            assert!(keys.stock_accepts(&list, "ada", NS, &signature, message), "{kind}");
            assert!(!keys.stock_accepts(&list, "ada", NS, &signature, b"other"), "{kind}");
            verify(&signers(&list), &signature, NS, message, Some("ada"), NOW).unwrap();
        }
    }
}

/// Every rule of the file, decided here and by the stock tool: both must agree.
#[test]
fn both_decide_alike_who_may_sign() {
    let keys = Keys::new();
    keys.make("key", "ed25519");
    keys.make("other", "ed25519");
    let signature = keys.stock("key", NS, MESSAGE, &[]);
    let (key, other) = (keys.public("key"), keys.public("other"));
    let mut seen = HashMap::from([(true, 0), (false, 0)]);
    for (list, principal, expected) in [
        ("ada KEY", "ada", true),
        ("ada KEY", "Ada", false),
        ("ada KEY", "grace", false),
        ("ada OTHER", "ada", false),
        ("*@example.com KEY", "ada@example.com", true),
        ("*@example.com KEY", "ada@example.org", false),
        ("a?a KEY", "ada", true),
        ("*,!mallory KEY", "ada", true),
        ("*,!mallory KEY", "mallory", false),
        ("!mallory,* KEY", "mallory", false),
        ("\"Ada Lovelace,ada\" KEY", "Ada Lovelace", true),
        ("# who\n\n  # may\n\tada\t KEY", "ada", true),
        ("ada OTHER\nada KEY", "ada", true),
        ("ada KEY\nada OTHER", "ada", true),
        ("bob KEY\nada KEY", "ada", true),
        ("ada namespaces=\"tidegate-approval\" KEY", "ada", true),
        ("ada NameSpaces=\"file,tidegate-*\" KEY", "ada", true),
        ("ada namespaces=\"file\" KEY", "ada", false),
        ("ada namespaces=\"*,!tidegate-approval\" KEY", "ada", false),
        ("ada namespaces=\"file\" KEY\nada KEY", "ada", true),
        ("ada valid-after=\"20260101Z\" KEY", "ada", true),
        // the very second belongs to both
        ("ada valid-after=\"20260601Z\" KEY", "ada", true),
        ("ada valid-before=\"20260601Z\" KEY", "ada", true),
        ("ada valid-after=\"20260601000001Z\" KEY", "ada", false),
        ("ada valid-before=\"20260531235959Z\" KEY", "ada", false),
        ("ada valid-before=\"202605312359Z\" KEY", "ada", false),
        ("ada valid-after=\"20260101Z\",valid-before=\"20270101Z\",namespaces=\"tidegate-approval\" KEY", "ada", true),
        ("ada valid-before=\"20260101Z\" KEY\nada valid-after=\"20260101Z\" KEY", "ada", true),
        ("ada valid-before=\"20260101Z\" KEY\nbob KEY", "ada", false),
    ] {
        let list = list.replace("KEY", &key).replace("OTHER", &other);
        let ours = verify(&signers(&list), &signature, NS, MESSAGE, Some(principal), NOW);
        assert_eq!(ours.is_ok(), expected, "{principal} by {list}: {ours:?}");
        assert_eq!(keys.stock_accepts(&list, principal, NS, &signature, MESSAGE), expected, "stock: {principal} by {list}");
        *seen.get_mut(&expected).unwrap() += 1;
    }
    assert!(seen[&true] > 10 && seen[&false] > 8);
}

#[test]
fn refusals_say_which_rule() {
    let keys = Keys::new();
    keys.make("key", "ed25519");
    keys.make("other", "ed25519");
    let signature = keys.stock("key", NS, MESSAGE, &[]);
    let (key, other) = (keys.public("key"), keys.public("other"));
    let fingerprint = fingerprint(&signature).unwrap();
    let file = || "allowed_signers".to_owned();
    let ask = |list: &str, principal: Option<&str>| verify(&signers(list), &signature, NS, MESSAGE, principal, NOW).unwrap_err();

    assert_eq!(ask(&format!("ada {other}"), None), VerifyError::UnknownKey { fingerprint, signers: file() });
    assert_eq!(ask("", None), VerifyError::UnknownKey { fingerprint, signers: file() });
    assert_eq!(
        ask(&format!("ada namespaces=\"file\" {key}"), None),
        VerifyError::NotForNamespace { fingerprint, namespace: NS.into(), signers: file() }
    );
    assert_eq!(
        ask(&format!("ada,a* {key}\ngrace {key}"), Some("bob")),
        VerifyError::Principal { wanted: "bob".into(), is: vec!["ada,a*".into(), "grace".into()], fingerprint, signers: file() }
    );
    // of two lines the later end, of two others the earlier beginning
    let times = format!("ada valid-before=\"20250101Z\" {key}\nada valid-before=\"20260101Z\" {key}\nbob {key}");
    assert_eq!(ask(&times, Some("ada")), VerifyError::Expired { fingerprint, since: 1_767_225_600 });
    assert!(ask(&times, Some("ada")).to_string().contains("until 2026-01-01 00:00:00Z"));
    let times = format!("ada valid-after=\"20280101Z\" {key}\nada valid-after=\"20270101Z\" {key}\nada valid-before=\"20260101Z\" {key}");
    assert_eq!(ask(&times, Some("ada")), VerifyError::NotYetValid { fingerprint, since: 1_798_761_600 });

    let release = keys.stock("key", NAMESPACE_RELEASE, MESSAGE, &[]);
    let list = signers(&format!("ada {key}"));
    assert_eq!(
        verify(&list, &release, NS, MESSAGE, None, NOW),
        Err(VerifyError::Namespace { is: NAMESPACE_RELEASE.into(), wanted: NS.into() })
    );
    assert!(verify(&list, &release, NAMESPACE_RELEASE, MESSAGE, None, NOW).is_ok());

    // `*` lets nothing but a name through
    for odd in ["", "ada,bob", "ada\n", "\x1b[2J", &"a".repeat(300)] {
        assert!(matches!(ask(&format!("* {key}"), Some(odd)), VerifyError::Principal { .. }), "{odd:?}");
        assert!(!signers(&format!("* {key}")).can_sign(odd, NS, NOW), "{odd:?}");
    }
}

#[test]
fn a_signer_is_named_from_all_lines_that_count() {
    let keys = Keys::new();
    keys.make("key", "ed25519");
    keys.make("second", "ecdsa:256");
    let (key, second) = (keys.public("key"), keys.public("second"));
    let list = format!(
        "gone valid-before=\"20250101Z\" {key}\nfiles namespaces=\"file\" {key}\n*@example.com,ada,!root {key}\nada,lead {key}\nada {second}\n"
    );
    let signature = keys.stock("key", NS, MESSAGE, &[]);
    let signer = check(&list, &signature).unwrap();
    assert_eq!((signer.principal.as_str(), signer.principals.clone()), ("ada", vec!["*@example.com".into(), "ada".into(), "lead".into()]));
    let asked = verify(&signers(&list), &signature, NS, MESSAGE, Some("eve@example.com"), NOW).unwrap();
    assert_eq!((asked.principal.as_str(), asked.principals), ("eve@example.com", vec!["*@example.com".into(), "ada".into()]));
    // two keys of one principal are one person with two keys
    let other = check(&list, &keys.stock("second", NS, MESSAGE, &[])).unwrap();
    assert_eq!(other.principal, "ada");
    assert_ne!(other.key, signer.key);
    // only patterns: their text
    assert_eq!(check(&format!("*,!root {key}"), &signature).unwrap().principal, "*,!root");

    let signers = signers(&list);
    assert_eq!(signers.len(), 5);
    assert!(signers.can_sign("lead", NS, NOW) && signers.can_sign("files", "file", NOW));
    assert!(!signers.can_sign("files", NS, NOW) && !signers.can_sign("gone", NS, NOW) && !signers.can_sign("root", NS, NOW));

    let json = serde_json::to_string(&signer).unwrap();
    assert!(json.contains("\"key\":\"SHA256:"), "{json}");
    assert_eq!(serde_json::from_str::<Signer>(&json).unwrap(), signer);
}

#[test]
fn no_change_of_a_signature_is_accepted() {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;

    let keys = Keys::new();
    for (name, kind) in [("e", "ed25519"), ("p256", "ecdsa:256"), ("r", "rsa:2048")] {
        keys.make(name, kind);
        let list = signers(&format!("ada {}", keys.public(name)));
        let armored = keys.stock(name, NS, MESSAGE, &[]);
        let ask = |text: &str| verify(&list, text, NS, MESSAGE, None, NOW);
        ask(&armored).unwrap();
        // mail and Windows change line ends and widths, nothing else
        ask(&armored.replace('\n', "\r\n")).unwrap();
        let body: String = armored.lines().filter(|line| !line.starts_with('-')).collect();
        let dressed = |base64: &str| format!("-----BEGIN SSH SIGNATURE-----\n{base64}\n-----END SSH SIGNATURE-----");
        ask(&dressed(&body)).unwrap();

        let blob = STANDARD.decode(&body).unwrap();
        for at in 0..blob.len() {
            assert!(ask(&dressed(&STANDARD.encode(&blob[..at]))).is_err(), "cut at {at}");
            // the slow curves in a build without optimisation: one bit of each byte
            for bit in if name == "e" { 0..8 } else { at % 8..at % 8 + 1 } {
                let mut changed = blob.clone();
                changed[at] ^= 1 << bit;
                assert!(ask(&dressed(&STANDARD.encode(&changed))).is_err(), "{kind}: bit {bit} of byte {at}");
            }
            let mut longer = blob.clone();
            longer.insert(at, 0);
            assert!(ask(&dressed(&STANDARD.encode(&longer))).is_err(), "{kind}: a byte more at {at}");
        }
        assert!(ask(&dressed(&STANDARD.encode([&blob[..], &[0]].concat()))).is_err());

        let trimmed = armored.trim_end();
        for at in 0..trimmed.len() {
            assert!(ask(&trimmed[..at]).is_err(), "cut at {at}");
            for byte in if name == "e" { [0, b' ', b'A', b'=', b'-', 0x7f].as_slice() } else { b"A" } {
                let mut changed = trimmed.as_bytes().to_vec();
                if changed[at] != *byte && changed[at] != b'\n' {
                    changed[at] = *byte;
                    assert!(ask(&String::from_utf8(changed).unwrap()).is_err(), "{kind}: {byte} at {at}");
                }
            }
        }
    }
}

#[test]
fn a_second_encoding_and_sha1_are_refused() {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;

    let keys = Keys::new();
    let blob = |name: &str| {
        let armored = keys.stock(name, NS, MESSAGE, &[]);
        STANDARD.decode(armored.lines().filter(|line| !line.starts_with('-')).collect::<String>()).unwrap()
    };
    let replaced = |blob: &[u8], old: &[u8], new: &[u8]| {
        let at = blob.windows(old.len()).rposition(|window| window == old).unwrap();
        let changed = [&blob[..at], new, &blob[at + old.len()..]].concat();
        format!("-----BEGIN SSH SIGNATURE-----\n{}\n-----END SSH SIGNATURE-----", STANDARD.encode(changed))
    };
    keys.make("key", "ed25519");
    let list = format!("ada {}", keys.public("key"));
    // ssh-keygen ignores the reserved field, and whatever is hidden there
    let (empty, filled) = ([NS.as_bytes(), &[0, 0, 0, 0]].concat(), [NS.as_bytes(), &[0, 0, 0, 1, b'x']].concat());
    assert!(check(&list, &replaced(&blob("key"), &empty, &empty)).is_ok());
    let error = check(&list, &replaced(&blob("key"), &empty, &filled)).unwrap_err();
    assert!(matches!(error, VerifyError::NotASignature { .. }) && error.to_string().contains("reserved"), "{error}");
    let error = check(&list, &replaced(&blob("key"), b"sha512", b"sha1\0\0")).unwrap_err();
    assert!(matches!(error, VerifyError::Unsupported { .. }), "{error}");

    keys.make("rsa", "rsa:2048");
    // the last string but one names the algorithm; the lengths around it stay right
    let error = check("", &replaced(&blob("rsa"), b"rsa-sha2-512", b"rsa-sha1-old")).unwrap_err();
    assert!(error.to_string().contains("a signature of type rsa-sha1-old by a key of type ssh-rsa"), "{error}");
}

#[test]
fn what_is_no_signature_is_refused_at_once() {
    let list = signers("");
    for text in
        ["", "-----BEGIN SSH SIGNATURE-----", "-----BEGIN SSH SIGNATURE----------END SSH SIGNATURE-----", "\u{feff}é", &"A".repeat(20_000)]
    {
        assert!(matches!(verify(&list, text, NS, MESSAGE, None, NOW), Err(VerifyError::NotASignature { .. })), "{text:.40}");
        assert!(fingerprint(text).is_err());
    }
}

#[test]
fn keys_that_are_not_supported_are_named() {
    let keys = Keys::new();
    keys.make("p521", "ecdsa:521");
    keys.make("small", "rsa:1024");
    keys.make("ca", "ed25519");
    keys.make("certified", "ed25519");
    keygen(&["-q", "-s", &keys.text("ca"), "-I", "id", "-n", "ada", &keys.text("certified.pub")], b"");
    let cert = keys.stock("certified-cert.pub", NS, MESSAGE, &[]);
    for (signature, expected) in [
        (keys.stock("p521", NS, MESSAGE, &[]), "ecdsa-sha2-nistp521"),
        (keys.stock("small", NS, MESSAGE, &[]), "1024 bits"),
        (cert, "certificates (ssh-ed25519-cert-v01@openssh.com)"),
    ] {
        let said = check("", &signature).unwrap_err().to_string();
        assert!(said.contains(expected), "{said}");
    }
    let said = sign(&keys.path("p521"), NS, MESSAGE).unwrap_err();
    assert!(matches!(said, SignError::NotAccepted { .. }), "told to who signs: {said:?}");

    let certificate = fs::read_to_string(keys.path("certified-cert.pub")).unwrap();
    for (line, expected) in [
        (format!("ada {}", keys.public("p521")), "f:1: keys of type ecdsa-sha2-nistp521 are not supported"),
        (format!("ada {}", keys.public("small")), "f:1: an RSA key of 1024 bits"),
        (format!("ada {certificate}"), "certificates (ssh-ed25519-cert-v01@openssh.com) are not supported"),
        (format!("\n* cert-authority {}", keys.public("ca")), "f:2: cert-authority: certificates are not supported; write one line"),
        (format!("* namespaces=\"file\",CERT-AUTHORITY {}", keys.public("ca")), "cert-authority: certificates"),
    ] {
        let said = AllowedSigners::parse(&line, "f").unwrap_err().to_string();
        assert!(said.contains(expected), "{said}");
    }
}

#[test]
fn a_file_that_is_not_understood_is_refused_with_its_line() {
    let keys = Keys::new();
    keys.make("key", "ed25519");
    keys.make("other", "ecdsa:256");
    let key = keys.public("key");
    let base64 = key.split(' ').nth(1).unwrap();
    for (line, expected) in [
        ("ada", "no key"),
        ("ada ssh-ed25519", "no key"),
        ("ada namespaces=\"file\"", "no key"),
        (&format!("ada ecdsa-sha2-nistp256 {base64}"), "says ecdsa-sha2-nistp256, the key itself says ssh-ed25519"),
        ("ada ssh-ed25519 AAAA!", "cut off or changed"),
        (&format!("ada ssh-ed25519 {}", &base64[..40]), "cut off or changed"),
        ("KEY", "the line begins with the key"),
        ("ada,,bob KEY", "principals: an entry is empty"),
        ("!ada KEY", "only negated"),
        ("ada sudo KEY", "\"sudo\" is neither"),
        ("ada no-touch-required KEY", "\"no-touch-required\" is neither"),
        ("ada restrict,namespaces=\"file\" KEY", "\"restrict\" is neither"),
        ("ada namespaces KEY", "neither"),
        ("ada namespaces=file KEY", "namespaces has no quoted value"),
        ("ada namespaces=\"file KEY", "quote is not closed"),
        ("ada namespaces=\"\" KEY", "namespaces: an entry is empty"),
        ("ada namespaces=\"a\",namespaces=\"b\" KEY", "namespaces stands twice"),
        ("ada namespaces=\"a\"x KEY", "\"x\" is neither"),
        ("ada namespaces=\"a\", KEY", "\"\" is neither"),
        ("ada valid-after=\"20260101\" KEY", "valid-after: no time zone"),
        ("ada valid-before=\"20260230Z\" KEY", "valid-before: no such time"),
        ("ada valid-before=\"soon\" KEY", "valid-before: not a time"),
        ("ada valid-after=\"20260101Z\",valid-before=\"20260101Z\" KEY", "never counts"),
        ("ada\x1b[2J KEY", "not printable"),
        ("\u{feff}ada KEY", "not printable"),
        (&format!("{} KEY", "a,".repeat(5000)), "over 8192 bytes"),
    ] {
        let text = format!("# first\n{}\n", line.replace("KEY", &key));
        let said = AllowedSigners::parse(&text, "/etc/signers").unwrap_err().to_string();
        assert!(said.starts_with("/etc/signers:2: ") && said.contains(expected), "{line:.60} gave {said:.200}");
    }
    assert!(AllowedSigners::parse(&"#\n".repeat(600_000), "f").unwrap_err().to_string().contains("f: over"));

    let file = keys.path("allowed_signers");
    fs::write(&file, format!("ada {key}\r\n# Gr\u{fc}\u{df}e\r\nbob {}\r\n", keys.public("other"))).unwrap();
    assert_eq!(AllowedSigners::load(&file).unwrap().len(), 2);
    fs::write(&file, b"ada\n\xff\n").unwrap();
    assert!(AllowedSigners::load(&file).unwrap_err().to_string().contains(":1: no key"));
    assert!(AllowedSigners::load(Path::new("/dev/zero")).unwrap_err().to_string().contains("/dev/zero: over"));
    assert!(AllowedSigners::load(&keys.path("none")).unwrap_err().to_string().contains("none: the allowed signers cannot be read"));
    assert!(signers("").is_empty());
}

/// Security keys, in software: what the hardware would sign, built by hand and shown to the stock tool first.
#[test]
fn security_keys_count_only_when_touched() {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    use ring::signature::KeyPair as _;
    use ssh_key::{HashAlg, SshSig};
    use tidegate_protocol::Digest;

    fn string(bytes: &[u8]) -> Vec<u8> {
        [&u32::try_from(bytes.len()).unwrap().to_be_bytes(), bytes].concat()
    }
    fn mpint(bytes: &[u8]) -> Vec<u8> {
        let first = bytes.iter().position(|byte| *byte != 0).unwrap();
        let sign: &[u8] = if bytes[first] >= 0x80 { &[0] } else { &[] };
        string(&[sign, &bytes[first..]].concat())
    }

    let random = ring::rand::SystemRandom::new();
    let pkcs8 = ring::signature::Ed25519KeyPair::generate_pkcs8(&random).unwrap();
    let edwards = ring::signature::Ed25519KeyPair::from_pkcs8(pkcs8.as_ref()).unwrap();
    let algorithm = &ring::signature::ECDSA_P256_SHA256_FIXED_SIGNING;
    let pkcs8 = ring::signature::EcdsaKeyPair::generate_pkcs8(algorithm, &random).unwrap();
    let p256 = ring::signature::EcdsaKeyPair::from_pkcs8(algorithm, pkcs8.as_ref(), &random).unwrap();

    let keys = Keys::new();
    for kind in ["sk-ssh-ed25519@openssh.com", "sk-ecdsa-sha2-nistp256@openssh.com"] {
        let is_edwards = kind.contains("ed25519");
        let public = if is_edwards {
            string(edwards.public_key().as_ref())
        } else {
            [string(b"nistp256"), string(p256.public_key().as_ref())].concat()
        };
        let blob = [string(kind.as_bytes()), public, string(b"ssh:")].concat();
        let list = format!("ada {kind} {} token", STANDARD.encode(&blob));
        let make = |flags: u8| {
            let trailer = [&[flags][..], &7u32.to_be_bytes()].concat();
            let message = SshSig::signed_data(NS, HashAlg::Sha512, MESSAGE).unwrap();
            let signed = [&Digest::of(b"ssh:").0[..], &trailer, &Digest::of(&message).0].concat();
            let raw = if is_edwards {
                edwards.sign(&signed).as_ref().to_vec()
            } else {
                let raw = p256.sign(&random, &signed).unwrap();
                let (r, s) = raw.as_ref().split_at(32);
                [mpint(r), mpint(s)].concat()
            };
            let signature = [string(kind.as_bytes()), string(&raw), trailer].concat();
            let fields = [&blob[..], NS.as_bytes(), b"", b"sha512", &signature].map(string).concat();
            let whole = [b"SSHSIG", &1u32.to_be_bytes()[..], &fields].concat();
            format!("-----BEGIN SSH SIGNATURE-----\n{}\n-----END SSH SIGNATURE-----\n", STANDARD.encode(whole))
        };
        let touched = make(0x01);
        assert!(keys.stock_accepts(&list, "ada", NS, &touched, MESSAGE), "the test builds what {kind} signs");
        let signer = check(&list, &touched).unwrap();
        assert_eq!((signer.principal.as_str(), signer.comment.as_str()), ("ada", "token"));
        assert!(check(&list, &make(0x05)).is_ok(), "touched and verified by PIN");
        // ssh-keygen takes these, sshd does not, and neither do we
        let untouched = make(0x00);
        assert!(keys.stock_accepts(&list, "ada", NS, &untouched, MESSAGE));
        assert_eq!(check(&list, &untouched), Err(VerifyError::NotTouched { fingerprint: signer.key }));
        let wrong = verify(&signers(&list), &touched, NS, b"another", None, NOW);
        assert_eq!(wrong, Err(VerifyError::Broken { fingerprint: signer.key }));
    }
}

#[test]
fn a_private_key_that_others_can_read_signs_nothing() {
    let keys = Keys::new();
    let key = keys.make("key", "ed25519");
    for mode in [0o644, 0o640, 0o604] {
        fs::set_permissions(&key, fs::Permissions::from_mode(mode)).unwrap();
        let error = sign(&key, NS, MESSAGE).unwrap_err();
        assert!(matches!(error, SignError::Exposed { .. }) && error.to_string().contains("chmod 600"), "{error}");
    }
    fs::set_permissions(&key, fs::Permissions::from_mode(0o400)).unwrap();
    sign(&key, NS, MESSAGE).unwrap();
    assert!(matches!(sign(&key, "", MESSAGE), Err(SignError::Namespace)));
    assert!(matches!(sign(&key, "a\nb", MESSAGE), Err(SignError::Namespace)));
    assert!(matches!(sign(&keys.path("none"), NS, MESSAGE), Err(SignError::Read { .. })));
    assert!(matches!(sign(Path::new("/dev/zero"), NS, MESSAGE), Err(SignError::TooLarge { .. })));
}

/// Signs with the key and prints the outcome; run by the tests below, which set its environment.
#[test]
#[ignore = "a helper process, with an environment of its own"]
fn child_that_signs() {
    let Some(key) = std::env::var_os("TIDEGATE_TEST_KEY") else { return };
    match sign(Path::new(&key), NS, MESSAGE) {
        Ok(signature) => println!("SIGNED\n{signature}"),
        Err(error) => println!("REFUSED {error} {error:?}"),
    }
}

/// What [`child_that_signs`] prints, without a terminal.
fn sign_in_child(key: &Path, environment: &[(&str, &str)]) -> String {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "child_that_signs", "--ignored", "--nocapture"]).env_remove("SSH_AUTH_SOCK").stdin(Stdio::null());
    command.env("TIDEGATE_TEST_KEY", key).envs(environment.iter().copied());
    String::from_utf8(command.output().unwrap().stdout).unwrap()
}

#[test]
fn an_encrypted_key_fails_without_a_terminal_and_asks_nobody() {
    let keys = Keys::new();
    let key = keys.make_with("key", "ed25519", "a passphrase");
    let begun = Instant::now();
    let temporary = keys.path("tmp");
    fs::create_dir(&temporary).unwrap();
    let temporary = temporary.to_str().unwrap();
    // A program that would answer must not be asked either.
    let askpass = keys.path("askpass");
    fs::write(&askpass, format!("#!/bin/sh\ntouch {}\necho 'a passphrase'\n", keys.text("asked"))).unwrap();
    fs::set_permissions(&askpass, fs::Permissions::from_mode(0o700)).unwrap();
    let said = sign_in_child(&key, &[("TMPDIR", temporary), ("SSH_ASKPASS", askpass.to_str().unwrap()), ("DISPLAY", ":0")]);
    assert!(said.contains("REFUSED") && said.contains("Refused") && said.contains("passphrase"), "{said}");
    assert!(!keys.path("asked").exists());
    assert!(begun.elapsed() < Duration::from_secs(50), "waited for somebody");
    assert_eq!(fs::read_dir(temporary).unwrap().count(), 0, "the message was left behind");
}

#[test]
fn without_ssh_keygen_only_plain_keys_sign() {
    let keys = Keys::new();
    let none = [("PATH", keys.dir.path().to_str().unwrap())];
    let said = sign_in_child(&keys.make("rsa", "rsa:2048"), &none);
    assert!(said.contains("NoSshKeygen") && said.contains("openssh-client"), "{said}");
    let said = sign_in_child(&keys.make("plain", "ed25519"), &none);
    assert!(said.contains("SIGNED"), "{said}");
}

/// Ends the agent that it holds.
struct Agent(std::process::Child);

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_key_in_ssh_agent_signs_by_its_public_half_or_its_encrypted_file() {
    let keys = Keys::new();
    let key = keys.make("key", "ed25519");
    let socket = keys.text("agent.sock");
    let spawned = Command::new("ssh-agent").args(["-D", "-a", &socket]).stdout(Stdio::null()).spawn();
    let _agent = Agent(spawned.unwrap_or_else(|error| panic!("ssh-agent: {error}; install openssh-client")));
    let deadline = Instant::now() + Duration::from_secs(30);
    let add = || Command::new("ssh-add").args(["-q", key.to_str().unwrap()]).env("SSH_AUTH_SOCK", &socket).output().unwrap();
    while !add().status.success() {
        assert!(Instant::now() < deadline, "ssh-agent does not come up");
        std::thread::sleep(Duration::from_millis(10));
    }
    keygen(&["-q", "-p", "-N", "a passphrase", "-f", &keys.text("key")], b"");
    let environment = [("SSH_AUTH_SOCK", socket.as_str())];
    let list = format!("ada {}", keys.public("key"));
    let by_file = sign_in_child(&key, &environment);
    fs::remove_file(&key).unwrap();
    let by_public_half = sign_in_child(&keys.path("key.pub"), &environment);
    for said in [by_file, by_public_half] {
        let begin = said.find("-----BEGIN").unwrap_or_else(|| panic!("{said}"));
        let end = said.find("-----END SSH SIGNATURE-----").unwrap() + "-----END SSH SIGNATURE-----".len();
        assert_eq!(check(&list, &said[begin..end]).unwrap().principal, "ada");
    }
    // and without the agent nobody has it
    assert!(sign_in_child(&keys.path("key.pub"), &[]).contains("No private key"));
}

/// The wall clock in milliseconds is what callers pass.
#[test]
fn the_time_is_in_milliseconds() {
    let keys = Keys::new();
    let key = keys.make("key", "ed25519");
    let now = u64::try_from(SystemTime::UNIX_EPOCH.elapsed().unwrap().as_millis()).unwrap();
    let list = signers(&format!("ada valid-after=\"20240101Z\",valid-before=\"21000101Z\" {}", keys.public("key")));
    let signature = sign(&key, NS, MESSAGE).unwrap();
    verify(&list, &signature, NS, MESSAGE, Some("ada"), now).unwrap();
    assert!(matches!(verify(&list, &signature, NS, MESSAGE, Some("ada"), now / 1000), Err(VerifyError::NotYetValid { .. })));
}
