//! What the tests of the root's sources share: a root, and servers of it.

use std::{
    io::{BufRead, BufReader, Write},
    net::TcpListener,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use crate::{
    server::agent,
    source::Source,
    verity::{self, BLOCK, Shape},
};

/// Serves `body` by ranges. `cut` connections end after `cut_after` bytes of their body.
pub fn serve(body: Vec<u8>, cut: usize, cut_after: usize) -> (String, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/root.erofs", listener.local_addr().unwrap());
    let served = Arc::new(AtomicUsize::new(0));
    let count = served.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut reader = BufReader::new(stream.try_clone().unwrap());
            let mut range = None;
            let mut line = String::new();
            while reader.read_line(&mut line).is_ok_and(|n| n > 2) {
                if let Some(value) = line.to_ascii_lowercase().trim().strip_prefix("range: bytes=") {
                    let (from, to) = value.split_once('-').unwrap();
                    range = Some((from.parse::<usize>().unwrap(), to.parse::<usize>().unwrap()));
                }
                line.clear();
            }
            let Some((from, to)) = range else { continue };
            let part = body.get(from..=to).unwrap_or_default();
            let head = format!(
                "HTTP/1.1 206 Partial Content\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
                to - from + 1
            );
            let nth = count.fetch_add(1, Ordering::SeqCst);
            let end = if nth < cut { cut_after.min(part.len()) } else { part.len() };
            let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&part[..end]));
        }
    });
    (url, served)
}

/// A source that is patient for milliseconds.
pub fn source(urls: Vec<String>) -> Source {
    Source { agent: agent(), urls, current: AtomicUsize::new(0), pause: Duration::from_millis(1), workers: 2 }
}

/// A root with its tree, and its shape.
pub fn image(blocks: usize) -> (Vec<u8>, Shape) {
    let data: Vec<u8> = (0..blocks * BLOCK).map(|i| (i % 253) as u8 ^ (i / BLOCK) as u8).collect();
    let (tree, root_hash) = verity::build(&data, &[1]);
    let shape = Shape::new(&root_hash, "01", data.len() as u64, 4096).unwrap();
    ([data, tree].concat(), shape)
}
