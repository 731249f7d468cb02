//! Patterns of `like`, compiled once and matched by characters.
//!
//! Matching takes no more than (length of text) x (length of pattern) steps, whatever both hold.

/// A valid pattern.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LikePattern {
    tokens: Vec<Token>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Token {
    /// Exactly this character.
    Plain(char),
    /// `_`: any one character.
    One,
    /// `%`: any run of characters, the empty one too.
    Run,
}

impl LikePattern {
    /// Compiles a pattern; `None` where it ends with a lone backslash.
    pub fn new(pattern: &str) -> Option<LikePattern> {
        let mut tokens = Vec::new();
        let mut chars = pattern.chars();
        while let Some(next) = chars.next() {
            let token = match next {
                '\\' => Token::Plain(chars.next()?),
                '_' => Token::One,
                '%' => Token::Run,
                plain => Token::Plain(plain),
            };
            if token != Token::Run || tokens.last() != Some(&Token::Run) {
                tokens.push(token);
            }
        }
        Some(LikePattern { tokens })
    }

    /// The pattern's text; runs of `%` are written as one.
    pub fn text(&self) -> String {
        let mut text = String::new();
        for token in &self.tokens {
            match token {
                Token::One => text.push('_'),
                Token::Run => text.push('%'),
                Token::Plain(plain) => {
                    if matches!(plain, '_' | '%' | '\\') {
                        text.push('\\');
                    }
                    text.push(*plain);
                }
            }
        }
        text
    }

    /// A regular expression (syntax of the `regex` crate) that matches exactly the texts that this pattern matches.
    pub fn regex(&self) -> String {
        let mut regex = String::from("(?s)\\A");
        for token in &self.tokens {
            match token {
                Token::One => regex.push('.'),
                Token::Run => regex.push_str(".*"),
                Token::Plain(plain) if plain.is_ascii_alphanumeric() || !plain.is_ascii() => {
                    regex.push(*plain)
                }
                Token::Plain(plain) => regex.push_str(&format!("\\x{{{:x}}}", u32::from(*plain))),
            }
        }
        regex.push_str("\\z");
        regex
    }

    /// Whether the whole text matches.
    pub fn matches(&self, text: &str) -> bool {
        let (mut at, mut rest) = (0, text.chars());
        // Where to go on when a match fails: after the newest run, one character of the text further.
        let mut retry: Option<(usize, std::str::Chars<'_>)> = None;
        loop {
            if self.tokens.get(at) == Some(&Token::Run) {
                at += 1;
                retry = Some((at, rest.clone()));
                continue;
            }
            let next = rest.next();
            match (self.tokens.get(at), next) {
                (None, None) => return true,
                (Some(Token::One), Some(_)) => at += 1,
                (Some(Token::Plain(plain)), Some(found)) if *plain == found => at += 1,
                // The text is used up while the pattern wants more: no later start can help.
                (Some(_), None) => return false,
                _ => {
                    let Some((after_run, from)) = &mut retry else { return false };
                    if from.next().is_none() {
                        return false;
                    }
                    at = *after_run;
                    rest = from.clone();
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_whole_texts_by_characters() {
        let cases = [
            ("", "", true),
            ("", "a", false),
            ("%", "", true),
            ("US>%", "US>CA", true),
            ("US>%", "xUS>CA", false),
            ("%b%b", "abab", true),
            ("%ab%ab", "abab", true),
            ("%aab", "aaaab", true),
            ("a%b%c", "aXbYbc", true),
            ("a%b%c", "aXbYbcd", false),
            ("_", "é", true),
            ("_", "", false),
            ("__", "é", false),
            (r"100\%", "100%", true),
            (r"100\%", "1000", false),
            (r"\_\\", r"_\", true),
            ("a%%_b", "axb", true),
            ("a%%_b", "ab", false),
            ("a.b", "axb", false),
            ("%\n%", "a\nb", true),
        ];
        for (pattern, text, expected) in cases {
            let compiled = LikePattern::new(pattern).expect("valid");
            assert_eq!(compiled.matches(text), expected, "{text:?} like {pattern:?}");
            assert_eq!(LikePattern::new(&compiled.text()), Some(compiled), "{pattern:?} round-trips");
        }
        assert_eq!(LikePattern::new("a\\"), None);
        assert_eq!(
            LikePattern::new("a.%_é-").map(|p| p.regex()).as_deref(),
            Some(r"(?s)\Aa\x{2e}.*.é\x{2d}\z")
        );
    }
}
