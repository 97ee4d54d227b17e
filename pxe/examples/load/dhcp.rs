//! A room that wakes at once: every machine sends DISCOVER in the same moment, takes the first offer, and asks again after a second
//! without an answer. Like perfdhcp, this program speaks as a relay; unlike it, it waits for nothing but answers.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use dhcproto::{
    Decodable, Decoder, Encodable,
    v4::{DhcpOption, Flags, Message, MessageType, OptionCode},
};
use labshift_model::MacAddr;
use nix::sys::socket::{setsockopt, sockopt::RcvBufForce};

/// A machine asks again after so long.
const AGAIN: Duration = Duration::from_secs(1);

/// What one machine has got so far.
enum Machine {
    /// Nothing.
    Waits,
    /// An offer.
    Offered(Ipv4Addr, Ipv4Addr),
    /// Its lease, after so many seconds.
    Done(f64),
}

/// The same moment for so many batch guests' cards. Prints how long the last and the median one waited, and the NAKs.
pub fn avalanche(server: SocketAddr, own: Ipv4Addr, count: usize) -> Result<()> {
    let socket = UdpSocket::bind(SocketAddrV4::new(own, 67)).context("opening port 67")?;
    // All of them answered at once must not be lost on this side.
    setsockopt(&socket, RcvBufForce, &(8 << 20)).context("making room for replies")?;
    let cards = (1..=count).map(|n| MacAddr::for_guest(&format!("work-{n}")));
    let mut machines: BTreeMap<MacAddr, Machine> = cards.map(|mac| (mac, Machine::Waits)).collect();
    let (begin, mut naks, mut sent, mut again) = (Instant::now(), 0, 0, 0);
    let mut buffer = [0; 1500];
    while machines.values().any(|m| !matches!(m, Machine::Done(_))) {
        ensure!(begin.elapsed() < super::SILENCE, "some machines got no address");
        for (mac, machine) in &machines {
            if let Some(bytes) = question(*mac, own, machine)? {
                socket.send_to(&bytes, server)?;
                sent += 1;
                again += usize::from(sent > 2 * count);
            }
        }
        let round = Instant::now();
        while let Some(left) = AGAIN.checked_sub(round.elapsed()).filter(|left| !left.is_zero()) {
            socket.set_read_timeout(Some(left))?;
            let Ok((length, _)) = socket.recv_from(&mut buffer) else { continue };
            let reply = Message::decode(&mut Decoder::new(&buffer[..length])).context("reading a reply")?;
            let mac = MacAddr(reply.chaddr().try_into().context("reading its card")?);
            let Some(machine) = machines.get_mut(&mac) else { bail!("a reply for {mac}, which did not ask") };
            match (reply.opts().msg_type(), &machine) {
                (Some(MessageType::Offer), Machine::Waits) => {
                    let Some(DhcpOption::ServerIdentifier(who)) =
                        reply.opts().get(OptionCode::ServerIdentifier)
                    else {
                        bail!("an offer without option 54")
                    };
                    *machine = Machine::Offered(reply.yiaddr(), *who);
                    if let Some(bytes) = question(mac, own, machine)? {
                        socket.send_to(&bytes, server)?;
                        sent += 1;
                    }
                }
                (Some(MessageType::Ack), Machine::Offered(..)) => {
                    *machine = Machine::Done(begin.elapsed().as_secs_f64());
                }
                (Some(MessageType::Nak), _) => {
                    naks += 1;
                    *machine = Machine::Waits;
                }
                _ => {}
            }
            if machines.values().all(|m| matches!(m, Machine::Done(_))) {
                break;
            }
        }
    }
    let mut waits: Vec<f64> =
        machines.values().map(|m| if let Machine::Done(at) = m { *at } else { f64::MAX }).collect();
    waits.sort_by(f64::total_cmp);
    println!("{:.4} {:.4} {naks} {again}", waits[count - 1], waits[count / 2]);
    Ok(())
}

fn question(mac: MacAddr, relay: Ipv4Addr, machine: &Machine) -> Result<Option<Vec<u8>>> {
    let any = Ipv4Addr::UNSPECIFIED;
    let xid = u32::from_be_bytes([mac.0[2], mac.0[3], mac.0[4], mac.0[5]]);
    let mut message = Message::new_with_id(xid, any, any, any, relay, &mac.0);
    message.set_flags(Flags::default()).set_hops(1);
    match machine {
        Machine::Done(_) => return Ok(None),
        Machine::Waits => {
            message.opts_mut().insert(DhcpOption::MessageType(MessageType::Discover));
        }
        Machine::Offered(address, server) => {
            message.opts_mut().insert(DhcpOption::MessageType(MessageType::Request));
            message.opts_mut().insert(DhcpOption::RequestedIpAddress(*address));
            message.opts_mut().insert(DhcpOption::ServerIdentifier(*server));
        }
    }
    Ok(Some(message.to_vec()?))
}
