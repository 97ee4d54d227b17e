//! The rescue shell.

use labshift_tests::bare::{Bare, Cable, Setup};

use super::small_image;

/// The recipe allows a rescue shell: after the page, the code for the machine's challenge opens it, or the password, and nothing else. When it
/// ends the boot goes on.
#[test]
fn a_rescue_shell_for_whoever_has_the_key_or_the_password() {
    let password = "$y$j9T$F5Jx5fExrKuPp53xLKQ..1$6JlLzEdKMvGk83Zgd3owplAejssJr2SFlJFlOc7i54A";
    let rescue = format!("[rescue]\npassword = \"{password}\"\nkeys = [\"{ADMIN}\"]\n");
    let setup = Setup {
        cable: Cable::NoCard,
        arguments: "labshift.retry=600".into(),
        foreign: Some(small_image("rescue", &rescue)),
        ..Setup::default()
    };
    let key = labshift_tests::root().join("target/test-lab/rescue/id_ed25519");
    std::fs::write(&key, ADMINS_KEY).expect("writing the admin's key");
    let machine = Bare::start("rescue", setup);
    let serial = machine.says("Enter opens the rescue shell");
    assert!(serial.contains("NO-LINK"), "{serial}");
    let asks = "Code or password of the rescue shell: ";
    // What is typed before the line is listened to is not meant.
    machine.types_until("", asks, 1);
    machine.types("letmein");
    let serial = machine.says_times(asks, 2);
    assert!(serial.contains("wrong code or password on ttyS0") && !serial.contains("rescue# "), "{serial}");
    let challenge = serial.rsplit("labshift node rescue ").next().and_then(|t| t.split_whitespace().next());
    let mut command = std::process::Command::new(labshift_tests::labshift());
    let output =
        command.args(["node", "rescue", challenge.expect("a challenge"), "--key"]).arg(&key).output();
    let code = String::from_utf8(output.expect("starting labshift node rescue").stdout).expect("text");
    machine.types(&code.trim().to_lowercase());
    machine.says("rescue# ");
    machine.types("echo $((6 * 7)) $(ls /etc/labshift | wc -l); ip link | grep -c LOOPBACK");
    let serial = machine.says("42 ");
    assert!(serial.contains("the shell is open on ttyS0"), "{serial}");
    machine.types("exit");
    let serial = machine.says_times("NO-LINK", serial.matches("NO-LINK").count() + 1);
    assert!(serial.contains("the shell has ended; trying again"), "{serial}");
    let typed = serial.contains("letmein") || serial.to_uppercase().contains(code.trim());
    assert!(!typed, "what is typed is not echoed: {serial}");
    machine.types_until("", asks, serial.matches(asks).count() + 1);
    let shells = serial.matches("rescue# ").count();
    machine.types("open sesame");
    let serial = machine.says_times("rescue# ", shells + 1);
    assert!(!serial.contains("sesame"), "{serial}");
}

/// An admin's key for the tests, without a passphrase.
const ADMIN: &str =
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAINYuIu7w3Vy0HwIzdd502gnGe3qwIzRGQxTqjJY7EoNp admin@pc";
const ADMINS_KEY: &str = "-----BEGIN OPENSSH PRIVATE KEY-----\n\
    b3BlbnNzaC1rZXktdjEAAAAABG5vbmUAAAAEbm9uZQAAAAAAAAABAAAAMwAAAAtzc2gtZW\n\
    QyNTUxOQAAACDWLiLu8N1ctB8CM3XedNoJxnt6sCM0RkMU6oyWOxKDaQAAAJAjgdheI4HY\n\
    XgAAAAtzc2gtZWQyNTUxOQAAACDWLiLu8N1ctB8CM3XedNoJxnt6sCM0RkMU6oyWOxKDaQ\n\
    AAAEDx4Yu+GAXf721nlJfjaXFck9OrSen7/GCSwsw67HIjTNYuIu7w3Vy0HwIzdd502gnG\n\
    e3qwIzRGQxTqjJY7EoNpAAAACGFkbWluQHBjAQIDBAU=\n\
    -----END OPENSSH PRIVATE KEY-----\n";

/// No `[rescue]` in the recipe: nothing is offered, and whatever is typed opens nothing.
#[test]
fn no_rescue_shell_without_a_word_in_the_recipe() {
    let setup = Setup { cable: Cable::NoCard, arguments: "labshift.retry=5".into(), ..Setup::default() };
    let machine = Bare::start("no-rescue", setup);
    machine.says("Failure 1 of 12. Trying again in");
    for line in ["", "open sesame", "id"] {
        machine.types(line);
    }
    let serial = machine.says("Failure 2 of 12. Trying again in");
    assert!(!serial.contains("rescue") && !serial.contains("uid="), "{serial}");
}
