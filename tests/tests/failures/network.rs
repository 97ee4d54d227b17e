//! The way to the server, and what the server says.

use std::net::UdpSocket;

use labshift_tests::{
    bare::{Bare, Behaviour, Cable, MAC, Setup, answer, frame_with},
    text_screen_letters,
};

use super::{arguments, page, server, service};

#[test]
fn no_card() {
    let setup = Setup { cable: Cable::NoCard, arguments: "labshift.retry=600".into(), ..Setup::default() };
    let machine = Bare::start("no-card", setup);
    page(&machine, "NO-LINK", "this machine has no network port", "Check the cable and the switch port");
}

#[test]
fn no_link() {
    let setup = Setup { cable: Cable::Unplugged, arguments: "labshift.retry=600".into(), ..Setup::default() };
    let machine = Bare::start("no-link", setup);
    page(
        &machine,
        "NO-LINK",
        &format!("no port has a link: eth0 {MAC}"),
        "Check the cable and the switch port",
    );
    machine.shows(&text_screen_letters(), &[&format!("MAC: {MAC}")]);
}

/// Nobody answers: the page names the time; everybody on the segment gets a datagram.
#[test]
fn no_address() {
    let socket = UdpSocket::bind("127.0.0.1:0").expect("a port");
    let cable = Cable::Deaf(socket.try_clone().expect("the same port"));
    let machine = Bare::start(
        "no-address",
        Setup { cable, arguments: "labshift.retry=600".into(), ..Setup::default() },
    );
    page(&machine, "NO-ADDRESS", "no DHCP server answered in 75 s", "Check that the labshift server runs");
    let frame = frame_with(&socket, "NO-ADDRESS");
    assert_eq!(frame[..6], [0xff; 6], "to everybody");
    let text = String::from_utf8_lossy(&frame);
    assert!(
        text.contains(MAC) && text.contains("no DHCP server answered") && text.contains("eth0"),
        "{text}"
    );
}

/// Nobody listens at the server's port: the report goes to the same port as a datagram.
#[test]
fn no_server() {
    let socket = UdpSocket::bind("127.0.0.1:0").expect("a port");
    let port = socket.local_addr().expect("its number").port();
    let arguments = format!("labshift.server=http://10.0.2.2:{port} labshift.retry=600");
    let machine = Bare::start("no-server", Setup { arguments, ..Setup::default() });
    page(
        &machine,
        "NO-SERVER",
        &format!("http://10.0.2.2:{port} did not answer"),
        "Check that `labshift serve`",
    );
    frame_with(&socket, "NO-SERVER");
}

#[test]
fn a_server_that_says_no() {
    let server =
        server(Behaviour { answer: Some(Err("ws-77 is in maintenance".into())), ..Default::default() });
    let machine = Bare::start("refused", Setup { arguments: arguments(&server), ..Setup::default() });
    page(
        &machine,
        "REFUSED",
        "the server refuses to boot this machine: ws-77",
        "Look the machine up in site.toml",
    );
    assert_eq!(server.failure().code, "REFUSED");
}

/// The server does not answer: the next one is asked, and told.
#[test]
fn the_next_server_answers() {
    let service = service("done", &["/usr/bin/busybox", "sleep", "1000"]);
    let answer = answer(|manifest| manifest.services = vec![service]);
    let silent = server(Behaviour { dead: true, ..Default::default() });
    let next = server(Behaviour { answer: Some(Ok(answer)), ..Default::default() });
    let arguments = format!("{} labshift.mirror={}", arguments(&silent), next.url());
    let machine = Bare::start("next-server", Setup { arguments, ..Setup::default() });
    let serial = machine.says("1 services are up");
    assert!(
        serial.contains(&format!("asking {}", next.url())) && !serial.contains("BOOT FAILED"),
        "{serial}"
    );
    next.log("1 services are up");
}

#[test]
fn a_kernel_argument_that_is_wrong() {
    let setup = Setup {
        arguments: "labshift.root=nfs labshift.retry=600".into(),
        cable: Cable::NoCard,
        ..Setup::default()
    };
    let machine = Bare::start("cmdline", setup);
    page(&machine, "CMDLINE", "labshift.root=nfs is not", "Correct the kernel arguments");
}
