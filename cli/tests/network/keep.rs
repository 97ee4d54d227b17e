//! `image gc` beside a running server: what its machines run, are pinned to or would go back to stays.

use std::{collections::BTreeMap, fs, process::Command, sync::mpsc};

use jiff::Timestamp;
use labshift_image::Store;
use labshift_model::{
    manifest::{self, FileEntry, ImageKind, Manifest, Root},
    paths,
};
use serde_json::Value;

use crate::arena::{Server, on_a_cable, sh, site};

/// A small signed image, published on `channel`.
fn publish(store: &Store, channel: &str, root: &str) -> String {
    let files = [(paths::KERNEL, "kernel"), (paths::INITRD, "initrd"), (paths::ROOT, root)];
    let entry =
        |text: &str| FileEntry { size: text.len() as u64, sha256: manifest::generation_of(text.as_bytes()) };
    let manifest = Manifest {
        schema: manifest::SCHEMA,
        name: "lab".into(),
        kind: ImageKind::Host,
        architecture: "amd64".into(),
        kernel_release: "6.12".into(),
        kernel_arguments: String::new(),
        root: Root { root_hash: "00".repeat(32), salt: "11".repeat(32), data_size: 4096, block_size: 4096 },
        files: files.iter().map(|(name, text)| ((*name).to_owned(), entry(text))).collect(),
        lock: "22".repeat(32),
        services: vec![],
        modules: vec![],
        ports: vec![],
        valid_days: None,
        disk: None,
    };
    let bytes = manifest.to_bytes();
    let generation = manifest::generation_of(&bytes);
    let now = Timestamp::now();
    let signature = manifest::sign(&bytes, &store.signing_key().expect("the key"), now, None);
    let work = store.workplace("lab").expect("a place to work");
    for (name, text) in &files {
        fs::write(work.path().join(name), text).expect("a file");
    }
    fs::write(work.path().join(paths::MANIFEST), &bytes).expect("the manifest");
    let signature = serde_json::to_vec(&signature).expect("a signature");
    fs::write(work.path().join(paths::SIGNATURE), signature).expect("the signature");
    store.publish(work, ("lab", &generation), channel, now).expect("publishing");
    generation
}

/// What `image gc` says of each generation: why it stays, or nothing.
fn collected(server: &Server) -> BTreeMap<String, Option<String>> {
    let output = Command::new(env!("CARGO_BIN_EXE_labshift"))
        .args(["--json", "image", "gc", "--keep", "0", "--store"])
        .arg(server.path("store"))
        .arg("--token-file")
        .arg(server.path("state/admin.token"))
        .output()
        .expect("starting labshift");
    let said = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    let fates: Vec<Value> = serde_json::from_str(&said).unwrap_or_else(|e| panic!("{e}: {said}{errors}"));
    let text = |fate: &Value, key: &str| fate[key].as_str().map(str::to_owned);
    fates.iter().map(|f| (text(f, "generation").expect("a generation"), text(f, "kept"))).collect()
}

#[test]
fn what_machines_run_or_are_pinned_to_stays() {
    let (answered, has_answer) = mpsc::channel::<()>();
    // The cable is there until the client's side ends.
    let (leave, stay) = mpsc::channel::<()>();
    on_a_cable(
        move |ready, _done| {
            let _leave = leave;
            let mut server = Server::prepare("");
            let store = Store::open(&server.path("store")).expect("the store");
            let pinned = publish(&store, "stable", "pinned");
            let runs = publish(&store, "stable", "runs");
            // Another room is pinned, and its only machine has never been seen.
            let text = site(1, "10.77.1.0-10.77.1.200")
                + &format!(
                    "[[room]]\nname = \"room-b\"\nimage = \"lab\"\nschedule = \"always\"\ndesktop = \"student\"\n\
                     generation = \"{pinned}\"\n\
                     [[machine]]\nname = \"ws2\"\nroom = \"room-b\"\nmac = \"52:54:00:77:00:02\"\n\
                     address = \"10.77.0.12\"\n"
                );
            fs::write(server.path("site.toml"), text).expect("the site");
            server.start(&[]);
            ready.send(()).expect("the client waits");
            has_answer.recv().expect("the client has its answer");

            let skipped = publish(&store, "stable", "skipped");
            let stable = publish(&store, "stable", "stable");
            let fates = collected(&server);
            let why = |generation: &String| fates[generation].as_deref();
            assert_eq!(why(&runs), Some("node ws1 runs it"), "{fates:?}");
            assert_eq!(why(&pinned), Some("room room-b is pinned to it"), "{fates:?}");
            assert_eq!((why(&skipped), why(&stable)), (None, Some("channel stable")));
            assert!(!store.is_there("lab", &skipped) && store.is_there("lab", &runs));

            // A server that dies forgets nothing of this.
            server.kill();
            server.start(&[]);
            let fates = collected(&server);
            assert_eq!(fates[&runs].as_deref(), Some("node ws1 runs it"), "{fates:?}");
        },
        move || {
            sh("ip link set client0 address 52:54:00:77:00:01");
            sh("ip link set client0 up");
            sh("busybox udhcpc -n -q -f -i client0 -s /bin/true -t 20 -T 3");
            sh("ip address add 10.77.0.11/16 dev client0");
            let answer = "http://10.77.0.1:8080/v1/boot/answer?mac=52:54:00:77:00:01";
            let said = sh(&format!("curl -sS --fail-with-body {answer}"));
            assert!(String::from_utf8_lossy(&said.stdout).contains("lab"), "{said:?}");
            answered.send(()).expect("the server waits");
            let _ = stay.recv();
        },
    );
}
