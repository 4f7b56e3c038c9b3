//! The second lock against minisign's own tool, both ways: it verifies what we sign, we verify what it signs, and both
//! refuse the same.

use picket_release::minisign::{SecretKey, public_line};
use picket_update::trust::MinisignKeys;
use picket_update::trust::minisign::MAX_SIGNATURE_BYTES;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use tempfile::TempDir;

const COMMENT: &str = "picket 1.0.0 x86_64-unknown-linux-musl 00";
const BYTES: &[u8] = b"an artifact";

/// A folder with a file to be signed.
struct Bench(TempDir);

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("artifact"), BYTES).unwrap();
        Self(dir)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Runs minisign here; it is told `typed` where it asks for a password. What it said, if it was content.
    fn minisign(&self, arguments: &[&str], typed: &str) -> Result<String, String> {
        let mut command = Command::new("minisign");
        command.current_dir(self.0.path()).args(arguments);
        let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
        let mut child = child.unwrap_or_else(|error| panic!("minisign, which `scripts/setup test` installs: {error}"));
        // It may have gone already, where it needs no password.
        let _ = child.stdin.take().unwrap().write_all(typed.as_bytes());
        let ran = child.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&ran.stdout).into_owned() + &String::from_utf8_lossy(&ran.stderr);
        if ran.status.success() { Ok(said) } else { Err(said) }
    }

    /// Its signature of the file, under a key without a password.
    fn signed_by_minisign(&self, key: &str, arguments: &[&str]) -> String {
        if !self.path(key).exists() {
            self.minisign(&["-G", "-W", "-s", key, "-p", &format!("{key}.pub")], "").unwrap();
        }
        let words = ["-S", "-s", key, "-m", "artifact", "-x", "signature", "-t", COMMENT];
        self.minisign(&[&words[..], arguments].concat(), "").unwrap();
        fs::read_to_string(self.path("signature")).unwrap()
    }

    /// What minisign says about `signature`.
    fn verified_by_minisign(&self, key: &str, signature: &str) -> Result<String, String> {
        fs::write(self.path("signature"), signature).unwrap();
        self.minisign(&["-V", "-H", "-m", "artifact", "-x", "signature", "-p", &format!("{key}.pub")], "")
    }

    /// What the updater says about it, under a root that names `key`.
    fn verified_by_us(&self, key: &Path, signature: &str) -> Result<(), String> {
        let line = public_line(key).unwrap();
        let keys = MinisignKeys::from_root_field(Some(&serde_json::json!([line])));
        keys.verify("artifact", BYTES, signature, COMMENT).map_err(|error| error.to_string())
    }
}

/// Another letter for the one at `at` of the line of this number.
fn altered(signature: &str, line: usize, at: usize) -> String {
    let alter = |text: &str| {
        let other = if text.as_bytes()[at] == b'A' { "B" } else { "A" };
        format!("{}{other}{}", &text[..at], &text[at + 1..])
    };
    let lines = signature.lines().enumerate().map(|(n, text)| if n == line { alter(text) } else { text.to_owned() });
    lines.collect::<Vec<_>>().join("\n") + "\n"
}

#[test]
fn minisign_verifies_what_we_sign_and_nothing_that_was_altered() {
    let bench = Bench::new();
    let key = SecretKey::generate().unwrap();
    key.save(&bench.path("ours"), b"a passphrase").unwrap();
    let signature = key.sign(&bench.path("artifact"), COMMENT).unwrap();
    let said = bench.verified_by_minisign("ours", &signature).unwrap();
    assert!(said.contains(&format!("Trusted comment: {COMMENT}")), "{said}");
    bench.verified_by_us(&bench.path("ours.pub"), &signature).unwrap();
    for (line, at, words) in
        [(1, 40, "Signature verification failed"), (2, 25, "Comment signature verification failed")]
    {
        let altered = altered(&signature, line, at);
        let said = bench.verified_by_minisign("ours", &altered).unwrap_err();
        assert!(said.contains(words), "{said}");
        assert!(bench.verified_by_us(&bench.path("ours.pub"), &altered).unwrap_err().contains("refused"));
    }
    // It opens our key by the passphrase that it was saved under, and signs with it.
    let sign = ["-S", "-s", "ours", "-m", "artifact", "-x", "theirs", "-t", COMMENT];
    bench.minisign(&sign, "another\n").unwrap_err();
    bench.minisign(&sign, "a passphrase\n").unwrap();
    let theirs = fs::read_to_string(bench.path("theirs")).unwrap();
    bench.verified_by_us(&bench.path("ours.pub"), &theirs).unwrap();
}

#[test]
fn we_verify_what_minisign_signs_and_nothing_that_was_altered() {
    let bench = Bench::new();
    let signature = bench.signed_by_minisign("theirs", &["-H"]);
    let public = bench.path("theirs.pub");
    bench.verified_by_us(&public, &signature).unwrap();
    let refused = |signature: &str, words: &str| {
        let said = bench.verified_by_us(&public, signature).unwrap_err();
        assert!(said.starts_with("artifact: the minisign signature is refused") && said.contains(words), "{said}");
    };
    // What is not signed may say what it will, and end its lines as it will.
    let untrusted = altered(&signature, 0, 25);
    assert_ne!(untrusted, signature);
    bench.verified_by_us(&public, &untrusted).unwrap();
    bench.verified_by_minisign("theirs", &untrusted).unwrap();
    let windows = signature.replace('\n', "\r\n");
    bench.verified_by_us(&public, &windows).unwrap();
    bench.verified_by_minisign("theirs", &windows).unwrap();

    refused(&altered(&signature, 2, 25), "verification failed");
    refused(&altered(&signature, 1, 40), "verification failed");
    refused(&altered(&signature, 3, 40), "verification failed");
    // Its key id, which is not signed either: the key that it names is not there.
    refused(&altered(&signature, 1, 6), "made by a key that the release root does not name");
    let another = bench.signed_by_minisign("another", &["-H"]);
    refused(&another, "made by a key that the release root does not name");
    // minisign's own words for that.
    let said = bench.verified_by_minisign("theirs", &another).unwrap_err();
    assert!(said.contains("but the key id in the public key is"), "{said}");
    for cut in [0, 1, signature.len() / 2, signature.len() - 10] {
        refused(&signature[..cut], "");
    }
}

#[test]
fn a_signature_in_the_legacy_format_is_refused() {
    let bench = Bench::new();
    let signature = bench.signed_by_minisign("theirs", &["-l"]);
    let said = bench.verified_by_us(&bench.path("theirs.pub"), &signature).unwrap_err();
    assert!(said.contains("in the legacy format"), "{said}");
    // minisign refuses it, too, where it is asked for the format of today.
    bench.verified_by_minisign("theirs", &signature).unwrap_err();
}

#[test]
fn a_signature_file_that_is_far_too_long_is_not_even_read() {
    let bench = Bench::new();
    let signature = bench.signed_by_minisign("theirs", &["-H"]);
    let long = signature.replacen("comment", &"comment".repeat(1000), 1);
    let said = bench.verified_by_us(&bench.path("theirs.pub"), &long).unwrap_err();
    assert!(said.contains(&format!("more than {MAX_SIGNATURE_BYTES}")), "{said}");
    let padded = format!("{signature}{}", "\n".repeat(5000));
    let said = bench.verified_by_us(&bench.path("theirs.pub"), &padded).unwrap_err();
    assert!(said.contains("bytes, more than"), "{said}");
}

#[test]
fn a_key_that_minisign_put_under_a_password_is_opened_by_it_alone() {
    let bench = Bench::new();
    bench.minisign(&["-G", "-s", "theirs", "-p", "theirs.pub"], "a password\na password\n").unwrap();
    let key = SecretKey::load(&bench.path("theirs"), b"a password").unwrap();
    let signature = key.sign(&bench.path("artifact"), COMMENT).unwrap();
    bench.verified_by_minisign("theirs", &signature).unwrap();
    bench.verified_by_us(&bench.path("theirs.pub"), &signature).unwrap();
    let wrong = SecretKey::load(&bench.path("theirs"), b"no password").err().unwrap();
    assert!(wrong.to_string().contains("the passphrase does not open"), "{wrong}");
}
