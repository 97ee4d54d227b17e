//! Every failure of a boot, provoked on a real kernel, and what a person then reads: on the screen, on serial, at the server.

mod network;
mod rescue;
mod restart;
mod root;
mod services;
mod trust;

use labshift_model::service::{Restart, Service};
use labshift_tests::{
    bare::{Bare, Behaviour, Server, image},
    text_screen_letters,
};

/// What every page has: the code, the beginning of the sentence, of the hint, and the machine's address.
#[track_caller]
fn page(machine: &Bare, code: &str, sentence: &str, hint: &str) {
    let serial = machine.says("Trying again in");
    assert!(serial.contains(code) && serial.contains(sentence), "{serial}");
    machine
        .shows(&text_screen_letters(), &[code, sentence, &format!("What to do: {hint}"), "Trying again in"]);
}

fn server(behaviour: Behaviour) -> Server {
    Server::start(Behaviour { root: image("guest-batch").join("root.erofs"), ..behaviour })
}

fn service(name: &str, exec: &[&str]) -> Service {
    Service {
        name: name.into(),
        exec: exec.iter().map(|&word| word.to_owned()).collect(),
        after: vec![],
        restart: Restart::Always,
        environment: vec![],
        user: None,
        ready: None,
        listen: None,
        tty: None,
        limits: Default::default(),
    }
}

fn arguments(server: &Server) -> String {
    format!("labshift.server={} labshift.retry=600", server.url())
}

/// A small image, built as an admin would: these lines after those that every recipe has.
fn small_image(name: &str, lines: &str) -> std::path::PathBuf {
    let directory = labshift_tests::root().join("target/test-lab").join(name);
    std::fs::create_dir_all(&directory).expect("making the directory");
    let base = labshift_tests::root().join("recipes/base.toml");
    let recipe = format!("name = \"{name}\"\nkind = \"host\"\nextends = \"{}\"\n{lines}", base.display());
    let file = directory.join("recipe.toml");
    std::fs::write(&file, recipe).expect("writing the recipe");
    let store = directory.join("store");
    let mut build = std::process::Command::new(labshift_tests::labshift());
    let output = build.args(["image", "build"]).arg(&file).arg("-o").arg(&store).output();
    let output = output.expect("starting labshift image build");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let generation = std::fs::read_to_string(store.join("channels").join(name)).expect("reading the channel");
    store.join("images").join(name).join(generation.trim())
}
