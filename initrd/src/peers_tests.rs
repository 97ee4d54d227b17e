use std::{
    io::{BufRead, BufReader, Write},
    net::{TcpListener, TcpStream},
};

use labshift_model::boot_order::BootOrder;

use super::*;
use crate::{
    blocks::{CHUNK, Policy},
    fixture::{image, serve, source},
    verity::Shape,
};

/// Every address of 127.0.0.0/8 is this machine: a node each, all with the same port. Connections come from 127.0.0.1.
fn address(n: u8) -> Ipv4Addr {
    Ipv4Addr::new(127, 0, 0, n)
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn node(n: u8, others: u8, port: u16, server: &str, shape: &Shape) -> Arc<Blocks> {
    let named: Vec<_> = (1..=others).map(address).collect();
    let swarm = Swarm::new(address(n), &named, port, shape.root_hash());
    Blocks::open(source(vec![server.to_owned()]), shape.clone(), Policy::Full, None).unwrap().among(swarm)
}

fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !done() {
        assert!(begin.elapsed() < Duration::from_secs(900), "never: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn from_server(blocks: &Blocks) -> u64 {
    blocks.fetched() - blocks.from_peers()
}

fn whole(blocks: &Blocks, body: &[u8]) {
    let mut all = vec![0; body.len()];
    blocks.read(0, &mut all).unwrap();
    assert!(all == body);
    assert!(blocks.fault().is_none());
}

#[test]
fn who_comes_late_takes_all_from_a_peer() {
    let (body, shape) = image(3205);
    let (url, served) = serve(body.clone(), 0, 0);
    let port = free_port();
    let first = node(1, 2, port, &url, &shape);
    assert!(first.fetch_rest(Duration::ZERO));
    let tree = body.len() as u64 - first.data_size();
    let before = served.load(Ordering::SeqCst);
    let second = node(2, 2, port, &url, &shape);
    wait_until("the first answers", || second.among_how_many() == 1);
    whole(&second, &body);
    assert_eq!((from_server(&second), served.load(Ordering::SeqCst)), (tree, before + 1));
    assert_eq!(second.from_peers(), second.data_size());
    assert!(second.shares().contains("0 MiB from the server, 12 MiB from 1 peers"), "{}", second.shares());
    wait_until("the first was greeted", || first.among_how_many() == 1);
    second.abandon();
    assert!(TcpStream::connect((address(2), port)).is_err(), "the door is shut");
}

/// Nobody holds anything when all begin: each brings its part, and all have everything.
#[test]
fn a_room_that_starts_at_once_asks_the_server_for_little_more_than_one() {
    let (body, shape) = image(3200);
    let (url, _) = serve(body.clone(), 0, 0);
    let port = free_port();
    let nodes: Vec<_> = (1..=6).map(|n| node(n, 6, port, &url, &shape)).collect();
    wait_until("all know all", || nodes.iter().all(|n| n.among_how_many() == 5));
    let order = BootOrder::parse("1600+800,0+800").unwrap();
    std::thread::scope(|scope| {
        for node in &nodes {
            scope.spawn(|| {
                node.follow(&order);
                std::thread::scope(|s| {
                    s.spawn(|| node.prefetch_own());
                    s.spawn(|| node.prefetch());
                    s.spawn(|| node.read(1_700 * 4096, &mut [0; 9000]).unwrap());
                });
                assert!(node.fetch_rest(Duration::ZERO));
            });
        }
    });
    nodes.iter().for_each(|node| whole(node, &body));
    let sent: u64 = nodes.iter().map(|n| from_server(n)).sum();
    assert!(sent < 2 * body.len() as u64, "{sent} bytes from the server, the root has {}", body.len());
    let (given, taken): (u64, u64) =
        (nodes.iter().map(|n| n.given()).sum(), nodes.iter().map(|n| n.from_peers()).sum());
    assert!(given >= taken && taken > 4 * body.len() as u64, "{given} {taken}");
}

/// How a false peer answers a request for so many bytes.
type Act = fn(&mut TcpStream, usize);

/// A machine that says it holds everything. `act` answers requests for chunks.
fn false_peer(n: u8, port: u16, shape: &Shape, act: Act) {
    let listener = TcpListener::bind((address(n), port)).unwrap();
    let bits = vec![0xff; Held::bytes_of(shape.data_size().div_ceil(CHUNK))];
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let (mut stream, bits) = (stream.unwrap(), bits.clone());
            std::thread::spawn(move || {
                let mut reader = BufReader::new(stream.try_clone().unwrap());
                loop {
                    let (mut held, mut length) = (false, 0);
                    let mut line = String::new();
                    while reader.read_line(&mut line).is_ok_and(|n| n > 2) {
                        held |= line.contains("/held/");
                        if let Some((from, to)) =
                            line.trim().strip_prefix("range: bytes=").and_then(|r| r.split_once('-'))
                        {
                            length = to.parse::<usize>().unwrap() - from.parse::<usize>().unwrap() + 1;
                        }
                        line.clear();
                    }
                    if !held {
                        act(&mut stream, length);
                        return;
                    }
                    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", bits.len());
                    if stream.write_all(&[head.as_bytes(), &bits].concat()).is_err() {
                        return;
                    }
                }
            });
        }
    });
}

fn begin(stream: &mut TcpStream, length: usize, sent: usize) {
    let head = format!("HTTP/1.1 206 Partial Content\r\nContent-Length: {length}\r\n\r\n");
    let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&vec![7; sent]));
}

/// One that lies, one that never goes on, one that goes away in the middle: the root is whole all the same, and comes from the server.
#[test]
fn peers_that_lie_stall_or_vanish_cost_time_only() {
    let (body, shape) = image(1300);
    let acts: [(u8, Act); 3] = [
        (12, |stream, length| begin(stream, length, length)),
        (13, |stream, length| {
            begin(stream, length, 10);
            let _ = stream.read(&mut [0]);
        }),
        (14, |stream, length| begin(stream, length, length / 2)),
    ];
    for (n, act) in acts {
        let port = free_port();
        false_peer(n, port, &shape, act);
        let (url, _) = serve(body.clone(), 0, 0);
        let swarm = Swarm::new(address(1), &[address(n)], port, shape.root_hash());
        let blocks = Blocks::open(source(vec![url]), shape.clone(), Policy::Full, None).unwrap();
        let blocks = blocks.among(swarm.clone());
        wait_until("it answers", || swarm.size() == 1);
        whole(&blocks, &body);
        assert_eq!((from_server(&blocks), blocks.from_peers()), (body.len() as u64, 0), "{n}");
        assert_eq!(swarm.size(), 0, "{n} is left alone");
        assert_eq!(swarm.circle().may_greet(address(n)), n != 12, "who lied is never asked again");
    }
}

#[test]
fn nothing_is_given_but_whole_chunks_to_machines_that_were_named() {
    let (body, shape) = image(700);
    let (url, _) = serve(body.clone(), 0, 0);
    let port = free_port();
    let blocks = node(21, 1, port, &url, &shape);
    let ask = |path: String, range: &str| {
        let mut stream = TcpStream::connect((address(21), port)).unwrap();
        let text = format!("GET {path} HTTP/1.1\r\nRange: bytes={range}\r\nConnection: close\r\n\r\n");
        stream.write_all(text.as_bytes()).unwrap();
        let mut answer = vec![];
        stream.read_to_end(&mut answer).unwrap();
        answer
    };
    let root = format!("/root/{}", shape.root_hash());
    let answer = ask(root.clone(), "131072-262143");
    assert!(answer.starts_with(b"HTTP/1.1 206 ") && answer.ends_with(&body[131_072..262_144]));
    for (path, range, status) in [
        (root.clone(), "0-1000".to_owned(), "416"),
        (root.clone(), format!("{}-{}", shape.data_size(), body.len() - 1), "416"),
        ("/root/00".to_owned(), "0-131071".to_owned(), "404"),
        ("/etc/passwd".to_owned(), "0-131071".to_owned(), "404"),
    ] {
        let answer = String::from_utf8(ask(path, &range)).unwrap();
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{answer}");
    }
    assert_eq!(blocks.given(), CHUNK);
    // The server named nobody but 127.0.0.1 to the one above, and not even that one to this: it closes without a word.
    let port = free_port();
    let _closed = node(22, 0, port, &url, &shape);
    let mut stream = TcpStream::connect((address(22), port)).unwrap();
    let _ = stream.write_all(b"GET / HTTP/1.1\r\n\r\n");
    let mut answer = vec![];
    let _ = stream.read_to_end(&mut answer);
    assert!(answer.is_empty());
}

/// A lazy root gives what it holds, and fetches nothing for others.
#[test]
fn a_lazy_root_gives_what_it_holds() {
    let (body, shape) = image(700);
    let (url, _) = serve(body.clone(), 0, 0);
    let swarm = Swarm::new(address(31), &[address(32)], free_port(), shape.root_hash());
    let blocks = Blocks::open(source(vec![url]), shape, Policy::Lazy, None).unwrap().among(swarm);
    assert!(blocks.give(0, 1).is_none());
    blocks.read(0, &mut [0; 10]).unwrap();
    assert_eq!(blocks.give(0, 1).unwrap()[0][..], body[..CHUNK as usize]);
    assert_eq!(blocks.held().count(), 16, "what is fetched together");
}
