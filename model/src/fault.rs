//! What is wrong with a file an admin wrote: every fault at once, each with line, column and what to do.
//!
//! [`Source`] parses TOML and collects faults; [`Section`] reads one table of it key by key. A key that nobody
//! asked for is a fault when the section is closed, with the nearest known key as the hint.

use std::{cell::RefCell, fmt, ops::Range, str::FromStr};

use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

/// One fault.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Fault {
    /// 1-based.
    pub line: usize,
    /// 1-based, in characters.
    pub column: usize,
    /// What is wrong.
    pub message: String,
    /// What to do; may be empty.
    pub help: String,
}

/// All faults of one file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Faults {
    /// File name as the user gave it.
    pub file: String,
    /// In order of position.
    pub faults: Vec<Fault>,
    /// The file's text, to show the lines in question.
    pub text: String,
}

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let n = self.faults.len();
        write!(f, "{}: {n} mistake{}", self.file, if n == 1 { "" } else { "s" })?;
        for fault in &self.faults {
            let Fault { line, column, message, help } = fault;
            write!(f, "\n\n{}:{line}:{column}: {message}", self.file)?;
            if let Some(source) = self.text.lines().nth(line - 1) {
                let margin = line.to_string().len();
                write!(f, "\n  {line} | {source}\n  {:margin$} | {:>column$}", "", "^")?;
            }
            if !help.is_empty() {
                write!(f, "\n  help: {help}")?;
            }
        }
        Ok(())
    }
}

impl std::error::Error for Faults {}

/// A TOML text being read, with the faults found so far.
pub struct Source<'t> {
    file: String,
    text: &'t str,
    root: Spanned<DeTable<'t>>,
    faults: RefCell<Vec<Fault>>,
}

impl<'t> Source<'t> {
    /// Parses `text`; syntax errors are the first faults.
    pub fn new(file: &str, text: &'t str) -> Self {
        let (root, errors) = DeTable::parse_recoverable(text);
        let source = Source { file: file.to_owned(), text, root, faults: RefCell::default() };
        for error in errors {
            source.fault(error.span().unwrap_or(0..0), error.message(), "");
        }
        source
    }

    /// The top-level table.
    pub fn root(&self) -> Section<'_, 't> {
        Section {
            source: self,
            table: self.root.get_ref(),
            span: self.root.span(),
            known: RefCell::default(),
        }
    }

    /// Adds a fault at a byte range of the text.
    pub fn fault(&self, at: Range<usize>, message: impl Into<String>, help: impl Into<String>) {
        let before = self.text.get(..at.start.min(self.text.len())).unwrap_or(self.text);
        let line_start = before.rfind('\n').map_or(0, |i| i + 1);
        self.faults.borrow_mut().push(Fault {
            line: before.matches('\n').count() + 1,
            column: before[line_start..].chars().count() + 1,
            message: message.into(),
            help: help.into(),
        });
    }

    /// `value` if nothing was wrong, else every fault in order of position.
    pub fn finish<T>(self, value: Option<T>) -> Result<T, Faults> {
        let mut faults = self.faults.into_inner();
        faults.sort();
        faults.dedup();
        match value {
            Some(value) if faults.is_empty() => Ok(value),
            _ => Err(Faults { file: self.file, faults, text: self.text.to_owned() }),
        }
    }
}

/// One table of a [`Source`].
pub struct Section<'s, 't> {
    source: &'s Source<'t>,
    table: &'s DeTable<'t>,
    span: Range<usize>,
    known: RefCell<Vec<&'static str>>,
}

impl<'s, 't> Section<'s, 't> {
    /// Where the section begins.
    pub fn span(&self) -> Range<usize> {
        self.span.clone()
    }

    /// The source, to add faults to.
    pub fn source(&self) -> &'s Source<'t> {
        self.source
    }

    fn get(&self, key: &'static str) -> Option<&'s Spanned<DeValue<'t>>> {
        self.known.borrow_mut().push(key);
        self.table.get(key)
    }

    fn typed<T>(
        &self,
        key: &'static str,
        wanted: &str,
        read: impl FnOnce(&'s DeValue<'t>) -> Option<T>,
    ) -> Option<Spanned<T>> {
        let value = self.get(key)?;
        let found = read(value.get_ref());
        if found.is_none() {
            let kind = value.get_ref().type_str();
            self.source.fault(value.span(), format!("\"{key}\" must be {wanted}, but this is a {kind}"), "");
        }
        found.map(|t| Spanned::new(value.span(), t))
    }

    /// Reports that `key` is missing.
    pub fn missing(&self, key: &str, help: &str) {
        self.source.fault(self.span(), format!("\"{key}\" is missing"), help);
    }

    /// A string.
    pub fn string(&self, key: &'static str) -> Option<Spanned<&'s str>> {
        self.typed(key, "a string", DeValue::as_str)
    }

    /// A string that must be there.
    pub fn required(&self, key: &'static str, help: &str) -> Option<Spanned<&'s str>> {
        if !self.table.contains_key(key) {
            self.missing(key, help);
        }
        self.string(key)
    }

    /// A string that parses; the error's text is the fault.
    pub fn parsed<T: FromStr<Err: fmt::Display>>(&self, key: &'static str) -> Option<Spanned<T>> {
        let text = self.string(key)?;
        match text.get_ref().parse() {
            Ok(value) => Some(Spanned::new(text.span(), value)),
            Err(e) => {
                self.source.fault(text.span(), format!("\"{key}\": {e}"), "");
                None
            }
        }
    }

    /// A whole number within `range`.
    pub fn integer(&self, key: &'static str, range: std::ops::RangeInclusive<i64>) -> Option<i64> {
        let (low, high) = (*range.start(), *range.end());
        let wanted = format!("a whole number from {low} to {high}");
        let read = |v: &DeValue<'_>| {
            let i = v.as_integer()?;
            i64::from_str_radix(&i.as_str().replace('_', ""), i.radix()).ok()
        };
        let value = self.typed(key, &wanted, read)?;
        let number = *value.get_ref();
        if !range.contains(&number) {
            self.source.fault(value.span(), format!("\"{key}\" must be {wanted}, but this is {number}"), "");
            return None;
        }
        Some(number)
    }

    /// `true` or `false`.
    pub fn boolean(&self, key: &'static str) -> Option<bool> {
        self.typed(key, "true or false", DeValue::as_bool).map(Spanned::into_inner)
    }

    /// A list of strings; empty when absent.
    pub fn strings(&self, key: &'static str) -> Vec<Spanned<&'s str>> {
        let Some(items) = self.typed(key, "a list of strings", DeValue::as_array) else { return vec![] };
        let mut strings = vec![];
        for item in items.get_ref().iter() {
            match item.get_ref().as_str() {
                Some(text) => strings.push(Spanned::new(item.span(), text)),
                None => self.source.fault(
                    item.span(),
                    format!("\"{key}\" must hold strings only, but this is a {}", item.get_ref().type_str()),
                    "",
                ),
            }
        }
        strings
    }

    /// A sub-table.
    pub fn section(&self, key: &'static str) -> Option<Section<'s, 't>> {
        let table = self.typed(key, "a table", DeValue::as_table)?;
        Some(Section {
            source: self.source,
            span: table.span(),
            table: table.into_inner(),
            known: RefCell::default(),
        })
    }

    /// An array of tables (`[[key]]`); empty when absent.
    pub fn sections(&self, key: &'static str) -> Vec<Section<'s, 't>> {
        let Some(items) = self.typed(key, "a list of tables", DeValue::as_array) else { return vec![] };
        let mut sections = vec![];
        for item in items.get_ref().iter() {
            match item.get_ref().as_table() {
                Some(table) => sections.push(Section {
                    source: self.source,
                    table,
                    span: item.span(),
                    known: RefCell::default(),
                }),
                None => self.source.fault(item.span(), format!("\"{key}\" must be written as [[{key}]]"), ""),
            }
        }
        sections
    }

    /// Reports every key that was not asked for.
    pub fn close(self) {
        let known = self.known.into_inner();
        for key in self.table.keys() {
            let name: &str = key.get_ref();
            if known.contains(&name) {
                continue;
            }
            let help = match nearest(name, known.iter().copied()) {
                Some(near) => format!("did you mean \"{near}\"?"),
                None => format!("known here: {}", known.join(", ")),
            };
            self.source.fault(key.span(), format!("unknown key \"{name}\""), help);
        }
    }
}

/// The candidate that a mistyped `name` most likely meant: at most a third of its letters differ.
pub fn nearest<'a>(name: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let limit = (name.chars().count() / 3).max(1);
    candidates.into_iter().map(|c| (distance(name, c), c)).filter(|(d, _)| *d <= limit).min().map(|(_, c)| c)
}

/// Levenshtein distance.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let substitute = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = substitute.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_mistakes_are_three_faults_in_order() {
        let text = "name = 5\npakages = [\"a\"]\n[limits]\ncount = 99\n";
        let source = Source::new("x.toml", text);
        let root = source.root();
        root.string("name");
        root.strings("packages");
        if let Some(limits) = root.section("limits") {
            limits.integer("count", 1..=10);
            limits.close();
        }
        root.close();
        let faults = source.finish(Some(())).unwrap_err();
        let seen: Vec<_> = faults.faults.iter().map(|f| (f.line, f.column)).collect();
        assert_eq!(seen, [(1, 8), (2, 1), (4, 9)]);
        assert_eq!(faults.faults[1].help, "did you mean \"packages\"?");
        assert!(
            faults.to_string().starts_with("x.toml: 3 mistakes\n\nx.toml:1:8: \"name\" must be a string")
        );
    }

    #[test]
    fn syntax_errors_are_faults_too() {
        let source = Source::new("x.toml", "a = \nb = 1\n");
        assert!(source.finish(Some(())).is_err());
    }

    #[test]
    fn nearest_ignores_strangers() {
        assert_eq!(nearest("qemu-systm", ["qemu-system", "bash"]), Some("qemu-system"));
        assert_eq!(nearest("zzz", ["qemu-system", "bash"]), None);
    }
}
