//! What makes two error messages the same one: their words, without the numbers,
//! identifiers and quoted texts that differ from request to request.

use std::hash::{DefaultHasher, Hash, Hasher};

/// Looked at of a message, characters.
const CHARS_MAX: usize = 400;
/// A word of so many hexadecimal digits is an identifier even without a figure.
const HEX_WORD: usize = 8;

/// A number that stands for the message's words.
pub(super) fn signature(message: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    words(message).hash(&mut hasher);
    hasher.finish()
}

/// The message with `#` for what differs.
fn words(message: &str) -> String {
    let mut out = String::new();
    let mut word = String::new();
    let mut chars = message.trim().chars().take(CHARS_MAX).peekable();
    while let Some(c) = chars.next() {
        if c.is_alphanumeric() {
            word.push(c);
            continue;
        }
        let apostrophe = c == '\'' && !word.is_empty();
        close(&mut out, &mut word);
        if matches!(c, '"' | '\'' | '`') && !apostrophe {
            let rest = chars.clone();
            if rest.clone().any(|other| other == c) {
                // Up to its end; one that is never closed is an apostrophe.
                chars.by_ref().find(|other| *other == c);
                push(&mut out, '#');
                continue;
            }
        }
        push(&mut out, if c.is_whitespace() { ' ' } else { c });
    }
    close(&mut out, &mut word);
    out
}

/// `#` for a word that is a number or an identifier, `#` for the digits of another.
fn close(out: &mut String, word: &mut String) {
    let hex = word.chars().all(|c| c.is_ascii_hexdigit());
    let figures = word.chars().any(|c| c.is_ascii_digit());
    let prefixed = word.strip_prefix("0x").is_some_and(|rest| rest.chars().all(|c| c.is_ascii_hexdigit()));
    if (hex && (figures || word.len() >= HEX_WORD)) || prefixed {
        push(out, '#');
    } else if out.ends_with("#-") && hex {
        // A middle part of a UUID.
        push(out, '#');
    } else {
        word.chars().for_each(|c| push(out, if c.is_numeric() { '#' } else { c }));
    }
    word.clear();
}

/// Repeated blanks and marks count once.
fn push(out: &mut String, c: char) {
    if !(matches!(c, '#' | ' ') && out.ends_with(c)) {
        out.push(c);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_differs_from_request_to_request_is_left_out() {
        let same = [
            ("ERROR request 17 failed after 250ms", "ERROR request 9018 failed after 3ms"),
            ("2026-11-23T05:39:01.123Z ERROR no disk", "2027-01-02T15:00:59.000001Z ERROR no disk"),
            ("user 3f2a8c1e-dead-4bad-8fed-0000000000ff not found", "user 11111111-2222-4333-8444-555555555555 not found"),
            ("object deadbeefcafe missing at 0xfffe1", "object 0123456789ab missing at 0x1"),
            ("cannot open \"/srv/a.txt\": denied", "cannot open \"/srv/other.log\": denied"),
            ("KeyError: 'name'", "KeyError: 'price'"),
            ("cannot read /data/12/part-7.bin", "cannot read /data/9/part-1024.bin"),
            ("can't   connect to 10.0.0.7:5432", "can't connect to 192.168.100.20:80"),
            ("worker3 died", "worker12 died"),
        ];
        for (one, two) in same {
            assert_eq!(words(one), words(two));
        }
        for (one, two) in
            [("ERROR no disk", "ERROR no memory"), ("can't read", "can't write"), ("a face", "a cafe"), ("KeyError: 'a'", "TypeError: 'a'")]
        {
            assert_ne!(signature(one), signature(two), "{one} {two}");
        }
        assert_eq!(words("ERROR request 17 failed"), "ERROR request # failed");
    }
}
