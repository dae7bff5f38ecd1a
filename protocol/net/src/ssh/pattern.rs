//! Pattern lists as OpenSSH matches them (PATTERNS in ssh_config(5)).
//!
//! Owns: `*`, `?` and `!`. Must not: know what is matched.

use super::PRINCIPAL_BYTES_MAX;

/// Comma-separated patterns. A name matches when one pattern does and no negated one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PatternList {
    patterns: Vec<Pattern>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Pattern {
    negated: bool,
    text: String,
}

/// Why a text is no pattern list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadPatterns {
    /// Nothing between two commas, or nothing at all.
    #[error("an entry is empty: write names with one comma between two, and nothing else")]
    Empty,
    /// A name with a quote in it.
    #[error("a quote stands inside a name: quote the whole list or nothing")]
    Quote,
    /// Longer than any name.
    #[error("an entry has over {PRINCIPAL_BYTES_MAX} bytes: shorten it")]
    TooLong,
    /// `!a` alone.
    #[error("only negated entries, which match nobody: add what they are exceptions from, such as `*`")]
    OnlyNegated,
}

impl PatternList {
    pub(super) fn parse(text: &str) -> Result<Self, BadPatterns> {
        let patterns = text
            .split(',')
            .map(|entry| {
                let (negated, text) = entry.strip_prefix('!').map_or((false, entry), |rest| (true, rest));
                match text {
                    "" => Err(BadPatterns::Empty),
                    _ if text.contains('"') => Err(BadPatterns::Quote),
                    _ if text.len() > PRINCIPAL_BYTES_MAX => Err(BadPatterns::TooLong),
                    _ => Ok(Pattern { negated, text: text.to_owned() }),
                }
            })
            .collect::<Result<Vec<_>, _>>()?;
        if patterns.iter().all(|pattern| pattern.negated) { Err(BadPatterns::OnlyNegated) } else { Ok(Self { patterns }) }
    }

    pub(super) fn matches(&self, name: &str) -> bool {
        let hit = |negated| self.patterns.iter().any(|p| p.negated == negated && glob(p.text.as_bytes(), name.as_bytes()));
        !hit(true) && hit(false)
    }

    /// The entries that are not negated, as written; a name that a negation takes out again is not one.
    pub(super) fn positive(&self) -> impl Iterator<Item = &str> {
        self.patterns.iter().filter(|p| !p.negated && (is_pattern(&p.text) || self.matches(&p.text))).map(|p| p.text.as_str())
    }

    /// Those of them that are names, not patterns.
    pub(super) fn literals(&self) -> impl Iterator<Item = &str> {
        self.positive().filter(|text| !is_pattern(text))
    }
}

impl std::fmt::Display for PatternList {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (at, pattern) in self.patterns.iter().enumerate() {
            write!(f, "{}{}{}", if at > 0 { "," } else { "" }, if pattern.negated { "!" } else { "" }, pattern.text)?;
        }
        Ok(())
    }
}

fn is_pattern(text: &str) -> bool {
    text.contains(['*', '?'])
}

/// Bytes, as ssh does: `?` is one byte, `*` any number. No recursion, at most `pattern` × `name` steps.
fn glob(pattern: &[u8], name: &[u8]) -> bool {
    let (mut p, mut n) = (0, 0);
    // where the last star was, and how far of the name it has swallowed
    let mut star = None;
    while let Some(byte) = name.get(n) {
        match pattern.get(p) {
            Some(b'*') => {
                star = Some((p, n));
                p += 1;
            }
            Some(want) if *want == b'?' || want == byte => {
                p += 1;
                n += 1;
            }
            _ => {
                let Some((at, swallowed)) = star else { return false };
                star = Some((at, swallowed + 1));
                (p, n) = (at + 1, swallowed + 1);
            }
        }
    }
    pattern.iter().skip(p).all(|byte| *byte == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_match_as_in_ssh() {
        for (list, name, expected) in [
            ("ada", "ada", true),
            ("ada", "Ada", false),
            ("ada", "adam", false),
            ("ada,grace", "grace", true),
            ("*@example.com", "ada@example.com", true),
            ("*@example.com", "ada@example.com.evil", false),
            ("*@example.com", "@example.com", true),
            ("a?a", "ada", true),
            ("a?a", "aa", false),
            ("*a*b*c", "xxaxxbxxc", true),
            ("*a*b*c", "xxaxxbxx", false),
            ("**", "", true),
            ("*,!mallory", "ada", true),
            ("*,!mallory", "mallory", false),
            // the order does not matter: a negation wins
            ("!mallory,*", "mallory", false),
            ("mallory,!m*", "mallory", false),
        ] {
            assert_eq!(PatternList::parse(list).unwrap().matches(name), expected, "{list} on {name}");
        }
    }

    #[test]
    fn names_are_what_is_neither_pattern_nor_taken_out() {
        let list = PatternList::parse("*@a.example,ada,mallory,!mallory,!bob").unwrap();
        assert_eq!(list.literals().collect::<Vec<_>>(), ["ada"]);
        assert_eq!(list.positive().collect::<Vec<_>>(), ["*@a.example", "ada"]);
        assert_eq!(list.to_string(), "*@a.example,ada,mallory,!mallory,!bob");
    }

    #[test]
    fn what_matches_nobody_or_is_malformed_is_refused() {
        for (list, error) in [
            ("", BadPatterns::Empty),
            ("a,,b", BadPatterns::Empty),
            ("a,!", BadPatterns::Empty),
            ("!a", BadPatterns::OnlyNegated),
            ("a\"b", BadPatterns::Quote),
            (&"a".repeat(PRINCIPAL_BYTES_MAX + 1), BadPatterns::TooLong),
        ] {
            assert_eq!(PatternList::parse(list), Err(error), "{list}");
        }
    }

    #[test]
    fn many_stars_end_soon() {
        let stars = "*a".repeat(PRINCIPAL_BYTES_MAX / 2);
        assert!(!PatternList::parse(&stars).unwrap().matches(&"a".repeat(100)));
    }
}
