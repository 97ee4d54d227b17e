//! Which packages an image consists of: the wanted ones and all that they need.
//!
//! A walk in breadth, no search: of alternatives the first one that is already chosen, else the first one that
//! exists. Debian's archive is kept installable this way; where it isn't, the error shows the chain of reasons
//! and the recipe decides (by naming another alternative, or by leaving a package out).
//!
//! `Recommends` are not followed.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use labshift_model::fault::nearest;

use crate::{
    index::{Index, Package, provides},
    relation::{Relation, show},
};

/// Why no set of packages was found.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unresolvable {
    /// Names that no mirror knows.
    #[error("{}", unknown(.0))]
    Unknown(Vec<(String, Option<String>)>),
    /// A dependency that nothing satisfies.
    #[error("{} needs {needs}, which {why}{}", .chain.last().map_or("the recipe", String::as_str), via(.chain))]
    Unsatisfied {
        /// From the recipe's package down to the one whose dependency fails.
        chain: Vec<String>,
        /// The dependency.
        needs: String,
        /// Why nothing fits.
        why: String,
    },
    /// Two chosen packages exclude each other.
    #[error("{one} can't be together with {other}: it declares a conflict with {relation}{}", via(.chain))]
    Conflict {
        /// The package that declares it.
        one: String,
        /// The other.
        other: String,
        /// The declared relation.
        relation: String,
        /// How the other came in.
        chain: Vec<String>,
    },
}

fn unknown(names: &[(String, Option<String>)]) -> String {
    let one = |(name, near): &(String, Option<String>)| match near {
        Some(near) => format!("no package \"{name}\" on the mirror; did you mean \"{near}\"?"),
        None => format!("no package \"{name}\" on the mirror"),
    };
    names.iter().map(one).collect::<Vec<_>>().join("\n")
}

fn via(chain: &[String]) -> String {
    match chain {
        [] | [_] => String::new(),
        chain => format!(" (wanted through {})", chain.join(" -> ")),
    }
}

/// A package that was chosen.
#[derive(Debug, Clone)]
pub struct Chosen<'i> {
    /// It.
    pub package: &'i Package,
    /// The package that brought it in; `None` when it was wanted itself.
    pub needed_by: Option<String>,
}

/// Chooses packages for `wanted`. Names in `leave_out` count as present and are not chosen.
pub fn resolve<'i>(
    index: &'i Index,
    wanted: &[String],
    leave_out: &[String],
) -> Result<Vec<Chosen<'i>>, Unresolvable> {
    let missing: Vec<_> = wanted
        .iter()
        .filter(|name| index.get(name).is_none())
        .map(|name| (name.clone(), nearest(name, index.names()).map(str::to_owned)))
        .collect();
    if !missing.is_empty() {
        return Err(Unresolvable::Unknown(missing));
    }
    let left_out: BTreeSet<&str> = leave_out.iter().map(String::as_str).collect();
    let mut chosen: BTreeMap<&str, &Package> = BTreeMap::new();
    let mut reason: BTreeMap<&str, &str> = BTreeMap::new();
    let mut queue: VecDeque<&Package> = VecDeque::new();
    for package in wanted.iter().filter_map(|name| index.get(name)) {
        if chosen.insert(&package.name, package).is_none() {
            queue.push_back(package);
        }
    }
    while let Some(package) = queue.pop_front() {
        for alternatives in &package.depends {
            if alternatives.iter().any(|r| left_out.contains(r.name.as_str()))
                || alternatives.iter().any(|r| chosen.values().any(|p| provides(p, r)))
            {
                continue;
            }
            let first = alternatives.iter().flat_map(|r| index.satisfying(r)).find(|p| {
                !left_out.contains(p.name.as_str()) && !conflicts_with_any(p, chosen.values().copied())
            });
            let Some(next) = first else {
                return Err(Unresolvable::Unsatisfied {
                    chain: chain(&reason, &package.name),
                    needs: show(alternatives),
                    why: why_not(index, alternatives, &left_out),
                });
            };
            chosen.insert(&next.name, next);
            reason.insert(&next.name, &package.name);
            queue.push_back(next);
        }
    }
    for one in chosen.values() {
        let clash = one.conflicts.iter().find_map(|relation| {
            let other = chosen.values().find(|p| p.name != one.name && provides(p, relation))?;
            Some((relation, other))
        });
        if let Some((relation, other)) = clash {
            return Err(Unresolvable::Conflict {
                one: one.name.clone(),
                other: other.name.clone(),
                relation: relation.to_string(),
                chain: chain(&reason, &other.name),
            });
        }
    }
    let with_reason = |package: &'i Package| Chosen {
        package,
        needed_by: reason.get(&*package.name).map(|r| (*r).to_owned()),
    };
    Ok(chosen.into_values().map(with_reason).collect())
}

fn conflicts_with_any<'p>(package: &Package, mut others: impl Iterator<Item = &'p Package>) -> bool {
    others.any(|other| {
        package.conflicts.iter().any(|r| provides(other, r))
            || other.conflicts.iter().any(|r| other.name != package.name && provides(package, r))
    })
}

fn chain(reason: &BTreeMap<&str, &str>, name: &str) -> Vec<String> {
    let mut names = vec![name.to_owned()];
    let mut at = name;
    while let Some(parent) = reason.get(at) {
        names.push((*parent).to_owned());
        at = parent;
    }
    names.reverse();
    names
}

fn why_not(index: &Index, alternatives: &[Relation], left_out: &BTreeSet<&str>) -> String {
    for relation in alternatives {
        if let Some(package) = index.get(&relation.name) {
            if !relation.admits(&package.version) {
                return format!("the mirror only has in version {}", package.version);
            }
            return format!(
                "conflicts with a package that is already chosen ({} is installable alone)",
                package.name
            );
        }
    }
    let providers: Vec<_> =
        alternatives.iter().flat_map(|r| index.satisfying(r)).map(|p| p.name.as_str()).collect();
    match providers.iter().find(|p| left_out.contains(*p)) {
        Some(out) => format!("only {out} provides, and the recipe leaves that out"),
        None => "no package on the mirror provides".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `name version; Field: value; ...` per line.
    fn index(text: &str) -> Index {
        let mut stanzas = String::new();
        for line in text.lines().map(str::trim).filter(|l| !l.is_empty()) {
            let mut parts = line.split(';').map(str::trim);
            let (name, version) = parts.next().unwrap().split_once(' ').unwrap();
            stanzas += &format!(
                "Package: {name}\nVersion: {version}\nFilename: {name}\nSize: 1\nSHA256: {}\n",
                "0".repeat(64)
            );
            for field in parts {
                stanzas += &format!("{field}\n");
            }
            stanzas += "\n";
        }
        let mut index = Index::default();
        index.add(&stanzas, 0).unwrap();
        index.finish();
        index
    }

    const WORLD: &str = "
        app 1; Depends: lib (>= 2), mta | exim, any-awk
        lib 2; Depends: base
        base 1
        exim 4; Provides: mta
        postfix 3; Provides: mta; Conflicts: exim
        mawk 1; Provides: any-awk
        gawk 5; Provides: any-awk
        broken 1; Depends: middle
        middle 1; Depends: lib (>= 3)
        lonely 1; Depends: ghost
        hostile 1; Breaks: lib (<< 3)
    ";

    #[test]
    fn choices() {
        let cases: &[(&[&str], &[&str], &[&str])] = &[
            (&["app"], &[], &["app", "base", "exim", "gawk", "lib"]),
            (&["app", "mawk"], &[], &["app", "base", "exim", "lib", "mawk"]),
            (&["app", "postfix"], &[], &["app", "base", "gawk", "lib", "postfix"]),
            (&["app"], &["mta", "gawk"], &["app", "base", "lib", "mawk"]),
        ];
        let index = index(WORLD);
        for (wanted, leave_out, expected) in cases {
            let strings = |s: &[&str]| s.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>();
            let chosen = resolve(&index, &strings(wanted), &strings(leave_out)).unwrap();
            let names: Vec<_> = chosen.iter().map(|c| c.package.name.as_str()).collect();
            assert_eq!(&names, expected, "{wanted:?} without {leave_out:?}");
        }
    }

    #[test]
    fn refusals_say_why() {
        let index = index(WORLD);
        let fail = |wanted: &[&str]| {
            resolve(&index, &wanted.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>(), &[])
                .unwrap_err()
                .to_string()
        };
        assert_eq!(fail(&["postfx"]), "no package \"postfx\" on the mirror; did you mean \"postfix\"?");
        assert_eq!(
            fail(&["broken"]),
            "middle needs lib (>= 3), which the mirror only has in version 2 (wanted through broken -> middle)"
        );
        assert_eq!(fail(&["lonely"]), "lonely needs ghost, which no package on the mirror provides");
        assert!(fail(&["hostile", "lib"]).starts_with("hostile can't be together with lib"));
    }
}
