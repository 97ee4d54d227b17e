//! Which packages an image consists of: the wanted ones and all that they need.
//!
//! Of alternatives, the first one that is already chosen, else the first one that can be: Debian's archive is kept
//! installable this way, and nearly every image is found without a wrong turn. Where a choice leads into a conflict further on,
//! the search comes back to it and takes the next alternative (backtracking in the order of the choices). What it answers when
//! nothing fits is the first dead end it met: that is the one an admin can understand. The recipe then decides, by naming
//! another alternative or by leaving a package out.
//!
//! `Recommends` are not followed.

use std::collections::{BTreeMap, BTreeSet};

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
    #[error("{one} can't be together with {other}: it declares a conflict with {relation}{}{}", came(one, .chain_of_one), came(other, .chain))]
    Conflict {
        /// The package that declares it.
        one: String,
        /// The other.
        other: String,
        /// The declared relation.
        relation: String,
        /// How the first came in.
        chain_of_one: Vec<String>,
        /// How the other came in.
        chain: Vec<String>,
    },
    /// The search was ended.
    #[error("no set of packages was found in {0} steps; the first dead end: {1}")]
    TooHard(usize, Box<Unresolvable>),
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

fn came(name: &str, chain: &[String]) -> String {
    match chain {
        [] => String::new(),
        [_] => format!("; the recipe names {name}"),
        chain => format!("; {name} is wanted through {}", chain.join(" -> ")),
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
    let mut search = Search {
        index,
        left_out: leave_out.iter().map(String::as_str).collect(),
        chosen: vec![],
        names: BTreeMap::new(),
        first_end: None,
        steps: 0,
    };
    for package in wanted.iter().filter_map(|name| index.get(name)) {
        if search.names.contains_key(package.name.as_str()) {
            continue;
        }
        if let Some(clash) = search.clash(package, None) {
            return Err(clash);
        }
        search.push(package, None);
    }
    if let Err(last) = search.go_on(0, 0) {
        let first = search.first_end.take().unwrap_or(last);
        return Err(match search.steps >= STEPS {
            true => Unresolvable::TooHard(STEPS, Box::new(first)),
            false => first,
        });
    }
    let mut chosen: Vec<Chosen<'i>> = search
        .chosen
        .iter()
        .map(|(package, parent)| Chosen {
            package,
            needed_by: parent.map(|p| search.chosen[p].0.name.clone()),
        })
        .collect();
    chosen.sort_by(|a, b| a.package.name.cmp(&b.package.name));
    Ok(chosen)
}

/// Alternatives that are tried before the search gives up.
const STEPS: usize = 2_000;

struct Search<'i, 'a> {
    index: &'i Index,
    left_out: BTreeSet<&'a str>,
    /// In the order of choosing, each with the one that needs it.
    chosen: Vec<(&'i Package, Option<usize>)>,
    /// Names of the chosen, and virtual names that they provide, with how many do.
    names: BTreeMap<&'i str, usize>,
    first_end: Option<Unresolvable>,
    steps: usize,
}

impl<'i> Search<'i, '_> {
    fn push(&mut self, package: &'i Package, parent: Option<usize>) {
        for name in std::iter::once(&package.name).chain(package.provides.iter().map(|p| &p.name)) {
            *self.names.entry(name).or_default() += 1;
        }
        self.chosen.push((package, parent));
    }

    fn back_to(&mut self, length: usize) {
        for (package, _) in self.chosen.drain(length..) {
            for name in std::iter::once(&package.name).chain(package.provides.iter().map(|p| &p.name)) {
                match self.names.get_mut(name.as_str()) {
                    Some(count) if *count > 1 => *count -= 1,
                    _ => {
                        self.names.remove(name.as_str());
                    }
                }
            }
        }
    }

    /// Whether something that is chosen fits a relation.
    fn has(&self, relation: &Relation) -> bool {
        self.names.contains_key(relation.name.as_str())
            && self.chosen.iter().any(|(p, _)| provides(p, relation))
    }

    /// Meets the dependencies of the chosen from number `at` on, its first `done` being met already.
    fn go_on(&mut self, mut at: usize, mut done: usize) -> Result<(), Unresolvable> {
        while let Some((package, _)) = self.chosen.get(at).copied() {
            let Some(alternatives) = package.depends.get(done) else {
                (at, done) = (at + 1, 0);
                continue;
            };
            done += 1;
            let met = |r: &Relation| self.left_out.contains(r.name.as_str()) || self.has(r);
            if alternatives.iter().any(met) {
                continue;
            }
            let mut clash = None;
            let mut candidates: Vec<&'i Package> = vec![];
            for candidate in alternatives.iter().flat_map(|r| self.index.satisfying(r)) {
                if self.left_out.contains(candidate.name.as_str())
                    || candidates.iter().any(|c| c.name == candidate.name)
                {
                    continue;
                }
                match self.clash(candidate, Some(at)) {
                    None => candidates.push(candidate),
                    Some(found) => clash = clash.or(Some(found)),
                }
            }
            match candidates[..] {
                [] => {
                    let end = clash.unwrap_or_else(|| Unresolvable::Unsatisfied {
                        chain: self.chain(at),
                        needs: show(alternatives),
                        why: why_not(self.index, alternatives, &self.left_out),
                    });
                    self.first_end.get_or_insert_with(|| end.clone());
                    return Err(end);
                }
                [only] => self.push(only, Some(at)),
                _ => {
                    let length = self.chosen.len();
                    let mut end = None;
                    for candidate in candidates {
                        self.steps += 1;
                        if self.steps > STEPS {
                            break;
                        }
                        self.push(candidate, Some(at));
                        match self.go_on(at, done) {
                            Ok(()) => return Ok(()),
                            Err(e) => end = end.or(Some(e)),
                        }
                        self.back_to(length);
                    }
                    return Err(end
                        .or_else(|| self.first_end.clone())
                        .unwrap_or(Unresolvable::Unknown(vec![])));
                }
            }
        }
        Ok(())
    }

    /// Why a package can't join the chosen ones.
    fn clash(&self, package: &Package, parent: Option<usize>) -> Option<Unresolvable> {
        let chain_of_new = || {
            let mut chain = parent.map(|p| self.chain(p)).unwrap_or_default();
            chain.push(package.name.clone());
            chain
        };
        let mine = package.conflicts.iter().filter(|r| self.names.contains_key(r.name.as_str())).find_map(
            |relation| {
                let other =
                    self.chosen.iter().position(|(p, _)| p.name != package.name && provides(p, relation))?;
                Some(Unresolvable::Conflict {
                    one: package.name.clone(),
                    other: self.chosen[other].0.name.clone(),
                    relation: relation.to_string(),
                    chain_of_one: chain_of_new(),
                    chain: self.chain(other),
                })
            },
        );
        mine.or_else(|| {
            self.chosen.iter().enumerate().find_map(|(i, (other, _))| {
                let relation =
                    other.conflicts.iter().find(|r| other.name != package.name && provides(package, r))?;
                Some(Unresolvable::Conflict {
                    one: other.name.clone(),
                    other: package.name.clone(),
                    relation: relation.to_string(),
                    chain_of_one: self.chain(i),
                    chain: chain_of_new(),
                })
            })
        })
    }

    /// From the recipe's package down to the one of this number.
    fn chain(&self, number: usize) -> Vec<String> {
        let (mut names, mut at) = (vec![], Some(number));
        while let Some((package, parent)) = at.map(|at| self.chosen[at]) {
            names.push(package.name.clone());
            at = parent;
        }
        names.reverse();
        names
    }
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
        suite 1; Depends: viewer, engine
        viewer 1; Depends: fast-draw | slow-draw
        fast-draw 1; Conflicts: core
        slow-draw 1
        engine 1; Depends: core
        core 1
        stuck 1; Depends: viewer2, engine
        viewer2 1; Depends: fast-draw
    ";

    #[test]
    fn choices() {
        let cases: &[(&[&str], &[&str], &[&str])] = &[
            (&["app"], &[], &["app", "base", "exim", "gawk", "lib"]),
            (&["app", "mawk"], &[], &["app", "base", "exim", "lib", "mawk"]),
            (&["app", "postfix"], &[], &["app", "base", "gawk", "lib", "postfix"]),
            (&["app"], &["mta", "gawk"], &["app", "base", "lib", "mawk"]),
            // The first alternative shuts out what comes later: the second is taken.
            (&["suite"], &[], &["core", "engine", "slow-draw", "suite", "viewer"]),
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
        assert_eq!(
            fail(&["hostile", "lib"]),
            "hostile can't be together with lib: it declares a conflict with lib (<< 3); the recipe names hostile; the recipe names lib"
        );
        assert_eq!(
            fail(&["stuck"]),
            "fast-draw can't be together with core: it declares a conflict with core; fast-draw is wanted through stuck -> viewer2 -> \
             fast-draw; core is wanted through stuck -> engine -> core"
        );
    }

    /// Every small world: what the search finds is closed and without conflict, and where it finds nothing, trying all
    /// sets finds nothing either.
    #[test]
    fn agrees_with_trying_everything() {
        let mut state = 7_u32;
        let mut next = move |below: usize| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as usize % below
        };
        let (mut solved, mut refused) = (0, 0);
        for _ in 0..400 {
            let mut world = String::new();
            for i in 0..7 {
                world += &format!("p{i} 1");
                let groups: Vec<String> =
                    (0..next(4)).map(|_| format!("p{} | p{}", next(7), next(7))).collect();
                if !groups.is_empty() {
                    world += &format!("; Depends: {}", groups.join(", "));
                }
                if next(2) == 0 {
                    world += &format!("; Conflicts: p{}", next(7));
                }
                world.push('\n');
            }
            let index = index(&world);
            let package = |i: usize| index.get(&format!("p{i}")).unwrap();
            let good = |set: usize| {
                let has = |name: &str| set >> name[1..].parse::<usize>().unwrap() & 1 == 1;
                (0..7).filter(|i| set >> i & 1 == 1).all(|i| {
                    let p = package(i);
                    p.depends.iter().all(|g| g.iter().any(|r| has(&r.name)))
                        && p.conflicts.iter().all(|r| r.name == p.name || !has(&r.name))
                })
            };
            let possible = (0..128).any(|set| set & 1 == 1 && good(set));
            match resolve(&index, &["p0".to_owned()], &[]) {
                Ok(chosen) => {
                    let set = chosen.iter().map(|c| 1 << c.package.name[1..].parse::<usize>().unwrap()).sum();
                    assert!(good(set), "{world}");
                    solved += 1;
                }
                Err(why) => {
                    assert!(!possible, "{world}{why}");
                    refused += 1;
                }
            }
        }
        assert!(solved > 50 && refused > 20, "{solved} {refused}");
    }
}
