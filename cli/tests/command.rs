//! The command as a person meets it: help, mistakes, exit codes.

use std::{
    path::Path,
    process::{Command, Output},
};

fn labshift(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_labshift")).args(arguments).output().expect("starting labshift")
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[track_caller]
fn fails(arguments: &[&str], code: i32, wanted: &[&str]) {
    let output = labshift(arguments);
    let said = text(&output);
    assert_eq!(output.status.code(), Some(code), "{arguments:?} said:\n{said}");
    for part in wanted {
        assert!(said.contains(part), "{arguments:?} does not say {part:?}:\n{said}");
    }
}

/// Every command and sub-command explains itself.
#[test]
fn help_everywhere() {
    fn walk(path: &mut Vec<String>) -> usize {
        let mut arguments: Vec<&str> = path.iter().map(String::as_str).collect();
        arguments.push("--help");
        let output = labshift(&arguments);
        let said = text(&output);
        assert!(output.status.success(), "{arguments:?}: {said}");
        assert!(said.contains("Usage: labshift"), "{arguments:?}: {said}");
        let Some((_, commands)) = said.split_once("Commands:\n") else { return 1 };
        let names: Vec<String> = commands
            .lines()
            .take_while(|l| l.starts_with("  "))
            .filter(|l| !l.starts_with("   "))
            .filter_map(|l| l.split_whitespace().next().map(str::to_owned))
            .filter(|n| n != "help")
            .collect();
        assert!(!names.is_empty(), "{arguments:?}: {said}");
        let mut seen = 1;
        for name in names {
            path.push(name);
            seen += walk(path);
            path.pop();
        }
        seen
    }
    assert!(walk(&mut vec![]) > 20);
}

#[test]
fn no_such_recipe_names_the_nearest() {
    let recipes = concat!(env!("CARGO_MANIFEST_DIR"), "/../recipes");
    fails(
        &["image", "build", &format!("{recipes}/labb.toml")],
        4,
        &["no recipe", "labb.toml", "did you mean", "lab.toml"],
    );
}

#[test]
fn a_recipe_with_three_mistakes_gets_three_answers() {
    let scratch = tempfile::tempdir().expect("temporary directory");
    let recipe = scratch.path().join("x.toml");
    let text = "name = \"x\"\nkind = \"hots\"\npakages = [\"bash\"]\n\n[[service]]\nname = \"a\"\nexec = [\"bin/a\"]\n";
    std::fs::write(&recipe, text).expect("writing the recipe");
    let recipe = recipe.display().to_string();
    fails(
        &["image", "build", &recipe, "-o", &scratch.path().join("store").display().to_string()],
        3,
        &["3 mistakes", "x.toml:2:8", "x.toml:3:1", "x.toml:7:9", "did you mean \"packages\"?"],
    );
    assert!(!scratch.path().join("store").exists(), "a bad recipe must not touch the store");
}

#[test]
fn a_store_that_may_not_be_written() {
    let recipe = concat!(env!("CARGO_MANIFEST_DIR"), "/../recipes/guest-batch.toml");
    fails(&["image", "build", recipe, "-o", "/proc/labshift-store"], 4, &["/proc/labshift-store"]);
}

/// A file system of one mebibyte, made in a mount namespace of the test's own.
#[test]
fn no_free_disk() {
    let recipe = concat!(env!("CARGO_MANIFEST_DIR"), "/../recipes/guest-batch.toml");
    let script = format!(
        "d=$(mktemp -d) && mount -t tmpfs -o size=1m labshift-test $d && mkdir $d/store && \
         {} image build {recipe} -o $d/store --cache $d/cache; code=$?; umount -l $d; rmdir $d; exit $code",
        env!("CARGO_BIN_EXE_labshift")
    );
    let output = Command::new("unshare")
        .args(["--user", "--map-root-user", "--mount", "sh", "-c", &script])
        .output()
        .expect("starting unshare");
    let said = text(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("no space is left"), "{said}");
}

fn site() -> String {
    concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/examples/site.toml").to_owned()
}

#[test]
fn the_example_site_is_right_and_its_schedule_has_causes() {
    assert!(Path::new(&site()).exists());
    let output = labshift(&["site", "check", &site()]);
    assert!(output.status.success(), "{}", text(&output));
    let output = labshift(&["site", "schedule", &site(), "--from", "2026-11-23T07:00"]);
    let said = text(&output);
    assert!(output.status.success(), "{said}");
    assert!(said.contains("Algorithms") && said.contains("desktop"), "{said}");
}

#[test]
fn mistakes_of_a_site_file_have_places() {
    let scratch = tempfile::tempdir().expect("temporary directory");
    let file = scratch.path().join("site.toml");
    std::fs::write(&file, "name = 3\ntimezone = \"Mars/Base\"\n").expect("writing the site");
    fails(&["site", "check", &file.display().to_string()], 3, &["site.toml:1:8", "site.toml:2:12"]);
    fails(&["site", "check", "/nonexistent/site.toml"], 4, &["/nonexistent/site.toml"]);
}

#[test]
fn a_server_that_is_not_there() {
    let scratch = tempfile::tempdir().expect("temporary directory");
    let token = scratch.path().join("token");
    std::fs::write(&token, "00").expect("writing a token");
    let token = token.display().to_string();
    fails(
        &["status", "--server", "http://127.0.0.1:1", "--token-file", &token],
        6,
        &["no server answers", "labshift serve"],
    );
    fails(&["status", "--token-file", "/nonexistent/token"], 4, &["/nonexistent/token"]);
}

/// Runs a shell script in a network namespace of its own, with the example site's address on loopback. `$serve` is a
/// `labshift serve` for it; the second process is started when the first has said that it serves.
fn in_a_network_of_its_own(script: &str) -> Output {
    let scratch = tempfile::tempdir().expect("temporary directory");
    let directory = scratch.path().display();
    let prepare = format!(
        "set -e; cd {directory}; mkdir store; mkfifo said; ip link set lo up; ip address add 10.77.0.1/24 dev lo; set +e
         serve='{} serve --site {} --interface lo -o store'
         {script}",
        env!("CARGO_BIN_EXE_labshift"),
        site()
    );
    Command::new("unshare")
        .args(["--user", "--map-root-user", "--net", "--fork", "--kill-child", "sh", "-c", &prepare])
        .output()
        .expect("starting unshare")
}

#[test]
fn a_port_in_use() {
    let output = in_a_network_of_its_own(
        "$serve --state one --dhcp off > said & first=$!; exec 9< said; read -r line <&9; \
         $serve --state two --dhcp off; code=$?; kill $first; exit $code",
    );
    let said = text(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("in use"), "{said}");
}

#[test]
fn no_permission_for_the_boot_ports() {
    let output = in_a_network_of_its_own("setpriv --bounding-set=-all --inh-caps=-all $serve --state one");
    let said = text(&output);
    assert_eq!(output.status.code(), Some(5), "{said}");
    assert!(said.contains("no permission") && said.contains("CAP_NET_BIND_SERVICE"), "{said}");
}

/// A capture of a machine that asks three times and gets no answer.
#[test]
fn the_doctor_reads_a_capture() {
    let scratch = tempfile::tempdir().expect("temporary directory");
    let file = scratch.path().join("boot.pcap");
    let mut packet = vec![1, 1, 6, 0, 0, 0, 0, 1];
    packet.resize(28, 0);
    packet.extend([0x52, 0x54, 0, 0x77, 0, 1]);
    packet.resize(236, 0);
    packet.extend([99, 130, 83, 99, 53, 1, 1, 255]);
    let mut frame = vec![0xff; 6];
    frame.extend([0x52, 0x54, 0, 0x77, 0, 1, 8, 0, 0x45, 0, 1, 16, 0, 0, 0, 0, 64, 17, 0, 0]);
    frame.extend([0, 0, 0, 0, 255, 255, 255, 255, 0, 68, 0, 67, 0, 252, 0, 0]);
    frame.extend(packet);
    let mut capture =
        vec![0xd4, 0xc3, 0xb2, 0xa1, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 255, 255, 0, 0, 1, 0, 0, 0];
    for second in 1..=3u32 {
        let length = frame.len() as u32;
        capture.extend([second, 0, length, length].map(u32::to_le_bytes).concat());
        capture.extend(&frame);
    }
    std::fs::write(&file, &capture).expect("writing the capture");
    let path = file.display().to_string();
    let output = labshift(&["doctor", &path]);
    let said = text(&output);
    assert!(output.status.success(), "{said}");
    for wanted in [
        "52:54:00:77:00:01: no DHCP server answers",
        "2.000 s  DISCOVER number 3",
        "fix: ",
        "3 frames, 1 machines",
    ] {
        assert!(said.contains(wanted), "no {wanted:?} in:\n{said}");
    }
    let output = labshift(&["--json", "doctor", &path]);
    assert!(text(&output).contains("\"pattern\": \"no-answer\""), "{}", text(&output));
    std::fs::write(&file, "hello").expect("writing nonsense");
    fails(&["doctor", &path], 1, &["boot.pcap", "not a capture"]);
    fails(&["doctor", "/nonexistent.pcap"], 4, &["/nonexistent.pcap"]);
    fails(&["doctor"], 2, &["--interface"]);
}

#[test]
fn the_texts_for_another_dhcp_server() {
    let output = labshift(&["site", "dhcp", &site()]);
    let said = text(&output);
    for wanted in [
        "# dnsmasq",
        "dhcp-boot=tag:ipxe,http://10.77.0.1:8080",
        "# ISC",
        "# Kea",
        "# Windows",
        "$scope = \"10.77.0.0\"",
    ] {
        assert!(said.contains(wanted), "no {wanted:?} in:\n{said}");
    }
    let output = labshift(&["site", "dhcp", &site(), "--for", "isc"]);
    assert!(text(&output).starts_with("option arch code 93"), "{}", text(&output));
}
