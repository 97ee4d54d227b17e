//! Shared libraries that programs of a root ask for and the root lacks: leaving a package out shows here, not on
//! a workstation at eight in the morning.

use std::collections::{BTreeMap, BTreeSet};

use object::{
    LittleEndian as LE,
    elf::{self, FileHeader64},
    read::{
        ReadCache, ReadRef,
        elf::{Dyn, FileHeader, ProgramHeader},
    },
};

use crate::tree::{Kind, Tree};

/// Libraries that each program of a tree asks for, by path; of files whose content is at hand.
pub fn needs(tree: &Tree) -> BTreeMap<String, Vec<String>> {
    let mut found = BTreeMap::new();
    for (path, node) in tree.iter() {
        let Kind::File(data) = &node.kind else { continue };
        let Ok(bytes) = data.bytes() else { continue };
        found.extend(needs_of(path, &bytes[..]));
    }
    found
}

/// The same of one file, if it asks for any.
pub fn needs_of<'d>(path: &str, content: impl ReadRef<'d>) -> Option<(String, Vec<String>)> {
    let program = !path.ends_with(".ko") && content.read_bytes_at(0, 4) == Ok(b"\x7fELF");
    let libraries = program.then(|| needed(content)).flatten().filter(|l| !l.is_empty())?;
    Some((path.to_owned(), libraries))
}

/// Libraries that programs ask for whose content is large: only the parts that say so are read.
pub fn needs_of_large(tree: &Tree) -> std::io::Result<BTreeMap<String, Vec<String>>> {
    let mut found = BTreeMap::new();
    for (path, node) in tree.iter() {
        let Kind::File(data) = &node.kind else { continue };
        let Some((file, at)) = data.place()? else { continue };
        let cache = ReadCache::new(&*file);
        found.extend(needs_of(path, cache.range(at, data.size)));
    }
    Ok(found)
}

/// One line for each library that is asked for and not there.
pub fn missing_libraries(tree: &Tree, needs: &BTreeMap<String, Vec<String>>) -> Vec<String> {
    let mut provided: BTreeSet<&str> = BTreeSet::new();
    for (path, node) in tree.iter() {
        if !matches!(node.kind, Kind::Directory) && path.contains("lib") {
            provided.insert(path.rsplit('/').next().unwrap_or(path));
        }
    }
    let mut missing: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (path, libraries) in needs {
        for library in libraries.iter().filter(|l| !provided.contains(l.as_str())) {
            missing.entry(library).or_default().push(path);
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

/// `DT_NEEDED` of an ELF file; `None` when it is static or damaged.
fn needed<'d>(content: impl ReadRef<'d>) -> Option<Vec<String>> {
    let header = FileHeader64::<LE>::parse(content).ok()?;
    let segments = header.program_headers(LE, content).ok()?;
    let dynamic = segments.iter().find_map(|s| s.dynamic(LE, content).ok().flatten())?;
    let value = |tag: elf::DynamicTag| dynamic.iter().find(|d| d.d_tag(LE) == tag).map(|d| d.d_val(LE));
    let (table, size) = (value(elf::DT_STRTAB)?, value(elf::DT_STRSZ)?);
    let strings = segments.iter().find_map(|s| {
        let start = table.checked_sub(s.p_vaddr(LE)).filter(|at| *at < s.p_filesz(LE))?;
        content.read_bytes_at(s.p_offset(LE).checked_add(start)?, size).ok()
    })?;
    let text = |at: u64| {
        let rest = strings.get(usize::try_from(at).ok()?..)?;
        let end = rest.iter().position(|b| *b == 0)?;
        Some(String::from_utf8_lossy(&rest[..end]).into_owned())
    };
    let libraries = dynamic.iter().filter(|d| d.d_tag(LE) == elf::DT_NEEDED);
    Some(libraries.filter_map(|d| text(d.d_val(LE))).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        data::{LARGE, Spool},
        tree::Node,
    };

    #[test]
    fn a_program_without_its_libraries_is_named() {
        // This test itself is a dynamic program.
        let program = std::fs::read("/proc/self/exe").unwrap();
        let mut tree = Tree::new();
        tree.file("usr/bin/program", 0o755, &program);
        tree.file("usr/bin/script", 0o755, "#!/bin/sh");
        let missing = missing_libraries(&tree, &needs(&tree));
        assert!(
            missing.iter().any(|m| m.starts_with("library libc.so.6 is missing; /usr/bin/program ")),
            "{missing:?}"
        );
        for library in needed(&program[..]).unwrap() {
            tree.file(&format!("usr/lib/x86_64-linux-gnu/{library}"), 0o644, "");
        }
        assert_eq!(missing_libraries(&tree, &needs(&tree)), [""; 0]);
    }

    #[test]
    fn of_large_programs_only_parts_are_read() {
        let place = tempfile::tempdir().unwrap();
        let spool = Spool::on_disk_of(place.path()).unwrap();
        let mut program = std::fs::read("/proc/self/exe").unwrap();
        program.resize(program.len().max(LARGE as usize) + 1, 0);
        let data = spool.keep(program.len() as u64, &mut &program[..]).unwrap();
        let mut tree = Tree::new();
        tree.put("usr/bin/program", Node::made(Kind::File(data), 0o755));
        tree.file("usr/bin/small", 0o755, "#!/bin/sh");
        let found = needs_of_large(&tree).unwrap();
        assert_eq!(found, needs(&tree));
        assert!(found["usr/bin/program"].iter().any(|l| l == "libc.so.6"));
    }

    #[test]
    fn damaged_files_are_passed_over() {
        let program = std::fs::read("/proc/self/exe").unwrap();
        for cut in [4, 16, 63, 64, 100, 1000, 5000] {
            let _ = needed(&program[..cut]);
        }
        let mut state = 7_u32;
        let mut head = program[..64 << 10].to_vec();
        for _ in 0..2000 {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let at = (state >> 8) as usize % 1024;
            let before = std::mem::replace(&mut head[at], state as u8);
            let _ = needed(&head[..]);
            head[at] = before;
        }
    }
}
