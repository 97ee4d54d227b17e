//! What the switch and the power button read of an Ethernet frame. Every byte is taken for hostile.

use labshift_model::MacAddr;

/// Wake-on-LAN's own EtherType.
const WAKE_ON_LAN: u16 = 0x0842;
/// EtherType of IPv4.
const IPV4: u16 = 0x0800;
/// IP protocol number of UDP.
const UDP: u8 = 17;

/// Destination and source; `None` for a runt.
pub fn addresses(frame: &[u8]) -> Option<(MacAddr, MacAddr)> {
    let destination: [u8; 6] = frame.get(..6)?.try_into().ok()?;
    let source: [u8; 6] = frame.get(6..12)?.try_into().ok()?;
    Some((MacAddr(destination), MacAddr(source)))
}

/// Broadcast or multicast.
pub fn is_group(mac: MacAddr) -> bool {
    mac.0[0] & 1 == 1
}

/// The machine that a magic packet wakes: six bytes of `ff`, then its address sixteen times, anywhere in an
/// EtherType 0x0842 frame or in a UDP datagram to any port (AMD publication 20213).
pub fn magic_packet(frame: &[u8]) -> Option<MacAddr> {
    let ether_type = u16::from_be_bytes(frame.get(12..14)?.try_into().ok()?);
    let payload = frame.get(14..)?;
    let haystack = match ether_type {
        WAKE_ON_LAN => payload,
        IPV4 => {
            let header = usize::from(payload.first()? & 0x0f) * 4;
            let is_udp = payload.first()? >> 4 == 4 && header >= 20 && *payload.get(9)? == UDP;
            payload.get(header + 8..).filter(|_| is_udp)?
        }
        _ => return None,
    };
    haystack.windows(102).find_map(|window| {
        let (sync, copies) = window.split_at(6);
        let mac: [u8; 6] = copies.get(..6)?.try_into().ok()?;
        (sync == [0xff; 6] && copies.chunks(6).all(|c| c == mac)).then_some(MacAddr(mac))
    })
}

/// A magic packet for `mac` as an EtherType 0x0842 broadcast frame from `source`.
pub fn magic_frame(mac: MacAddr, source: MacAddr) -> Vec<u8> {
    let mut frame = vec![0xff; 6];
    frame.extend(source.0);
    frame.extend(WAKE_ON_LAN.to_be_bytes());
    frame.extend([0xff; 6]);
    frame.extend(mac.0.repeat(16));
    frame
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: MacAddr = MacAddr([0x52, 0x54, 0, 1, 2, 3]);
    const SERVER: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);

    fn udp(payload: &[u8]) -> Vec<u8> {
        let mut frame = [vec![0xff; 6], SERVER.0.to_vec(), IPV4.to_be_bytes().to_vec()].concat();
        let mut ip = vec![0u8; 20];
        ip[0] = 0x45;
        ip[9] = UDP;
        frame.extend(ip);
        frame.extend([0; 8]);
        frame.extend(payload);
        frame
    }

    #[test]
    fn both_means_wake_their_machine_only() {
        let frame = magic_frame(MAC, SERVER);
        assert_eq!(magic_packet(&frame), Some(MAC));
        assert_eq!(magic_packet(&udp(&frame[14..])), Some(MAC));
        assert_eq!(magic_packet(&udp(&[&[0u8; 5], &frame[14..], &[9u8; 6]].concat())), Some(MAC));
    }

    #[test]
    fn anything_less_wakes_nobody() {
        let good = udp(&magic_frame(MAC, SERVER)[14..]);
        for length in 0..good.len() {
            assert_eq!(magic_packet(&good[..length]), None, "{length}");
        }
        for at in 42..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 1;
            assert_eq!(magic_packet(&bad), None, "{at}");
        }
        let mut tcp = good;
        tcp[14 + 9] = 6;
        assert_eq!(magic_packet(&tcp), None);
    }
}
