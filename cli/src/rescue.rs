//! `labshift node rescue`: the code for a broken machine's challenge, worked out with the admin's own SSH key. Asks no server: the machine may
//! have no network, and neither may the PC.

use std::{
    fs::{File, OpenOptions},
    io::{BufRead, BufReader, Write},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use labshift_model::rescue::Challenge;
use nix::sys::termios::{LocalFlags, SetArg, tcgetattr, tcsetattr};
use ssh_key::PrivateKey;

/// Prints the code.
pub fn code(challenge: &str, key: Option<PathBuf>, json: bool) -> Result<()> {
    let challenge: Challenge =
        challenge.parse().context("reading the challenge from the machine's screen")?;
    let key = match key {
        Some(key) => key,
        None => default_key().context("finding your home directory; name the key with --key")?,
    };
    let code = challenge.answer(&secret(&key, ask_passphrase)?);
    if json {
        return crate::print_json(&serde_json::json!({ "code": code }));
    }
    println!("{code}");
    Ok(())
}

fn default_key() -> Option<PathBuf> {
    std::env::home_dir().map(|home| home.join(".ssh/id_ed25519"))
}

/// The secret half of an Ed25519 key in OpenSSH's form.
fn secret(path: &Path, passphrase: impl FnOnce(&Path) -> Result<String>) -> Result<[u8; 32]> {
    let shown = path.display();
    let text = std::fs::read_to_string(path).with_context(|| format!("reading {shown}"))?;
    let key = PrivateKey::from_openssh(&text).with_context(|| {
        format!("reading {shown}: it is no private key as `ssh-keygen -t ed25519` writes it")
    })?;
    let key = if key.is_encrypted() {
        key.decrypt(passphrase(path)?)
            .with_context(|| format!("opening {shown}: the passphrase is wrong, or the file is damaged"))?
    } else {
        key
    };
    match key.key_data().ed25519() {
        Some(pair) => Ok(pair.private.to_bytes()),
        None => bail!(
            "{shown} is a key of kind {}; the rescue shell takes Ed25519 keys (ssh-keygen -t ed25519)",
            key.algorithm()
        ),
    }
}

/// Asks on the terminal, without echo.
fn ask_passphrase(path: &Path) -> Result<String> {
    let mut terminal = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/tty")
        .context("opening the terminal to ask for the key's passphrase")?;
    write!(terminal, "Passphrase of {}: ", path.display())?;
    let before = tcgetattr(&terminal).context("reading the terminal's settings")?;
    let mut quiet = before.clone();
    quiet.local_flags.remove(LocalFlags::ECHO);
    tcsetattr(&terminal, SetArg::TCSAFLUSH, &quiet).context("switching the terminal's echo off")?;
    let line = read_line(&terminal);
    tcsetattr(&terminal, SetArg::TCSAFLUSH, &before).context("switching the terminal's echo on")?;
    writeln!(terminal)?;
    line
}

fn read_line(terminal: &File) -> Result<String> {
    let mut line = String::new();
    BufReader::new(terminal).read_line(&mut line).context("reading the passphrase")?;
    Ok(line.trim_end_matches(['\r', '\n']).to_owned())
}

#[cfg(test)]
mod tests {
    use labshift_model::rescue::{AdminKey, Question, is_code};

    use super::*;

    #[test]
    fn keys_of_ssh_keygen_open_with_their_public_half() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("id_ed25519");
        let question = Question::new(&[5; 32]);
        let opens = |text: &str, line: &str, passphrase: &str| {
            std::fs::write(&file, text).unwrap();
            let secret = secret(&file, |_| Ok(passphrase.to_owned()));
            let admin: AdminKey = line.parse().unwrap();
            secret.map(|s| is_code(&question.challenge().answer(&s), &question.code(&admin)))
        };
        let said = |e: anyhow::Error| format!("{e:#}");
        assert!(opens(PLAIN, PLAIN_LINE, "").unwrap());
        assert!(opens(SEALED, SEALED_LINE, "open sesame").unwrap());
        assert!(!opens(PLAIN, SEALED_LINE, "").unwrap(), "another key's code");
        assert!(said(opens(SEALED, SEALED_LINE, "wrong").unwrap_err()).contains("passphrase is wrong"));
        assert!(said(opens("rubbish", PLAIN_LINE, "").unwrap_err()).contains("ssh-keygen -t ed25519"));
        assert!(said(opens(ECDSA, PLAIN_LINE, "").unwrap_err()).contains("ssh-keygen -t ed25519"));
    }

    const PLAIN: &str = "-----BEGIN OPENSSH PRIVATE KEY-----\n\
        b3BlbnNzaC1rZXktdjEAAAAABG5vbmUAAAAEbm9uZQAAAAAAAAABAAAAMwAAAAtzc2gtZW\n\
        QyNTUxOQAAACDWLiLu8N1ctB8CM3XedNoJxnt6sCM0RkMU6oyWOxKDaQAAAJAjgdheI4HY\n\
        XgAAAAtzc2gtZWQyNTUxOQAAACDWLiLu8N1ctB8CM3XedNoJxnt6sCM0RkMU6oyWOxKDaQ\n\
        AAAEDx4Yu+GAXf721nlJfjaXFck9OrSen7/GCSwsw67HIjTNYuIu7w3Vy0HwIzdd502gnG\n\
        e3qwIzRGQxTqjJY7EoNpAAAACGFkbWluQHBjAQIDBAU=\n\
        -----END OPENSSH PRIVATE KEY-----\n";
    const PLAIN_LINE: &str =
        "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAINYuIu7w3Vy0HwIzdd502gnGe3qwIzRGQxTqjJY7EoNp admin@pc";
    const SEALED: &str = "-----BEGIN OPENSSH PRIVATE KEY-----\n\
        b3BlbnNzaC1rZXktdjEAAAAACmFlczI1Ni1jdHIAAAAGYmNyeXB0AAAAGAAAABD2OsRJtt\n\
        o1oPzAQkEoYFePAAAAAQAAAAEAAAAzAAAAC3NzaC1lZDI1NTE5AAAAIBzUpHVpIq0JTpAi\n\
        FOSezhTWyLP2VQM2X/57gMCueBxjAAAAkLZcB7motZZlQLwDVxGqdrp0SxqDHySAXTO6sa\n\
        q2mK+/28knzEgpLOTuWZRVWcSUwB88jsoAmHFUjeeGtbNzQ1a+Llqf5/QjsKwy+rnRwyVa\n\
        +9MxuHwPzitBOLqj4DansvQbsSiHgsRqy0iiz+uehMpsCLF4bn8JqkU/s9AM0foBKkjcbq\n\
        lK/dEwEbEUdG6V9w==\n\
        -----END OPENSSH PRIVATE KEY-----\n";
    const SEALED_LINE: &str =
        "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIBzUpHVpIq0JTpAiFOSezhTWyLP2VQM2X/57gMCueBxj admin@pc";
    const ECDSA: &str = "-----BEGIN OPENSSH PRIVATE KEY-----\n\
        b3BlbnNzaC1rZXktdjEAAAAABG5vbmUAAAAEbm9uZQAAAAAAAAABAAAAaAAAABNlY2RzYS\n\
        1zaGEyLW5pc3RwMjU2AAAACG5pc3RwMjU2AAAAQQTQF7bDnA9mLyMx5JVyIwS1SU0qKpgX\n\
        5ONSb+If/2oApmgigN1ViWTC/wtsajX0XmDhBi1ilczXTEUUEQWJipiTAAAAqJZk8taWZP\n\
        LWAAAAE2VjZHNhLXNoYTItbmlzdHAyNTYAAAAIbmlzdHAyNTYAAABBBNAXtsOcD2YvIzHk\n\
        lXIjBLVJTSoqmBfk41Jv4h//agCmaCKA3VWJZML/C2xqNfReYOEGLWKVzNdMRRQRBYmKmJ\n\
        MAAAAhAMsykqyV3PuJc6SKOdN1Sv9xQ53sin6qvgrauB7F6+XnAAAACGFkbWluQHBjAQID\n\
        BAUGBw==\n\
        -----END OPENSSH PRIVATE KEY-----\n";
}
