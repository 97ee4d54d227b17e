//! Images of a real recipe, from the machine's own mirror, as a person makes and keeps them.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use serde_json::Value;

fn run(command: &mut Command) -> (bool, String) {
    let Output { status, stdout, stderr } = command.output().expect("starting the command");
    (status.success(), format!("{}{}", String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr)))
}

fn labshift(arguments: &[&str]) -> (bool, String) {
    run(Command::new(env!("CARGO_BIN_EXE_labshift")).args(arguments))
}

#[track_caller]
fn good(arguments: &[&str]) -> String {
    let (good, said) = labshift(arguments);
    assert!(good, "labshift {arguments:?}:\n{said}");
    said
}

#[track_caller]
fn json(arguments: &[&str]) -> Value {
    let said = good(arguments);
    serde_json::from_str(&said).unwrap_or_else(|e| panic!("{arguments:?}: {e}\n{said}"))
}

fn recipes() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../recipes")
}

fn copy(from: &Path, to: &Path) {
    let (good, said) = run(Command::new("cp").arg("-r").arg(from).arg(to));
    assert!(good, "{said}");
}

/// One lock, one image: built again elsewhere, by somebody with other habits and one core, without a mirror.
#[test]
fn a_life_of_an_image() {
    let scratch = tempfile::tempdir().expect("temporary directory");
    let path = |name: &str| scratch.path().join(name).display().to_string();
    let (recipe, lock, store) =
        (recipes().join("guest-batch.toml").display().to_string(), path("b.lock"), path("store"));
    good(&["image", "lock", &recipe, "-o", &lock]);
    assert!(good(&["image", "lock", &recipe, "-o", &lock]).contains("as before; --update"));
    assert!(good(&["image", "lock", &recipe, "-o", &lock, "--update"]).contains("nothing changed"));
    let built = good(&["image", "build", &recipe, "--locked", &lock, "-o", &store]);
    assert!(built.contains(" built "), "{built}");

    // From here on nobody is asked for anything.
    let nobody = "http://127.0.0.1:9/debian";
    let again = good(&["image", "build", &recipe, "--locked", &lock, "-o", &store, "--mirror", nobody]);
    assert!(again.contains("unchanged"), "{again}");
    copy(&recipes(), &scratch.path().join("elsewhere"));
    let script = "umask 077; exec taskset -c 0 \"$@\"";
    let (same, said) = run(Command::new("sh")
        .args([
            "-c",
            script,
            "sh",
            env!("CARGO_BIN_EXE_labshift"),
            "image",
            "verify",
            "guest-batch",
            "--mirror",
            nobody,
        ])
        .args(["--rebuild", &path("elsewhere/guest-batch.toml"), "-o", &store])
        .env("TZ", "Pacific/Kiritimati")
        .env("LC_ALL", "tr_TR.UTF-8")
        .current_dir("/"));
    assert!(same && said.contains("files are identical"), "{said}");

    // A changed recipe makes other bytes, and the file is named.
    let batch = scratch.path().join("elsewhere/files/guest-batch/count-primes");
    let text = fs::read_to_string(&batch).expect("reading the job");
    fs::write(&batch, text + "# more\n").expect("changing the job");
    let other = path("elsewhere/guest-batch.toml");
    let (same, said) = labshift(&["image", "verify", "guest-batch", "--rebuild", &other, "-o", &store]);
    assert!(!same && said.contains("/usr/lib/labshift/count-primes: content differs"), "{said}");

    good(&[
        "image",
        "build",
        &other,
        "--locked",
        &lock,
        "-o",
        &store,
        "--channel",
        "canary",
        "--mirror",
        nobody,
    ]);
    let difference = json(&["--json", "image", "diff", "guest-batch", "guest-batch@canary", "-o", &store]);
    assert_eq!(difference["files"].as_array().map(Vec::len), Some(1), "{difference}");
    assert_eq!(difference["files"][0]["path"], "usr/lib/labshift/count-primes");
    assert!(good(&["image", "publish", "guest-batch@canary", "-o", &store]).contains("stable"));
    let list = json(&["--json", "image", "list", "-o", &store]);
    assert_eq!(
        list[0]["channels"].as_array().map(Vec::len).max(list[1]["channels"].as_array().map(Vec::len)),
        Some(2),
        "{list}"
    );
    good(&["image", "rollback", "guest-batch", "-o", &store]);
    let fates = json(&["--json", "image", "gc", "--keep", "0", "--no-server", "-o", &store]);
    assert!(
        fates.as_array().is_some_and(|f| f.len() == 2 && f.iter().all(|f| f["kept"].is_string())),
        "{fates}"
    );

    let why = json(&["--json", "image", "why", "guest-batch", "libc6", "-o", &store]);
    assert!(why["line"].as_str().is_some_and(|l| l.starts_with("base.toml:")), "{why}");
    let inside = json(&["--json", "image", "inspect", "guest-batch", "-o", &store]);
    assert!(inside["tree"]["bytes"].as_u64().is_some_and(|b| b > 1 << 20), "{inside}");

    // Damage is found, named, and mended by a build.
    let generation = inside["generation"].as_str().expect("a generation");
    let root = scratch.path().join("store/images/guest-batch").join(generation).join("root.erofs");
    let mut bytes = fs::read(&root).expect("reading the root");
    bytes[100_000] ^= 1;
    fs::write(&root, bytes).expect("damaging the root");
    let (whole, said) = labshift(&["image", "verify", "guest-batch", "-o", &store]);
    assert!(!whole && said.contains("root.erofs has another SHA-256"), "{said}");
    fs::remove_file(scratch.path().join("store/built/guest-batch")).expect("removing the record");
    good(&["image", "build", &recipe, "--locked", &lock, "-o", &store, "--mirror", nobody]);
    good(&["image", "verify", "guest-batch", "-o", &store]);
}
