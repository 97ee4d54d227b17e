//! Scripts that really run: dpkg and the shell are this machine's, in packages of a small world.

use std::process::Command;

use tar::EntryType::{Directory, Regular, Symlink};

use super::*;
use crate::{
    BuildOptions, Built, Inspected, Store, build,
    progress::Silent,
    verify,
    world::{RECIPE, World, packages},
};

/// What dpkg and these scripts call.
const PROGRAMS: [&str; 20] = [
    "/usr/bin/dpkg",
    "/usr/bin/dpkg-deb",
    "/usr/bin/dpkg-query",
    "/usr/bin/dpkg-split",
    "/usr/bin/dpkg-trigger",
    "/usr/bin/find",
    "/usr/bin/tar",
    "/usr/bin/cat",
    "/usr/bin/chown",
    "/usr/bin/date",
    "/usr/bin/diff",
    "/usr/bin/id",
    "/usr/bin/install",
    "/usr/bin/rm",
    "/usr/bin/sleep",
    "/usr/sbin/ldconfig",
    "/usr/sbin/start-stop-daemon",
    "/usr/sbin/groupadd",
    "/usr/sbin/useradd",
    "/usr/sbin/setcap",
];

/// Paths of the image, and of the machine.
fn essentials() -> Vec<(String, String)> {
    let mut found: BTreeMap<String, String> = BTreeMap::new();
    for program in PROGRAMS {
        found.insert(format!(".{program}"), format!("HOST:{program}"));
        let said = Command::new("ldd").arg(program).output().unwrap();
        for line in String::from_utf8_lossy(&said.stdout).lines() {
            if let Some(path) = line.split_whitespace().find(|w| w.starts_with('/')) {
                let inside = path.strip_prefix("/usr").unwrap_or(path);
                found.insert(format!("./usr{inside}"), format!("HOST:{path}"));
            }
        }
    }
    found.insert("./usr/bin/dash".into(), "HOST:/usr/bin/dash".into());
    found.into_iter().collect()
}

/// It makes a user with a directory, a file, a log and a file of another package; it removes one of its own.
const POSTINST: &str = "#!/bin/sh
set -e
[ \"$1\" = configure ]
useradd --system --user-group --home-dir /var/lib/svc --shell /usr/sbin/nologin svc
install -d -o svc -g svc -m 0750 /var/lib/svc
cat /proc/net/dev > /etc/networks-here
date > /var/log/tool.log
date > /var/cache/tool.db
echo more >> /etc/libfoo.conf
rm /etc/tool.gone
setcap cap_net_bind_service,cap_net_raw=ep /usr/bin/tool
echo tool was configured
";

/// A world in which `tool` has this postinst.
fn world(postinst: &'static str) -> World {
    let essentials = essentials();
    let mut all = packages();
    let mut system: Vec<(&str, tar::EntryType, &str)> =
        essentials.iter().map(|(to, from)| (to.as_str(), Regular, from.as_str())).collect();
    system.push(("./usr/bin/sh", Symlink, "dash"));
    system.push(("./usr/share/helper/left-out", Regular, "by a helper"));
    system.push(("DEBIAN/postinst", Regular, "#!/bin/sh\necho x > /etc/of-a-helper\n"));
    all.push(("essentials", "1", "Essential: yes", system));
    for (name, _, _, files) in &mut all {
        match *name {
            "tool" => files.extend([
                ("DEBIAN/postinst", Regular, postinst),
                ("./etc/tool.gone", Regular, "gone"),
                ("./var/cache/", Directory, ""),
                ("./var/log/", Directory, ""),
            ]),
            "libfoo" => files.extend([
                ("DEBIAN/preinst", Regular, "#!/bin/sh\necho early > /etc/early\n"),
                ("./etc/libfoo.conf", Regular, "first\n"),
            ]),
            _ => {}
        }
    }
    let world = World::with(&all);
    world.recipe(&RECIPE.replace("[kernel]", "scripts = true\n[kernel]"));
    world
}

fn built(world: &World) -> (Built, Inspected) {
    let built = build(&world.options(), &Silent).unwrap();
    let store = Store::open(&world.path("store")).unwrap();
    let image = crate::inspect(&store, "tiny", None).unwrap();
    (built, image)
}

/// The root of these tests is a tar stream.
fn root_has(built: &Built, text: &str) -> bool {
    let root = fs::read(built.directory.join("root.erofs")).unwrap();
    root.windows(text.len()).any(|w| w == text.as_bytes())
}

#[test]
fn scripts_run_and_what_they_changed_is_in_the_image_and_told() {
    let world = world(POSTINST);
    let (first, image) = built(&world);
    let contents = image.contents.unwrap();
    let home = contents.get("var/lib/svc").unwrap();
    assert_eq!((home.mode.as_str(), home.origin.as_str()), ("0750", "script tool"));
    assert!(home.uid >= 100 && home.uid == home.gid, "{home:?}");
    assert_eq!(contents.get("etc/libfoo.conf").unwrap().origin, "script tool");
    assert_eq!(contents.get("etc/early").unwrap().origin, "script libfoo");
    // VFS_CAP_REVISION_2 and "effective", the two capabilities permitted, none inheritable.
    let tool = contents.get("usr/bin/tool").unwrap();
    assert_eq!(
        (tool.capability.as_str(), tool.origin.as_str()),
        ("0100000200240000000000000000000000000000", "script tool")
    );
    assert!(root_has(&first, "SCHILY.xattr.security.capability="), "it is not in the root");
    for gone in
        ["etc/tool.gone", "var/log/tool.log", "var/cache/tool.db", "var/lib/dpkg", "usr/sbin/policy-rc.d"]
    {
        assert!(contents.get(gone).is_none(), "{gone}");
    }
    // Whom scripts found beside the image's packages is not in it, nor what that one's script made of itself.
    for helper in ["usr/bin/dpkg", "usr/share/helper/left-out", "etc/of-a-helper"] {
        assert!(contents.get(helper).is_none(), "{helper}");
    }
    let report = image.scripts.unwrap();
    let ran: Vec<_> = report.ran.iter().map(|r| (r.package.as_str(), r.script.as_str())).collect();
    assert_eq!(
        ran,
        [("libfoo", "preinst"), ("essentials", "postinst"), ("tool", "postinst"), ("", "triggers")]
    );
    let tool = &report.ran[2];
    assert_eq!((tool.version.as_str(), &tool.removed[..]), ("2.0", &["etc/tool.gone".to_owned()][..]));
    assert_eq!(tool.changed, ["etc/libfoo.conf", "etc/networks-here", "usr/bin/tool", "var/lib/svc"]);

    // The accounts of the image are those that the script left; the network had nothing but the loopback.
    let tar = fs::read(first.directory.join("root.erofs")).unwrap();
    let text = String::from_utf8_lossy(&tar);
    assert!(text.contains(&format!("svc:x:{}:{}:", home.uid, home.gid)));
    let network = text.split("Inter-|").nth(1).unwrap();
    let cards: Vec<_> =
        network.lines().take_while(|l| !l.starts_with('\0')).filter_map(|l| l.split_once(": ")).collect();
    assert!(cards.iter().all(|(name, _)| name.trim() == "lo"), "{cards:?}");

    let provenance = fs::read_to_string(first.directory.join(crate::provenance::PROVENANCE)).unwrap();
    assert!(provenance.contains("\"maintainerScripts\":true"));
    // Times and logs do not show: built again from nothing, it is the same. The lock is the one in the image.
    let (_, differs) = verify::rebuild(&world.options(), "tiny", &Silent).unwrap();
    assert_eq!(differs, []);
    assert_eq!(fs::read_dir(world.path("cache/tmp")).unwrap().count(), 0);
}

#[test]
fn a_script_that_fails_is_named_with_its_last_words() {
    let world = world("#!/bin/sh\necho 'cannot find the moon' >&2\nexit 7\n");
    let error = build(&world.options(), &Silent).unwrap_err().to_string();
    for part in ["package tool 2.0: postinst failed (exit status 7)", "cannot find the moon"] {
        assert!(error.contains(part), "{error}");
    }
    assert_eq!(fs::read_dir(world.path("cache/tmp")).unwrap().count(), 0);
}

#[test]
fn a_lock_without_scripts_is_not_one_with_them() {
    let world = world(POSTINST);
    world.recipe(RECIPE);
    let lock = crate::lock(&world.path("tiny.toml"), &world.sources(), &Silent).unwrap();
    assert!(lock.helpers.is_none());
    fs::write(world.path("tiny.lock"), lock.to_bytes()).unwrap();
    world.recipe(&RECIPE.replace("[kernel]", "scripts = true\n[kernel]"));
    let options = BuildOptions { locked: Some(world.path("tiny.lock")), ..world.options() };
    let error = build(&options, &Silent).unwrap_err().to_string();
    assert!(error.contains("the recipe now runs maintainer scripts: renew it"), "{error}");
}

fn control(text: &str, script: &str) -> BTreeMap<String, String> {
    let mut control = BTreeMap::from([("control".to_owned(), text.to_owned())]);
    if !script.is_empty() {
        control.insert(script.to_owned(), "#!/bin/sh\n".to_owned());
    }
    control
}

#[test]
fn packages_come_after_what_they_need_and_those_with_scripts_alone() {
    let a = control("Package: a\nDepends: virtual,\n c (>= 1) | x\n", "postinst");
    let (b, c) =
        (control("Package: b\nProvides: virtual\n", ""), control("Package: c\nPre-Depends: a\n", ""));
    let base = control("Package: base-passwd\n", "");
    let controls = BTreeMap::from([("a", &a), ("b", &b), ("c", &c), ("base-passwd", &base)]);
    let order = in_order(&controls);
    assert_eq!(order, ["base-passwd", "b", "c", "a"]);
    assert_eq!(
        steps(&order, &controls, "postinst"),
        [
            Step { packages: vec!["base-passwd", "b", "c"], script: None },
            Step { packages: vec!["a"], script: Some("postinst") },
        ]
    );
}

#[test]
fn dpkgs_words_are_understood() {
    let output = "dpkg: error processing package tool:amd64 (--configure):\n installed tool package post-installation script subprocess returned error exit status 7\nErrors";
    assert_eq!(exit_of_script(output).as_deref(), Some("exit status 7"));
    assert_eq!(failed_package(output).as_deref(), Some("tool"));
    assert_eq!(exit_of_script("killed"), None);
}
