//! One read by TFTP (RFC 1350, 2347, 2348, 7440) as firmware does it; the file is thrown away.

use std::{
    net::{Ipv4Addr, SocketAddr, UdpSocket},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};

/// Silence after which the last packet is sent again.
const AGAIN: Duration = Duration::from_secs(1);

/// Bytes of the file.
pub fn fetch(server: SocketAddr, path: &str, block: usize, window: u64) -> Result<u64> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).context("opening a port")?;
    socket.set_read_timeout(Some(AGAIN))?;
    let mut last = b"\x00\x01".to_vec();
    let mut words = vec![path.to_owned(), "octet".into(), "blksize".into(), block.to_string()];
    if window > 1 {
        words.extend(["windowsize".to_owned(), window.to_string()]);
    }
    for word in words {
        last.extend(word.as_bytes());
        last.push(0);
    }
    socket.send_to(&last, server)?;
    let (mut to, mut heard) = (server, Instant::now());
    let (mut got, mut next, mut fresh, mut told_gap) = (0u64, 1u64, 0, false);
    let (mut block, mut window) = (block, window);
    let mut buffer = vec![0; 70_000];
    loop {
        let (length, from) = match socket.recv_from(&mut buffer) {
            Ok(received) => received,
            Err(_) if heard.elapsed() < super::SILENCE => {
                socket.send_to(&last, to)?;
                continue;
            }
            Err(e) => return Err(e).context(format!("no answer after {got} bytes")),
        };
        heard = Instant::now();
        match buffer[..length] {
            [0, 6, ref words @ ..] => {
                to = from;
                let words: Vec<&[u8]> = words.split(|b| *b == 0).collect();
                let granted = |name: &[u8]| {
                    let at = words.iter().position(|w| w.eq_ignore_ascii_case(name))?;
                    std::str::from_utf8(words.get(at + 1)?).ok()?.parse::<u64>().ok()
                };
                block = granted(b"blksize").unwrap_or(512) as usize;
                let asked = std::mem::replace(&mut window, granted(b"windowsize").unwrap_or(1));
                ensure!(window == asked, "the server grants a window of {window}, not {asked}");
                last = vec![0, 4, 0, 0];
                socket.send_to(&last, to)?;
            }
            [0, 3, high, low, ref bytes @ ..] => {
                to = from;
                if u16::from_be_bytes([high, low]) == next as u16 {
                    (got, next, fresh, told_gap) = (got + bytes.len() as u64, next + 1, fresh + 1, false);
                    let end = bytes.len() < block;
                    if fresh >= window || end {
                        fresh = 0;
                        last = [&[0, 4][..], &((next - 1) as u16).to_be_bytes()].concat();
                        socket.send_to(&last, to)?;
                    }
                    if end {
                        return Ok(got);
                    }
                } else if !told_gap {
                    (fresh, told_gap) = (0, true);
                    last = [&[0, 4][..], &((next - 1) as u16).to_be_bytes()].concat();
                    socket.send_to(&last, to)?;
                }
            }
            [0, 5, ..] => bail!("the server says: {}", String::from_utf8_lossy(&buffer[4..length])),
            _ => {}
        }
    }
}
