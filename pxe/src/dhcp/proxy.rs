//! proxyDHCP: boot files without addresses, beside another DHCP server, and the boot server on port 4011
//! (PXE 2.1 sections 2.2.3 and 2.3). Every reply carries our real address as option 54 and siaddr: without them
//! clients broadcast to 4011.

use std::net::{Ipv4Addr, SocketAddrV4};

use dhcproto::v4::MessageType;
use labshift_model::boot::{BootPlaneEvent, Directory};

use super::{
    answer::Answer,
    boot::{BootFile, boot_file},
    client::Client,
    reply::{CLIENT_PORT, Destination, Draft, destination},
    request::Request,
};
use crate::config::Config;

/// Answers a client's DISCOVER with a boot file, if it gets one.
pub fn offer(request: &Request, config: &Config, directory: &dyn Directory) -> Answer {
    if request.kind != MessageType::Discover {
        return Answer::default();
    }
    let Some(file) = file(request, config, directory) else { return Answer::default() };
    let draft = Draft::new(request, MessageType::Offer, config).boot(request.client, Some(&file), config);
    let to = destination(request, Ipv4Addr::UNSPECIFIED);
    let event = BootPlaneEvent::Offer {
        mac: request.mac,
        address: Ipv4Addr::UNSPECIFIED,
        speaker: request.client.speaker(),
    };
    Answer::one(draft.to(to), Some(event))
}

/// Answers on port 4011, to the port that the client sent from: EDK2 sends from 4011, iPXE from 68.
pub fn boot_server(
    request: &Request,
    source: SocketAddrV4,
    config: &Config,
    directory: &dyn Directory,
) -> Answer {
    let asks = matches!(request.kind, MessageType::Request | MessageType::Inform | MessageType::Discover);
    let firmware = matches!(request.client, Client::Firmware(_) | Client::Ipxe);
    let Some(file) = file(request, config, directory).filter(|_| asks && firmware) else {
        return Answer::default();
    };
    let to = match (source.ip().is_unspecified(), request.ciaddr.is_unspecified()) {
        (false, _) => Destination::Socket(source),
        (true, false) => Destination::Socket(SocketAddrV4::new(request.ciaddr, CLIENT_PORT)),
        (true, true) => return Answer::default(),
    };
    let draft = Draft::new(request, MessageType::Ack, config).in_use(request.ciaddr);
    Answer::one(draft.boot(request.client, Some(&file), config).to(to), None)
}

fn file(request: &Request, config: &Config, directory: &dyn Directory) -> Option<BootFile> {
    let machine = directory.machine(request.mac);
    boot_file(request.client, request.mac, machine.as_ref(), || directory.boot(request.mac), config)
}
