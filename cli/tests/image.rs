//! Images of a real recipe, from the machine's own mirror, as a person makes and keeps them.

use std::{
    fs,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
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

/// A mirror behind TLS, of this machine's own authority: trusted when the machine trusts it, and only then.
#[test]
fn an_https_mirror_needs_a_certificate_that_this_machine_trusts() {
    let scratch = tempfile::tempdir().expect("temporary directory");
    let at = |name: &str| scratch.path().join(name);
    let script = "set -e
        openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 30 -subj /CN=lab -keyout ca.key -out ca.pem
        openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=mirror -addext subjectAltName=IP:127.0.0.1 \
          -keyout key.pem -out csr.pem
        openssl x509 -req -in csr.pem -CA ca.pem -CAkey ca.key -days 30 -copy_extensions copyall -out cert.pem";
    let (made, said) = run(Command::new("sh").args(["-c", script]).current_dir(scratch.path()));
    assert!(made, "{said}");
    let lists = at("debian/dists/trixie");
    fs::create_dir_all(&lists).expect("making the mirror");
    fs::write(lists.join("InRelease"), "this came through TLS\n").expect("writing a list");
    let mut server = Command::new("openssl")
        .args(["s_server", "-accept", "127.0.0.1:0", "-cert", "cert.pem", "-key", "key.pem", "-WWW"])
        .current_dir(scratch.path())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("starting openssl s_server");
    let output = server.stdout.take().expect("its output");
    let accepts = BufReader::new(output).lines().map_while(Result::ok).find(|l| l.starts_with("ACCEPT"));
    let address = accepts
        .expect("openssl says where it listens")
        .split_whitespace()
        .nth(1)
        .expect("an address")
        .to_owned();
    let ask = |trusted: Option<PathBuf>| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_labshift"));
        command.args(["image", "lock"]).arg(recipes().join("guest-batch.toml")).arg("-o").arg(at("lock"));
        command.args(["--mirror", &format!("https://{address}/debian"), "--cache"]).arg(at("cache"));
        for proxy in ["http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "all_proxy"] {
            command.env_remove(proxy);
        }
        if let Some(file) = trusted {
            command.env("SSL_CERT_FILE", file);
        }
        run(&mut command)
    };
    let (_, stranger) = ask(None);
    let (_, known) = ask(Some(at("ca.pem")));
    server.kill().expect("ending the server");
    server.wait().expect("waiting for the server");
    assert!(stranger.contains("certificate"), "{stranger}");
    assert!(known.contains("InRelease is refused: it is not signed"), "{known}");
}
