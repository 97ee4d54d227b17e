//! The boot doctor on captures that are made here, frame by frame: each known trouble is recognised, and a boot without
//! trouble is left alone.

mod capture;

use capture::{ARM_PROGRAM, Capture, Dhcp, UEFI_PROGRAM};
use labshift_pxe::doctor::{Finding, Pattern, pcap};

const SERVER: &str = "10.0.0.1";
const OTHER: &str = "10.0.0.66";
const CLIENT: &str = "10.0.0.50";

fn findings(capture: &Capture) -> Vec<Finding> {
    let (seen, fault) = pcap::read(&capture.pcap());
    assert_eq!(fault, None);
    let (again, fault) = pcap::read(&capture.pcapng());
    assert_eq!(fault, None);
    assert_eq!(seen.findings(), again.findings(), "the same from pcap and pcapng");
    seen.findings()
}

#[track_caller]
fn only(capture: &Capture, pattern: Pattern, words: &[&str]) {
    let found = findings(capture);
    assert_eq!(found.iter().map(|f| f.pattern).collect::<Vec<_>>(), [pattern], "{found:#?}");
    let evidence: Vec<&str> = found[0].evidence.iter().map(|e| e.text.as_str()).collect();
    assert!(!evidence.is_empty());
    let text = format!("{}\n{}\n{}", found[0].problem, evidence.join("\n"), found[0].fix);
    for word in words {
        assert!(text.contains(word), "no {word:?} in:\n{text}");
    }
}

/// Firmware's DISCOVER, the offer, REQUEST and ACK, of one server that does it right.
fn good(capture: &mut Capture, architecture: u16, file: &str) {
    capture.discover(architecture);
    let offer = Dhcp::offer(SERVER, CLIENT).file(SERVER, file).pxe(true);
    capture.reply(&offer);
    capture.request(architecture, SERVER, CLIENT);
    capture.reply(&offer.ack());
}

#[test]
fn a_boot_without_trouble_has_no_findings() {
    let mut capture = Capture::new();
    good(&mut capture, 7, "images/lab/ab/uki.efi");
    capture.rrq(CLIENT, SERVER, "images/lab/ab/uki.efi", &[("tsize", "0")]);
    capture.tftp(SERVER, CLIENT, &capture::oack(&[("tsize", "900")]));
    capture.tftp(CLIENT, SERVER, b"\x00\x05\x00\x08aborted\x00");
    capture.port += 1;
    capture.rrq(CLIENT, SERVER, "images/lab/ab/uki.efi", &[("blksize", "1468")]);
    capture.tftp(SERVER, CLIENT, &capture::oack(&[("blksize", "1468")]));
    capture.tftp(CLIENT, SERVER, &[0, 4, 0, 0]);
    capture.tftp(SERVER, CLIENT, &capture::data(1, UEFI_PROGRAM));
    capture.tftp(CLIENT, SERVER, &[0, 4, 0, 1]);
    capture.wait(60.0);
    assert_eq!(findings(&capture), []);
}

#[test]
fn two_servers() {
    let mut capture = Capture::new();
    capture.discover(7);
    capture.reply(&Dhcp::offer(SERVER, CLIENT).file(SERVER, "uki.efi").pxe(true));
    capture.reply(&Dhcp::offer(OTHER, "10.0.0.99"));
    only(&capture, Pattern::TwoServers, &["10.0.0.1 (card 02:", "10.0.0.66 (card 02:", "DHCP snooping"]);
}

#[test]
fn split_offers_that_the_firmware_does_not_merge() {
    let mut capture = Capture::new();
    for _ in 0..2 {
        capture.discover(7);
        capture.reply(&Dhcp::offer(SERVER, CLIENT));
        capture.reply(&Dhcp::offer(OTHER, "0.0.0.0").file(OTHER, "snponly.efi").pxe(true));
        capture.request(7, SERVER, CLIENT);
        capture.reply(&Dhcp::offer(SERVER, CLIENT).ack());
        capture.wait(5.0);
    }
    only(
        &capture,
        Pattern::SplitOffers,
        &["10.0.0.1 offers the address and 10.0.0.66 the boot file", "dhcp-boot=snponly.efi,,10.0.0.66"],
    );
    capture.rrq(CLIENT, OTHER, "snponly.efi", &[]);
    capture.tftp(OTHER, CLIENT, &capture::data(1, UEFI_PROGRAM));
    assert_eq!(findings(&capture), [], "it did merge them");
}

#[test]
fn option_60_without_43() {
    let mut capture = Capture::new();
    for _ in 0..2 {
        capture.discover(7);
        let offer = Dhcp::offer(SERVER, CLIENT).file(SERVER, "snponly.efi").pxe(false);
        capture.reply(&offer);
        capture.request(7, SERVER, CLIENT);
        capture.reply(&offer.ack());
        capture.boot_service(7, CLIENT, SERVER);
        capture.wait(3.0);
    }
    only(
        &capture,
        Pattern::Class60Without43,
        &["port 4011", "06:01:08:ff", "asks 10.0.0.1:4011 and hears nothing"],
    );
}

#[test]
fn a_next_server_that_is_none() {
    let mut capture = Capture::new();
    capture.discover(0);
    let offer = Dhcp::offer(SERVER, CLIENT).file("10.0.0.7", "undionly.kpxe").pxe(true);
    capture.reply(&offer);
    capture.request(0, SERVER, CLIENT);
    capture.reply(&offer.ack());
    capture.rrq(CLIENT, "10.0.0.7", "undionly.kpxe", &[]);
    capture.unreachable("10.0.0.7", 3);
    only(
        &capture,
        Pattern::WrongNextServer,
        &["10.0.0.7 runs no TFTP server", "port unreachable", "next-server"],
    );

    let mut capture = Capture::new();
    capture.discover(0);
    let offer = Dhcp::offer(SERVER, CLIENT).file("0.0.0.0", "undionly.kpxe");
    capture.reply(&offer);
    capture.request(0, SERVER, CLIENT);
    capture.reply(&offer.ack());
    assert_eq!(findings(&capture), [], "it may still come");
    capture.wait(30.0);
    only(&capture, Pattern::WrongNextServer, &["next server is 0.0.0.0"]);
}

#[test]
fn a_program_for_another_machine() {
    let mut capture = Capture::new();
    good(&mut capture, 7, "undionly.kpxe");
    only(
        &capture,
        Pattern::ArchitectureMismatch,
        &["x86-64 UEFI", "undionly.kpxe", "architecture 7", "dhcp-match"],
    );

    let mut capture = Capture::new();
    good(&mut capture, 7, "boot");
    capture.rrq(CLIENT, SERVER, "boot", &[]);
    capture.tftp(SERVER, CLIENT, &capture::data(1, ARM_PROGRAM));
    only(&capture, Pattern::ArchitectureMismatch, &["boot of 10.0.0.1 begins like a program for Arm64 UEFI"]);

    let mut capture = Capture::new();
    capture.discover(16);
    capture.reply(&Dhcp::offer(SERVER, CLIENT).file(SERVER, "snponly.efi"));
    only(&capture, Pattern::ArchitectureMismatch, &["that is no URL", "HTTPClient"]);
}

#[test]
fn ipxe_goes_round() {
    let mut capture = Capture::new();
    capture.ipxe();
    capture.reply(&Dhcp::offer(SERVER, CLIENT).file(SERVER, "undionly.kpxe"));
    only(&capture, Pattern::LoaderLoop, &["iPXE is told to load itself again", "dhcp-match=set:ipxe,175"]);
}

#[test]
fn replies_that_a_relay_does_not_pass_on() {
    let mut capture = Capture::new();
    capture.relay = Some("10.9.0.1");
    for _ in 0..4 {
        capture.discover(7);
        capture.reply(&Dhcp::offer(SERVER, "10.9.0.50").file(SERVER, "uki.efi").pxe(true));
        capture.wait(4.0);
    }
    only(
        &capture,
        Pattern::RelayRepliesLost,
        &["10.0.0.1 answers the relay 10.9.0.1", "ip route get 10.9.0.1"],
    );
}

fn large(length: usize) -> Vec<u8> {
    let mut bytes = UEFI_PROGRAM.to_vec();
    bytes.resize(length, 0);
    bytes
}

#[test]
fn packets_that_are_too_large() {
    let mut capture = Capture::new();
    good(&mut capture, 7, "uki.efi");
    capture.rrq(CLIENT, SERVER, "uki.efi", &[("blksize", "8192")]);
    capture.tftp(SERVER, CLIENT, &capture::oack(&[("blksize", "8192")]));
    capture.tftp(CLIENT, SERVER, &[0, 4, 0, 0]);
    for _ in 0..4 {
        capture.fragment(SERVER, CLIENT, &capture::data(1, &large(1400)));
        capture.wait(1.0);
    }
    only(&capture, Pattern::Mtu, &["packets of 8224 bytes", "in fragments", "--blocksize 1468"]);

    let mut capture = Capture::new();
    good(&mut capture, 7, "uki.efi");
    capture.rrq(CLIENT, SERVER, "uki.efi", &[("blksize", "1468")]);
    capture.tftp(SERVER, CLIENT, &capture::oack(&[("blksize", "1468")]));
    capture.tftp(CLIENT, SERVER, &[0, 4, 0, 0]);
    capture.tftp(SERVER, CLIENT, &capture::data(1, &large(1468)));
    capture.unreachable_to_server("10.0.0.254", 4);
    only(&capture, Pattern::Mtu, &["10.0.0.254 answers: fragmentation needed"]);
}

#[test]
fn blocked_tftp() {
    let mut capture = Capture::new();
    good(&mut capture, 0, "undionly.kpxe");
    for _ in 0..3 {
        capture.rrq(CLIENT, SERVER, "undionly.kpxe", &[("tsize", "0")]);
        capture.wait(2.0);
    }
    only(
        &capture,
        Pattern::TftpBlocked,
        &["does not answer TFTP requests", "udp dport 69 accept", "3 times"],
    );

    let mut capture = Capture::new();
    good(&mut capture, 0, "undionly.kpxe");
    for _ in 0..4 {
        capture.rrq(CLIENT, SERVER, "undionly.kpxe", &[]);
        capture.tftp(SERVER, CLIENT, &capture::data(1, &[7; 512]));
        capture.wait(2.0);
    }
    only(&capture, Pattern::TftpBlocked, &["the answers do not reach 10.0.0.50", "nf_conntrack_tftp"]);

    let mut capture = Capture::new();
    good(&mut capture, 0, "undionly.kpxe");
    capture.rrq(CLIENT, SERVER, "undionly.kpxe", &[]);
    capture.unreachable("10.0.0.254", 13);
    only(&capture, Pattern::TftpBlocked, &["a firewall at 10.0.0.254 refuses TFTP"]);
}

#[test]
fn a_file_that_is_not_there() {
    let mut capture = Capture::new();
    good(&mut capture, 0, "undionly.kpxe");
    capture.rrq(CLIENT, SERVER, "undionly.kpxe", &[]);
    capture.tftp(SERVER, CLIENT, b"\x00\x05\x00\x01File not found\x00");
    only(&capture, Pattern::FileMissing, &["File not found (error 1)", "case-sensitive"]);
}

#[test]
fn nobody_answers_and_somebody_refuses() {
    let mut capture = Capture::new();
    for _ in 0..3 {
        capture.discover(7);
        capture.wait(4.0);
    }
    only(
        &capture,
        Pattern::NoAnswer,
        &["no DHCP server answers", "labshift site check", "DISCOVER number 3"],
    );

    let mut capture = Capture::new();
    for _ in 0..2 {
        capture.request(7, SERVER, CLIENT);
        capture.reply(&Dhcp::offer(SERVER, "0.0.0.0").nak("not of this network"));
    }
    only(&capture, Pattern::Refused, &["10.0.0.1 refuses", "not of this network"]);
}

/// Cut or changed, a capture is read as far as it goes, and nothing breaks.
#[test]
fn damaged_captures_do_no_harm() {
    let mut capture = Capture::new();
    good(&mut capture, 7, "uki.efi");
    capture.rrq(CLIENT, SERVER, "uki.efi", &[("blksize", "1468")]);
    capture.unreachable(SERVER, 3);
    for bytes in [capture.pcap(), capture.pcapng()] {
        let whole = pcap::read(&bytes).0.frames();
        for cut in 0..bytes.len() {
            assert!(pcap::read(&bytes[..cut]).0.frames() < whole, "{cut}");
        }
        let mut state = 3u64;
        for _ in 0..20_000 {
            let mut changed = bytes.clone();
            for _ in 0..4 {
                state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                let at = (state >> 33) as usize % changed.len();
                changed[at] = (state >> 17) as u8;
            }
            drop(pcap::read(&changed).0.findings());
        }
    }
    assert_eq!(pcap::read(b"hello").1, Some(pcap::BadCapture::Magic));
    assert_eq!(pcap::read(b"").1, Some(pcap::BadCapture::Magic));
}
