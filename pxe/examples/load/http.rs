//! One GET, read and thrown away.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpStream},
};

use anyhow::{Context, Result, ensure};

/// Bytes of the body.
pub fn fetch(server: SocketAddr, path: &str) -> Result<u64> {
    let mut stream = TcpStream::connect(server).context("connecting")?;
    stream.set_read_timeout(Some(super::SILENCE))?;
    write!(stream, "GET /{path} HTTP/1.1\r\nHost: {server}\r\nConnection: close\r\n\r\n")?;
    let mut reader = BufReader::with_capacity(1 << 18, stream);
    let mut line = String::new();
    reader.read_line(&mut line).context("reading the status")?;
    ensure!(line.starts_with("HTTP/1.1 200"), "the server says: {line}");
    let mut length = None;
    loop {
        line.clear();
        reader.read_line(&mut line).context("reading a header")?;
        match line.trim().to_ascii_lowercase().split_once(':') {
            Some(("content-length", value)) => length = Some(value.trim().parse::<u64>()?),
            Some(_) => {}
            None => break,
        }
    }
    let length = length.context("no Content-Length")?;
    let mut got = reader.buffer().len() as u64;
    let mut stream = reader.into_inner();
    let mut buffer = vec![0; 1 << 18];
    while got < length {
        let n = stream.read(&mut buffer).context("reading the body")?;
        ensure!(n > 0, "the body ends after {got} of {length} bytes");
        got += n as u64;
    }
    ensure!(got == length, "{got} bytes, announced were {length}");
    Ok(got)
}
