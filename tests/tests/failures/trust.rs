//! What a server may not make a machine boot.

use labshift_tests::bare::{Bare, Behaviour, Setup, answer};

use super::{arguments, page, server};

#[test]
fn a_manifest_that_nobody_trusted_signed() {
    let mut answer = answer(|_| ());
    answer.signature.key = "11".repeat(32);
    let server = server(Behaviour { answer: Some(Ok(answer)), ..Default::default() });
    let machine = Bare::start("key", Setup { arguments: arguments(&server), ..Setup::default() });
    page(&machine, "MANIFEST", "image lab generation ", "Publish the image again with the key");
    let failure = server.failure();
    assert!(failure.code == "MANIFEST" && failure.sentence.contains("does not trust"), "{failure:?}");
}

#[test]
fn a_manifest_that_was_changed() {
    let mut answer = answer(|_| ());
    answer.manifest = answer.manifest.replacen("amd64", "amd65", 1);
    let server = server(Behaviour { answer: Some(Ok(answer)), ..Default::default() });
    let machine = Bare::start("changed", Setup { arguments: arguments(&server), ..Setup::default() });
    page(&machine, "MANIFEST", "image lab generation ", "Publish the image again with the key");
    assert!(server.failure().sentence.contains("changed after it was signed"));
}

/// The answer of another day, played back: signed by the right server, but not to this question.
#[test]
fn an_answer_that_was_recorded() {
    let answer = Some(Ok(answer(|_| ())));
    let server = server(Behaviour { answer, recorded: true, ..Default::default() });
    let machine = Bare::start("recorded", Setup { arguments: arguments(&server), ..Setup::default() });
    page(&machine, "ANSWER", "the answer of http://10.0.2.2:", "Build the image again in the");
    assert!(server.failure().sentence.contains("it was given to an earlier question"));
}

/// An image from before the minimum: its signature is good, and it is refused.
#[test]
fn an_image_older_than_the_minimum() {
    let server = server(Behaviour { answer: Some(Ok(answer(|_| ()))), ..Default::default() });
    let overlay: [(&str, &[u8]); 1] = [("etc/labshift/minimum", b"2026-11-23T07:00:01Z\n")];
    let setup = Setup { overlay: &overlay, arguments: arguments(&server), ..Setup::default() };
    let machine = Bare::start("older", setup);
    page(&machine, "VERSION", "image lab generation ", "Build or publish the image again");
    let failure = server.failure();
    assert!(failure.sentence.contains("signed at 2026-11-23T07:00:00Z; this machine takes"), "{failure:?}");
}

/// An image whose time is over. The board believes that it is 1999: only the server's signed time counts.
#[test]
fn an_expired_image_and_a_dead_clock() {
    let mut expired = answer(|manifest| manifest.valid_days = Some(1));
    expired.now = "2026-11-24T07:00:00Z".parse().expect("a time");
    let server = server(Behaviour { answer: Some(Ok(expired)), ..Default::default() });
    let more = ["-rtc", "base=1999-01-01"];
    let setup = Setup { arguments: arguments(&server), more: &more, ..Setup::default() };
    let machine = Bare::start("expired", setup);
    page(&machine, "EXPIRED", "image lab generation ", "Publish the image again (labshift image publish)");
    assert!(server.failure().sentence.contains("good until 2026-11-24T07:00:00Z"));
}

/// The server wants another generation than the one whose kernel runs (its channel moved, or the node goes back): only a restart helps,
/// and it comes without twelve tries.
#[test]
fn a_generation_that_changed_under_way() {
    let server = server(Behaviour { answer: Some(Ok(answer(|_| ()))), ..Default::default() });
    let arguments =
        format!("labshift.server={} labshift.retry=1 labshift.roothash={}", server.url(), "ab".repeat(32));
    let machine = Bare::start("generation", Setup { arguments, ..Setup::default() });
    let failure = server.failure();
    assert!(failure.code == "CHANGED" && failure.sentence.contains("wants root hash abab"), "{failure:?}");
    let serial = machine.says_times(" init kernel ", 2);
    assert!(serial.contains("Failure 1. The machine reboots in 1 s."), "{serial}");
}
