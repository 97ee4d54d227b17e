//! Splits PTX text into words and marks, each with its line.

use super::{PtxError, PtxFault};

/// One token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Token<'t> {
    /// 1-based line.
    pub line: u32,
    /// What it is.
    pub kind: Kind<'t>,
}

/// Kinds of tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind<'t> {
    /// Names, numbers, directives and opcodes: letters, digits and `_ $ % .`.
    Word(&'t str),
    /// A single mark such as `,` or `[`.
    Mark(char),
    /// Text between double quotes.
    Quoted(&'t str),
}

fn is_word(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '_' | '$' | '%' | '.')
}

/// All tokens; comments are left out.
pub fn tokens(text: &str) -> Result<Vec<Token<'_>>, PtxError> {
    let mut found = Vec::new();
    let mut line = 1;
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let at = |kind| Token { line, kind };
        let length = if c == '\n' {
            line += 1;
            1
        } else if c.is_whitespace() || c == '\0' {
            c.len_utf8()
        } else if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            let end = rest.find("*/").map_or(rest.len(), |end| end + 2);
            line += rest[..end].matches('\n').count() as u32;
            end
        } else if c == '"' {
            let end = rest[1..].find('"').ok_or(PtxError {
                line,
                fault: PtxFault::Syntax { expected: "a closing \"", found: "the end of the text".into() },
            })?;
            let quoted = &rest[1..=end];
            found.push(at(Kind::Quoted(quoted)));
            line += quoted.matches('\n').count() as u32;
            end + 2
        } else if is_word(c) {
            let end = rest.find(|c| !is_word(c)).unwrap_or(rest.len());
            found.push(at(Kind::Word(&rest[..end])));
            end
        } else if c.is_ascii_punctuation() {
            found.push(at(Kind::Mark(c)));
            1
        } else {
            let fault = PtxFault::Syntax { expected: "PTX", found: format!("the character {c:?}") };
            return Err(PtxError { line, fault });
        };
        rest = &rest[length..];
    }
    Ok(found)
}

impl std::fmt::Display for Kind<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Word(word) => write!(f, "`{}`", word.chars().take(60).collect::<String>()),
            Self::Mark(mark) => write!(f, "`{mark}`"),
            Self::Quoted(_) => f.write_str("a quoted text"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_marks_and_lines() {
        let text = "// head\n@!%p1 bra $L_2; /* two\nlines */ ld.f32 %f1,[%rd1+-4];\n.file 1 \"a b\"";
        let found: Vec<_> =
            tokens(text).unwrap_or_default().iter().map(|t| (t.line, t.kind.to_string())).collect();
        let expected = [
            (2, "`@`"),
            (2, "`!`"),
            (2, "`%p1`"),
            (2, "`bra`"),
            (2, "`$L_2`"),
            (2, "`;`"),
            (3, "`ld.f32`"),
            (3, "`%f1`"),
            (3, "`,`"),
            (3, "`[`"),
            (3, "`%rd1`"),
            (3, "`+`"),
            (3, "`-`"),
            (3, "`4`"),
            (3, "`]`"),
            (3, "`;`"),
            (4, "`.file`"),
            (4, "`1`"),
            (4, "a quoted text"),
        ];
        assert_eq!(found, expected.map(|(line, text)| (line, text.to_owned())));
    }

    #[test]
    fn an_open_quote_is_an_error() {
        assert!(tokens("\n.file 1 \"x").is_err_and(|e| e.line == 2));
    }
}
