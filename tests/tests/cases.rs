//! Every case of docs/boot-cases.md has a test that carries its number.

use std::{collections::BTreeSet, fs, path::Path};

use labshift_tests::root;

fn names(directory: &Path, found: &mut String) {
    for entry in fs::read_dir(directory).expect("reading a directory").flatten() {
        let path = entry.path();
        if path.is_dir() {
            names(&path, found);
        } else if path.extension().is_some_and(|e| e == "rs") {
            let text = fs::read_to_string(&path).expect("reading a source file");
            let cases = text.split("fn case_").skip(1).filter_map(|rest| rest.split('(').next());
            cases.for_each(|name| found.push_str(&format!("_{name}_\n")));
        }
    }
}

#[test]
fn every_boot_case_has_a_test() {
    let mut tests = String::new();
    ["pxe", "cli", "initrd"].iter().for_each(|room| names(&root().join(room), &mut tests));
    let page = fs::read_to_string(root().join("docs/boot-cases.md")).expect("the page");
    let cases: BTreeSet<&str> = page
        .lines()
        .filter_map(|l| l.strip_prefix("| ")?.split(' ').next())
        .filter(|c| c.len() == 2)
        .collect();
    assert_eq!(cases.len(), 26, "{cases:?}");
    let missing: Vec<_> = cases.iter().filter(|case| !tests.contains(&format!("_{case}_"))).collect();
    assert!(missing.is_empty(), "no test is named after {missing:?}");
}
