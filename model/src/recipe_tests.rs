//! One good recipe, and one bad fixture for each rule.

use super::*;
use crate::service::Restart;

const GOOD: &str = r#"
name = "lab"
kind = "host"
extends = "base.toml"
suite = "trixie"
packages = ["libvirt-daemon", "g++"]
leave_out = ["polkitd"]
ports = ["22"]
prune = ["usr/share/doc/**"]

[kernel]
package = "linux-image-amd64"
arguments = ["console=ttyS0", "quiet"]

[modules]
initrd = ["e1000e", "kernel/drivers/net/ethernet/intel/**"]
root = ["kvm_amd"]

[[file]]
source = "@init"
dest = "/usr/lib/labshift/init"

[[file]]
text = "x"
dest = "/etc/x"
mode = "0600"
owner = "daemon:kvm"

[[user]]
name = "student"
uid = 1000
groups = ["kvm"]

[[group]]
name = "kvm"
gid = 109

[[service]]
name = "libvirtd"
exec = ["/usr/sbin/libvirtd"]
restart = "on-failure"
ready = "/run/libvirt/libvirt-sock"
"#;

#[test]
fn reads_every_field() {
    let recipe = Recipe::parse("lab.toml", GOOD).unwrap();
    assert_eq!(recipe.name.as_deref(), Some("lab"));
    assert_eq!(recipe.packages, ["libvirt-daemon", "g++"]);
    assert_eq!(recipe.ports, [22]);
    assert_eq!(recipe.files[0].content, Content::Program("init".into()));
    assert_eq!((recipe.files[0].mode, recipe.files[1].mode), (0o755, 0o600));
    assert_eq!(recipe.files[1].owner, "daemon:kvm");
    assert_eq!(recipe.users[0].groups, ["kvm"]);
    assert_eq!(recipe.services[0].restart, Restart::OnFailure);
    let image = recipe.image().unwrap();
    assert_eq!((image.name, image.kernel), ("lab", "linux-image-amd64"));
}

#[test]
fn a_recipe_joins_its_base() {
    let base = "kind = \"guest\"\npackages = [\"bash\", \"dash\"]\n[kernel]\npackage = \"k1\"\narguments = [\"a\"]\n\
                [[file]]\ndest = \"/a\"\ntext = \"base\"\n";
    let own = "name = \"own\"\nextends = \"b\"\npackages = [\"tar\", \"bash\"]\n[kernel]\narguments = [\"b\"]\n\
               [[file]]\ndest = \"/a\"\ntext = \"own\"\n";
    let base = Recipe::parse("base", base).unwrap();
    let joined = Recipe::parse("own", own).unwrap().over(base.clone());
    assert_eq!(joined.packages, ["dash", "tar", "bash"]);
    assert_eq!(joined.arguments, ["a", "b"]);
    assert_eq!(joined.files.len(), 1);
    assert_eq!(joined.files[0].content, Content::Text("own".into()));
    assert_eq!(joined.extends, None);
    assert_eq!(joined.image().unwrap().kind, ImageKind::Guest);
    assert!(base.image().unwrap_err().contains("base for other recipes"));
}

#[test]
fn each_rule_has_a_bad_fixture() {
    let cases: &[(&str, usize, usize, &str)] = &[
        ("name = \"Lab 1\"", 1, 8, "\"Lab 1\" is not an image name"),
        ("name = 1", 1, 8, "\"name\" must be a string, but this is a integer"),
        ("kind = \"vm\"", 1, 8, "unknown kind \"vm\""),
        ("packags = []", 1, 1, "unknown key \"packags\""),
        ("packages = [\"Bash\"]", 1, 13, "\"Bash\" is not a package name"),
        ("leave_out = [\"a b\"]", 1, 14, "\"a b\" is not a package name"),
        ("mirrors = [\"mirror.lan\"]", 1, 12, "\"mirror.lan\" is not a mirror's address"),
        ("prune = [\"/usr\"]", 1, 10, "\"/usr\" is not a glob without a leading /"),
        ("ports = [\"0\"]", 1, 10, "\"0\" is not a TCP port"),
        ("hostname = \"a_b\"", 1, 12, "\"a_b\" is not a host name"),
        ("[kernel]\narguments = [\"a b\"]", 2, 14, "\"a b\" is not one kernel argument"),
        ("[modules]\nroot = [\"a/b\"]", 2, 9, "\"a/b\" is not a module name"),
        ("[modules]\ninitrd = [\"../x\"]", 2, 11, "\"../x\" is not a module name or glob"),
        ("[secure_boot]\nkey = \"db.key\"", 1, 1, "\"cert\" is missing"),
        ("[disk]", 1, 1, "[disk] must say how the disk is recognised"),
        ("[disk]\nserial = \"a\"\npartition = \"b\"", 1, 1, "[disk] must say how the disk is recognised"),
        ("[disk]\nserial = \"a b\"", 2, 10, "\"a b\" is not a serial number of 1 to 64 printable characters"),
        ("[rescue]", 1, 1, "\"keys\" is missing"),
        (
            "[rescue]\nkeys = [\"ssh-rsa AAAA\"]",
            2,
            9,
            "\"ssh-rsa AAAA\" is not a public key (ssh-ed25519 AAAA...)",
        ),
        ("[rescue]\npassword = \"secret\"", 2, 12, "this is no password hash as in /etc/shadow"),
        ("[rescue]\npassword = \"$6$salt$tooshort\"", 2, 12, "this is no password hash as in /etc/shadow"),
        ("[[file]]\ntext = \"\"", 1, 1, "\"dest\" is missing"),
        ("[[file]]\ndest = \"etc/x\"\ntext = \"\"", 2, 8, "\"etc/x\" is not an absolute path without \"..\""),
        (
            "[[file]]\ndest = \"/a/../b\"\ntext = \"\"",
            2,
            8,
            "\"/a/../b\" is not an absolute path without \"..\"",
        ),
        ("[[file]]\ndest = \"/x\"", 1, 1, "[[file]] has no contents"),
        ("[[file]]\ndest = \"/x\"\ntext = \"\"\nlink = \"y\"", 1, 1, "[[file]] has several contents"),
        ("[[file]]\ndest = \"/x\"\ntext = \"\"\nmode = \"0999\"", 4, 8, "\"0999\" is not a file mode"),
        (
            "[[file]]\ndest = \"/x\"\ntext = \"\"\nowner = \"Me\"",
            4,
            9,
            "\"Me\" is not an owner (user or user:group)",
        ),
        ("[[user]]\nname = \"a\"", 1, 1, "\"uid\" is missing"),
        ("[[user]]\nname = \"a:b\"\nuid = 7", 2, 8, "\"a:b\" is not a user name"),
        (
            "[[group]]\nname = \"a\"\ngid = 0",
            3,
            7,
            "\"gid\" must be a whole number from 1 to 65533, but this is 0",
        ),
        ("[[service]]\nname = \"a\"", 1, 1, "\"exec\" is missing"),
        ("[[service]]\nname = \"a\"\nexec = [\"ls\"]", 3, 9, "\"ls\" is not an absolute path"),
        ("[[service]]\nname = \"a\"\nexec = [\"/ls\"]\nrestart = \"x\"", 4, 11, "unknown restart rule \"x\""),
        (
            "[[service]]\nname = \"a\"\nexec = [\"/ls\"]\nenvironment = [\"X\"]",
            4,
            16,
            "\"X\" is not a NAME=value pair",
        ),
        ("[[service]]\nname = \"a\"\nexec = [\"/ls\"]\nready = \"x\"", 4, 9, "\"x\" is not an absolute path"),
        (
            "[[service]]\nname = \"a\"\nexec = [\"/ls\"]\nlisten = \"x\"",
            4,
            10,
            "\"x\" is not an absolute path of at most 107 bytes",
        ),
        (
            "[[service]]\nname = \"a\"\nexec = [\"/ls\"]\nlisten = \"/s\"\nready = \"/s\"",
            5,
            9,
            "\"ready\" does not go with \"listen\"",
        ),
        (
            "[[service]]\nname = \"a\"\nexec = [\"/ls\"]\nlisten = \"/s\"\ntty = \"/dev/tty1\"",
            5,
            7,
            "\"tty\" does not go with \"listen\"",
        ),
        (
            "[[service]]\nname = \"a\"\nexec = [\"/ls\"]\nrestart = \"never\"\nlisten = \"/s\"",
            5,
            10,
            "\"listen\" does not go with restart = \"never\"",
        ),
        (
            "[[group]]\nname = \"a\"\ngid = 5\n[[group]]\nname = \"a\"\ngid = 6",
            5,
            8,
            "[[group]] \"a\" is here twice",
        ),
    ];
    for (text, line, column, message) in cases {
        let faults = Recipe::parse("bad.toml", text).unwrap_err();
        let found: Vec<_> = faults.faults.iter().map(|f| (f.line, f.column, f.message.as_str())).collect();
        assert!(found.contains(&(*line, *column, *message)), "{text}\nfound {found:?}");
    }
}

#[test]
fn all_mistakes_come_at_once() {
    let text = "name = \"X\"\npackages = [\"Q\"]\n[kernel]\npakage = \"a\"\n";
    let faults = Recipe::parse("bad.toml", text).unwrap_err();
    assert_eq!(faults.faults.len(), 3, "{faults}");
    assert_eq!(faults.faults[2].help, "did you mean \"package\"?");
}

#[test]
fn a_whole_recipe_is_checked_across_its_files() {
    let parse = |t: &str| Recipe::parse("r", t).unwrap();
    let head = "name = \"a\"\nkind = \"host\"\n";
    let kernel = "[kernel]\npackage = \"linux\"\n";
    assert!(parse(head).image().unwrap_err().contains("no kernel"));
    let both = format!("{head}packages = [\"bash\"]\nleave_out = [\"bash\"]\n{kernel}");
    assert!(parse(&both).image().unwrap_err().contains("bash"));
    let after = format!("{head}{kernel}[[service]]\nname = \"s\"\nexec = [\"/s\"]\nafter = [\"t\"]\n");
    assert!(parse(&after).image().unwrap_err().contains("starts after \"t\""));
    let listens =
        |name: &str| format!("[[service]]\nname = \"{name}\"\nexec = [\"/s\"]\nlisten = \"/run/s\"\n");
    let one = parse(&format!("{head}{kernel}{}", listens("s")));
    assert_eq!((one.image().is_ok(), one.services[0].listen.as_deref()), (true, Some("/run/s")));
    let two = parse(&format!("{head}{kernel}{}{}", listens("s"), listens("t")));
    assert_eq!(two.image().unwrap_err(), "services s and t both listen at /run/s: one path, one service");
}

#[test]
fn a_socket_has_a_path_that_the_kernel_takes() {
    let listens = |bytes: usize| {
        let path = format!("/{}", "s".repeat(bytes - 1));
        Recipe::parse("r", &format!("[[service]]\nname = \"a\"\nexec = [\"/s\"]\nlisten = \"{path}\"\n"))
    };
    assert!(listens(107).is_ok() && listens(108).is_err());
}
