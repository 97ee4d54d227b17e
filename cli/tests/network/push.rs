//! An image pushed to `labshift serve` over HTTPS, with a certificate of the lab's own authority.

use std::{fs, path::Path, process::Command};

use crate::arena::{Server, on_a_cable, run, sh, site};

const AUTHORITY: &str = "set -e
    openssl req -x509 -newkey rsa:2048 -nodes -days 30 -subj /CN=lab -keyout ca.key -out ca.pem
    openssl req -new -newkey rsa:2048 -nodes -subj /CN=server -addext subjectAltName=IP:10.77.0.1 -keyout key.pem -out csr.pem
    openssl x509 -req -in csr.pem -CA ca.pem -CAkey ca.key -days 30 -copy_extensions copyall -out cert.pem";

#[test]
fn an_image_comes_over_https_of_the_labs_own_authority() {
    let scratch = tempfile::tempdir().expect("a directory");
    let at = |name: &str| scratch.path().join(name).display().to_string();
    let recipe = concat!(env!("CARGO_MANIFEST_DIR"), "/../recipes/guest-batch.toml");
    run(env!("CARGO_BIN_EXE_labshift"), &["image", "build", recipe, "-o", &at("store")]);
    run("sh", &["-c", &format!("cd {} && {AUTHORITY}", scratch.path().display())]);
    let (here, there) = (scratch.path().to_owned(), scratch.path().to_owned());
    on_a_cable(
        move |ready, done| {
            let at = |name: &str| here.join(name).display().to_string();
            let mut server = Server::prepare(&site(1, "10.77.1.0-10.77.1.200"));
            let key = at("store/keys/signing.pub");
            let store = server.path("store").display().to_string();
            let labshift = env!("CARGO_BIN_EXE_labshift");
            run(labshift, &["image", "trust", &key, "-o", &store]);
            let (certificate, key) = (at("cert.pem"), at("key.pem"));
            server.start(&["--https-port", "8443", "--tls-certificate", &certificate, "--tls-key", &key]);
            fs::copy(server.path("state/admin.token"), here.join("admin.token")).expect("the token");
            ready.send(()).expect("the client waits");
            let _ = done.recv();
            run(labshift, &["image", "verify", "guest-batch@canary", "-o", &store]);
        },
        move || {
            sh("ip address add 10.77.0.11/16 dev client0");
            sh("ip link set client0 up");
            let (good, said) = push(&there, &[]);
            assert!(!good && said.contains("certificate"), "{said}");
            let authority = there.join("ca.pem").display().to_string();
            let (good, said) = push(&there, &["--ca", &authority]);
            assert!(good && said.contains("0 were there; canary points to it"), "{said}");
            let (good, said) = push(&there, &["--ca", &authority]);
            assert!(good && said.contains("guest-batch@") && said.contains(": 0 files"), "{said}");
        },
    );
}

fn push(place: &Path, further: &[&str]) -> (bool, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_labshift"));
    command.args(["image", "push", "guest-batch", "https://10.77.0.1:8443", "--channel", "canary"]);
    command.arg("--token-file").arg(place.join("admin.token")).arg("-o").arg(place.join("store"));
    for proxy in ["http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "all_proxy"] {
        command.env_remove(proxy);
    }
    let output = command.args(further).output().expect("starting labshift");
    let text = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&text).into_owned())
}
