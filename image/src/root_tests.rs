//! A small root from packages made here: the same bytes each time, and every contradiction named.

use std::{collections::BTreeMap, path::PathBuf};

use labshift_model::recipe::Recipe;
use tar::EntryType::{Directory, Regular, Symlink};

use super::*;
use crate::deb;

fn loaded(text: &str) -> Loaded {
    let recipe = Recipe::parse("test.toml", text).unwrap();
    Loaded {
        recipe,
        path: PathBuf::from("test.toml"),
        files: BTreeMap::new(),
        sources: vec![],
        lines: BTreeMap::new(),
    }
}

const RECIPE: &str = r#"
name = "tiny"
prune = ["usr/share/junk"]
[[user]]
name = "student"
uid = 1000
home = "/home/student"
[[file]]
dest = "/usr/lib/labshift/run"
source = "@run"
[[file]]
dest = "/home/student/hello"
text = "hi"
owner = "student:student"
mode = "0600"
[[service]]
name = "run"
exec = ["/usr/lib/labshift/run"]
user = "student"
"#;

fn packages() -> Vec<(&'static str, Vec<u8>)> {
    let passwd = "root:*:0:0:root:/root:/bin/bash\n";
    let base = [
        ("./usr/share/base-passwd/passwd.master", Regular, passwd),
        ("./usr/share/base-passwd/group.master", Regular, "root:*:0:\n"),
        ("./var/run/", Directory, ""),
        ("./bin/sh", Symlink, "dash"),
    ];
    let tool = [
        ("./usr/bin/mawk", Regular, "awk"),
        ("./usr/lib/sysusers.d/tool.conf", Regular, "u tool - \"A tool\"\n"),
        ("./usr/share/doc/tool/README", Regular, "long"),
        ("./usr/share/junk/x", Regular, "long"),
    ];
    vec![("base-passwd", deb::tests::package(&base, ".xz")), ("tool", deb::tests::package(&tool, ".zst"))]
}

fn build(recipe: &Loaded) -> (Tree, Vec<String>) {
    let mut root = Building::new(recipe);
    for (name, bytes) in packages() {
        let unpacked =
            deb::unpack(&bytes[..], name, &|path| Building::keeps(&recipe.recipe, path), &mut deb::in_memory)
                .unwrap();
        root.add(name, unpacked);
    }
    root.seal();
    root.finish(&BTreeMap::from([("run".to_owned(), b"program".to_vec())]));
    (root.tree, root.problems)
}

#[test]
fn the_same_input_gives_the_same_bytes() {
    let recipe = loaded(RECIPE);
    let tar = || {
        let (tree, problems) = build(&recipe);
        assert_eq!(problems, [""; 0]);
        let mut bytes = vec![];
        tree.write_tar(&mut bytes, &mut |_, _| ()).unwrap();
        bytes
    };
    assert_eq!(tar(), tar());
}

#[test]
fn what_scripts_would_have_done() {
    let (tree, _) = build(&loaded(RECIPE));
    let text = |path: &str| String::from_utf8_lossy(&tree.content(path).unwrap()).into_owned();
    assert!(text("etc/passwd").contains("student:x:1000:1000::/home/student:"));
    assert!(text("etc/passwd").contains("tool:x:999:999:A tool:"));
    assert_eq!(tree.follow("usr/bin/awk").unwrap().0, "usr/bin/mawk");
    assert_eq!(tree.get("usr/bin/sh").unwrap().kind, Kind::Link("dash".into()));
    assert_eq!(tree.get("var/run").unwrap().kind, Kind::Link("/run".into()));
    let hello = tree.get("home/student/hello").unwrap();
    assert_eq!((hello.uid, hello.gid, hello.mode), (1000, 1000, 0o600));
    assert_eq!(tree.get("home/student").unwrap().uid, 1000);
    assert!(text("etc/labshift/services.json").contains("/usr/lib/labshift/run"));
    for gone in ["usr/share/doc", "usr/share/junk", "usr/lib/sysusers.d"] {
        assert!(tree.get(gone).is_none(), "{gone}");
    }
}

#[test]
fn contradictions_are_named_together() {
    let recipe = loaded(
        "name = \"tiny\"\n[[file]]\ndest = \"/x\"\ntext = \"\"\nowner = \"ghost\"\n\
         [[service]]\nname = \"a\"\nexec = [\"/usr/bin/gone\"]\n\
         [[service]]\nname = \"b\"\nexec = [\"/etc/hosts\"]\nuser = \"nobody2\"\n",
    );
    let (_, problems) = build(&recipe);
    assert_eq!(
        problems,
        [
            "[[file]] /x: user ghost does not exist",
            "service a: the image has no /usr/bin/gone",
            "service b: /etc/hosts is not executable",
            "service b: the image has no user nobody2",
        ]
    );
}
