//! Shared libraries that programs of a root ask for and the root lacks: leaving a package out shows here, not on
//! a workstation at eight in the morning.

use std::collections::{BTreeMap, BTreeSet};

use object::{
    LittleEndian as LE,
    elf::{self, FileHeader64},
    read::elf::{Dyn, FileHeader, ProgramHeader},
};

use crate::tree::{Kind, Tree};

/// What one ELF file asks of the dynamic loader.
#[derive(Debug, Default, PartialEq, Eq)]
struct Needs {
    libraries: Vec<String>,
    runpath: Vec<String>,
}

/// One line for each library that is asked for and not there.
pub fn missing_libraries(tree: &Tree) -> Vec<String> {
    let mut provided: BTreeSet<&str> = BTreeSet::new();
    for (path, node) in tree.iter() {
        if !matches!(node.kind, Kind::Directory) && path.contains("lib") {
            provided.insert(path.rsplit('/').next().unwrap_or(path));
        }
    }
    let mut missing: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for (path, node) in tree.iter() {
        let Kind::File(bytes) = &node.kind else { continue };
        if !bytes.starts_with(b"\x7fELF") || path.ends_with(".ko") {
            continue;
        }
        for library in needs(bytes).unwrap_or_default().libraries {
            if !provided.contains(library.as_str()) {
                missing.entry(library).or_default().push(path);
            }
        }
    }
    missing
        .into_iter()
        .map(|(library, users)| {
            let more = if users.len() > 1 { format!(" and {} more", users.len() - 1) } else { String::new() };
            format!("library {library} is missing; /{}{more} will not start", users[0])
        })
        .collect()
}

fn needs(bytes: &[u8]) -> Option<Needs> {
    let header = FileHeader64::<LE>::parse(bytes).ok()?;
    let segments = header.program_headers(LE, bytes).ok()?;
    let dynamic = segments.iter().find_map(|s| s.dynamic(LE, bytes).ok().flatten())?;
    let value = |tag: elf::DynamicTag| dynamic.iter().find(|d| d.d_tag(LE) == tag).map(|d| d.d_val(LE));
    let (table, size) = (value(elf::DT_STRTAB)?, value(elf::DT_STRSZ)?);
    let strings = segments.iter().find_map(|s| {
        let start = table.checked_sub(s.p_vaddr(LE)).filter(|at| *at < s.p_filesz(LE))?;
        let offset = usize::try_from(s.p_offset(LE).checked_add(start)?).ok()?;
        bytes.get(offset..offset.checked_add(usize::try_from(size).ok()?)?)
    })?;
    let text = |at: u64| {
        let rest = strings.get(usize::try_from(at).ok()?..)?;
        let end = rest.iter().position(|b| *b == 0)?;
        Some(String::from_utf8_lossy(&rest[..end]).into_owned())
    };
    let mut needs = Needs::default();
    for entry in dynamic {
        let tag = entry.d_tag(LE);
        if tag == elf::DT_NEEDED {
            needs.libraries.extend(text(entry.d_val(LE)));
        } else if tag == elf::DT_RUNPATH {
            needs.runpath.extend(text(entry.d_val(LE)));
        }
    }
    Some(needs)
}
