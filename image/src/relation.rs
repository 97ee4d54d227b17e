//! Package relations (`Depends: libc6 (>= 2.38), mta | exim4:any`), as the Debian Policy Manual, chapter 7,
//! defines them.

use std::{cmp::Ordering, fmt};

use debversion::Version;

/// One package name, perhaps with a bound on its version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Relation {
    /// Package name, without its architecture qualifier.
    pub name: String,
    /// Operator and version.
    pub bound: Option<(Operator, Version)>,
}

/// Comparison of a relation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operator {
    /// `<<`
    Earlier,
    /// `<=`
    AtMost,
    /// `=`
    Exactly,
    /// `>=`
    AtLeast,
    /// `>>`
    Later,
}

impl Relation {
    /// Whether `version` lies within the bound.
    pub fn admits(&self, version: &Version) -> bool {
        let Some((operator, bound)) = &self.bound else { return true };
        let order = version.cmp(bound);
        match operator {
            Operator::Earlier => order == Ordering::Less,
            Operator::AtMost => order != Ordering::Greater,
            Operator::Exactly => order == Ordering::Equal,
            Operator::AtLeast => order != Ordering::Less,
            Operator::Later => order == Ordering::Greater,
        }
    }

    fn parse(text: &str) -> Option<Relation> {
        let (name, bound) = match text.split_once('(') {
            None => (text, None),
            Some((name, rest)) => {
                let inner = rest.split(')').next()?.trim();
                let digits = inner.find(|c: char| !"<>=".contains(c))?;
                let operator = match &inner[..digits] {
                    "<<" => Operator::Earlier,
                    "<=" | "<" => Operator::AtMost,
                    "=" => Operator::Exactly,
                    ">=" | ">" => Operator::AtLeast,
                    ">>" => Operator::Later,
                    _ => return None,
                };
                (name, Some((operator, inner[digits..].trim().parse().ok()?)))
            }
        };
        let name = name.trim().split(':').next()?.to_owned();
        (!name.is_empty()).then_some(Relation { name, bound })
    }
}

impl fmt::Display for Relation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)?;
        let Some((operator, version)) = &self.bound else { return Ok(()) };
        let sign = match operator {
            Operator::Earlier => "<<",
            Operator::AtMost => "<=",
            Operator::Exactly => "=",
            Operator::AtLeast => ">=",
            Operator::Later => ">>",
        };
        write!(f, " ({sign} {version})")
    }
}

/// Parses a whole field: the outer list must hold entirely, of each inner list one alternative. A part that
/// can't be read is left out.
pub fn parse_field(field: &str) -> Vec<Vec<Relation>> {
    field
        .split(',')
        .map(|group| group.split('|').filter_map(|one| Relation::parse(one.trim())).collect::<Vec<_>>())
        .filter(|group| !group.is_empty())
        .collect()
}

/// The alternatives in the form of the field, for messages.
pub fn show(alternatives: &[Relation]) -> String {
    alternatives.iter().map(ToString::to_string).collect::<Vec<_>>().join(" | ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_debian_writes() {
        let groups =
            parse_field("libc6 (>= 2.38), default-mta | mail-transport-agent, perl:any, a (<< 1:2~rc1)");
        let shown: Vec<_> = groups.iter().map(|g| show(g)).collect();
        assert_eq!(
            shown,
            ["libc6 (>= 2.38)", "default-mta | mail-transport-agent", "perl", "a (<< 1:2~rc1)"]
        );
        assert!(parse_field(" , ,").is_empty());
        assert!(parse_field("a (?? 1)").is_empty());
    }

    #[test]
    fn compares_versions() {
        let cases = [
            ("a (>= 1.0)", "1.0", true),
            ("a (>> 1.0)", "1.0", false),
            ("a (<< 1.0)", "1.0~rc1", true),
            ("a (= 1:1-1)", "1-1", false),
            ("a (<= 2)", "1:0", false),
            ("a", "0", true),
        ];
        for (relation, version, expected) in cases {
            let groups = parse_field(relation);
            assert_eq!(groups[0][0].admits(&version.parse().unwrap()), expected, "{relation} {version}");
        }
    }
}
