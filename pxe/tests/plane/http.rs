//! HTTP over a real listener on the loopback.

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::Path,
    sync::Arc,
    time::Duration,
};

use jiff::{SignedDuration, Timestamp};

use labshift_model::{
    boot::{BootPlaneEvent, Disbelieved, SignedAnswer},
    manifest::trusted_keys,
};
use labshift_pxe::{
    Config,
    dhcp::socket::{Table, now},
    http::{Front, router},
};
use reqwest::{Client, StatusCode, header};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::timeout,
};

use crate::fake::{DISK, FIXED, GUEST, NEW, Notes, POOLED, REFUSED, STRANGER, Site, publish};

const GUARD: Duration = Duration::from_secs(60);

struct Running {
    address: SocketAddr,
    base: String,
    notes: Notes,
    generation: String,
    content: Vec<u8>,
    table: Table,
    _store: tempfile::TempDir,
}

async fn start() -> Running {
    let store = tempfile::tempdir().expect("a directory");
    let content: Vec<u8> = (0..5_000_000u32).map(|n| (n.wrapping_mul(2654435761) >> 24) as u8).collect();
    let generation = publish(store.path(), &[("vmlinuz", b"kernel"), ("root.erofs", &content)]);
    let state = Path::new("/nowhere");
    let config = Config::new("lo", [127, 0, 0, 1].into(), 8, store.path().into(), state.into());
    let (notes, site) =
        (Notes::default(), Site { generation: generation.clone(), arguments: "debug".into() });
    let table = Table::default();
    now(&table).bind(FIXED, Ipv4Addr::LOCALHOST, 3600, Timestamp::now());
    let (config, site, journal) = (Arc::new(config), Arc::new(site), Arc::new(notes.clone()));
    let front = Front::new(config.clone(), site.clone(), journal.clone(), table.clone());
    let routes = router(config, site, journal, table.clone());
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    tokio::spawn(front.serve(listener, routes));
    Running { address, base: format!("http://{address}"), notes, generation, content, table, _store: store }
}

impl Running {
    fn root(&self) -> String {
        format!("{}/images/lab/{}/root.erofs", self.base, self.generation)
    }

    async fn text(&self, path: &str) -> (StatusCode, String) {
        let response = reqwest::get(format!("{}{path}", self.base)).await.expect("an answer");
        (response.status(), response.text().await.expect("text"))
    }
}

#[tokio::test]
async fn case_25_a_broken_download_goes_on_where_it_was() {
    let running = start().await;
    let whole = reqwest::get(running.root()).await.expect("an answer");
    let tag = whole.headers()[header::ETAG].clone();
    assert_eq!(whole.headers()[header::CONTENT_LENGTH], "5000000");
    assert!(whole.bytes().await.expect("the file") == running.content);
    let client = Client::new();
    for (range, start, end) in
        [("bytes=4000000-", 4_000_000, 5_000_000), ("bytes=0-0", 0, 1), ("bytes=-7", 4_999_993, 5_000_000)]
    {
        let request = client.get(running.root()).header(header::RANGE, range).header(header::IF_RANGE, &tag);
        let part = request.send().await.expect("an answer");
        assert_eq!(part.status(), StatusCode::PARTIAL_CONTENT);
        assert_eq!(part.headers()[header::CONTENT_RANGE], format!("bytes {start}-{}/5000000", end - 1));
        assert_eq!(part.headers()[header::CONTENT_LENGTH], (end - start).to_string());
        assert!(part.bytes().await.expect("the part") == running.content[start..end]);
    }
    let changed =
        client.get(running.root()).header(header::RANGE, "bytes=9-").header(header::IF_RANGE, "\"old\"");
    let changed = changed.send().await.expect("an answer");
    assert_eq!(changed.status(), StatusCode::OK);
    assert!(changed.bytes().await.expect("the file") == running.content);
    let beyond =
        client.get(running.root()).header(header::RANGE, "bytes=5000000-").send().await.expect("an answer");
    assert_eq!(beyond.status(), StatusCode::RANGE_NOT_SATISFIABLE);
    assert_eq!(beyond.headers()[header::CONTENT_RANGE], "bytes */5000000");
    let known =
        client.get(running.root()).header(header::IF_NONE_MATCH, &tag).send().await.expect("an answer");
    assert_eq!(known.status(), StatusCode::NOT_MODIFIED);
    // The journal hears of it a moment after the client has its last byte.
    let notes = running.notes.wait_for_count(5, |e| matches!(e, BootPlaneEvent::Sent { .. })).await;
    assert_eq!(notes.len(), 5, "{notes:?}");
}

/// By hand, because a client library would tidy up what firmware does.
#[tokio::test]
async fn case_22_23_24_a_plain_client_keeps_its_connection_after_head() {
    let running = start().await;
    let mut stream = TcpStream::connect(running.address).await.expect("connecting");
    let path = format!("/images/lab/{}/vmlinuz", running.generation);
    let mut talk = async |request: String, end: &[u8]| {
        stream.write_all(request.as_bytes()).await.expect("sending");
        let mut answer = vec![];
        timeout(GUARD, async {
            while !answer.ends_with(end) {
                let mut byte = [0];
                stream.read_exact(&mut byte).await.expect("receiving");
                answer.push(byte[0]);
            }
        })
        .await
        .expect("no hang");
        String::from_utf8(answer).expect("text")
    };
    let head = talk(format!("HEAD {path} HTTP/1.1\r\nHost: 10.77.0.1\r\n\r\n"), b"\r\n\r\n").await;
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n") && head.contains("content-length: 6\r\n"), "{head}");
    assert!(!head.contains("connection: close") && head.lines().all(|l| !l.ends_with(": ")), "{head}");
    let get = talk(format!("GET {path} HTTP/1.1\r\nHost: anything.example\r\n\r\n"), b"kernel").await;
    assert!(get.starts_with("HTTP/1.1 200 OK\r\n"), "{get}");
    let none = talk(
        "GET /images/lab/x/y HTTP/1.1\r\nHost: a\r\n\r\n".to_owned(),
        b"no published file /images/lab/x/y\n",
    )
    .await;
    assert!(none.starts_with("HTTP/1.1 404") && none.contains("content-length:"), "{none}");
}

#[tokio::test]
async fn case_21_24_odd_paths_are_not_found_and_never_redirected() {
    let running = start().await;
    for path in
        ["/images/", "/boot/script.ipxe/", "/images/lab/../../secret", "/images/lab/x/%2e%2e%2fsecret"]
    {
        let mut stream = TcpStream::connect(running.address).await.expect("connecting");
        let request = format!("GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.expect("sending");
        let mut answer = String::new();
        timeout(GUARD, stream.read_to_string(&mut answer)).await.expect("no hang").expect("receiving");
        assert!(answer.starts_with("HTTP/1.1 404"), "{path}: {answer}");
        assert!(answer.contains("content-length:"), "{path}: {answer}");
    }
}

#[tokio::test]
async fn a_client_that_goes_away_is_noted_and_one_that_has_all_is_not() {
    let running = start().await;
    let mut stream = TcpStream::connect(running.address).await.expect("connecting");
    let request = format!("GET /images/lab/{}/root.erofs HTTP/1.1\r\nHost: a\r\n\r\n", running.generation);
    stream.write_all(request.as_bytes()).await.expect("sending");
    let mut some = [0; 1000];
    stream.read_exact(&mut some).await.expect("receiving");
    drop(stream);
    let broken = running.notes.wait_for(|e| matches!(e, BootPlaneEvent::Broken { .. }));
    let broken = timeout(GUARD, broken).await.expect("no hang");
    let BootPlaneEvent::Broken { reason, .. } = broken else { panic!("{broken:?}") };
    assert!(reason.contains("went away"), "{reason}");
}

/// EDK2 has the file and resets the connection instead of closing it.
#[tokio::test]
async fn case_23_a_reset_after_the_last_byte_is_no_failed_transfer() {
    let running = start().await;
    for _ in 0..3 {
        let mut stream = TcpStream::connect(running.address).await.expect("connecting");
        let path = format!("/images/lab/{}/vmlinuz", running.generation);
        let request = format!("GET {path} HTTP/1.1\r\nHost: 10.77.0.1\r\n\r\n");
        stream.write_all(request.as_bytes()).await.expect("sending");
        let mut answer = vec![];
        while !answer.ends_with(b"kernel") {
            let mut some = [0; 512];
            let length = stream.read(&mut some).await.expect("receiving");
            assert_ne!(length, 0);
            answer.extend(&some[..length]);
        }
        nix::sys::socket::setsockopt(
            &stream,
            nix::sys::socket::sockopt::Linger,
            &nix::libc::linger { l_onoff: 1, l_linger: 0 },
        )
        .expect("a reset at the end");
        drop(stream);
    }
    let notes = running.notes.wait_for_count(3, |_| true).await;
    assert!(notes.iter().all(|e| matches!(e, BootPlaneEvent::Sent { bytes: 6, .. })), "{notes:?}");
}

/// Else the image that follows would go the slow way, over the connection that the router has.
#[tokio::test]
async fn a_connection_ends_with_its_script() {
    let running = start().await;
    let mut stream = TcpStream::connect(running.address).await.expect("connecting");
    let request = format!("GET /boot/script.ipxe?mac={FIXED} HTTP/1.1\r\nHost: 10.77.0.1\r\n\r\n");
    stream.write_all(request.as_bytes()).await.expect("sending");
    let mut answer = String::new();
    timeout(GUARD, stream.read_to_string(&mut answer)).await.expect("no hang").expect("receiving");
    assert!(answer.contains("\r\nconnection: close\r\n") && answer.contains("#!ipxe\n"), "{answer}");
}

#[tokio::test]
async fn scripts_by_machine() {
    let running = start().await;
    let script = async |mac| running.text(&format!("/boot/script.ipxe?mac={mac}")).await;
    let (status, text) = script(FIXED).await;
    assert_eq!(status, StatusCode::OK);
    let kernel = format!(
        "kernel http://127.0.0.1:8080/images/lab/{}/vmlinuz initrd=initrd.img quiet debug \
         labshift.server=http://127.0.0.1:8080 labshift.mac={FIXED} labshift.roothash={} || goto failed",
        running.generation,
        "ab".repeat(32)
    );
    assert!(text.contains(&kernel), "{text}");
    assert!(script(REFUSED).await.1.contains("the room is closed"));
    assert!(script(DISK).await.1.contains("sanboot"));
    assert_eq!(running.text("/boot/own-disk").await.0, StatusCode::NOT_FOUND);
    assert_eq!(script(GUEST).await.0, StatusCode::NOT_FOUND);
    assert_eq!(script(STRANGER).await.0, StatusCode::NOT_FOUND);
    let (status, text) = script(NEW).await;
    assert!(status == StatusCode::OK && text.contains(&format!("labshift: {NEW} boots lab")), "{text}");
    assert_eq!(running.text("/boot/script.ipxe?mac=nonsense").await.0, StatusCode::BAD_REQUEST);
    let (status, text) = running.text("/boot/script.ipxe").await;
    assert!(status == StatusCode::OK && text.contains("script.ipxe?mac=${netX/mac}"), "{text}");
    assert_eq!(running.text("/v1/boot/answer").await.0, StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn init_gets_its_answer_or_a_sentence() {
    let running = start().await;
    let (status, text) = running.text(&format!("/v1/boot/answer?mac={FIXED}&nonce=abc1")).await;
    let signed: SignedAnswer = serde_json::from_str(&text).expect("an answer");
    let keys = trusted_keys(&signed.key);
    let answer = signed.open(&keys, "abc1").expect("signed for this question");
    assert_eq!(signed.open(&keys, "abc2"), Err(Disbelieved::Recorded));
    assert_eq!(signed.open(&[], "abc1"), Err(Disbelieved::UnknownKey(signed.key.clone())));
    let moved = signed.answer.replacen("lab-01", "lab-02", 1);
    let moved = SignedAnswer { answer: moved, ..signed.clone() };
    assert_eq!(moved.open(&keys, "abc1"), Err(Disbelieved::BadSignature));
    let odd = running.text(&format!("/v1/boot/answer?mac={FIXED}&nonce={}", "a".repeat(65))).await;
    assert_eq!(odd.0, StatusCode::BAD_REQUEST);
    assert_eq!((status, answer.attempt), (StatusCode::OK, 3));
    now(&running.table).bind(DISK, Ipv4Addr::LOCALHOST, 3600, Timestamp::now());
    let (status, text) = running.text(&format!("/v1/boot/answer?mac={DISK}")).await;
    assert_eq!(
        (status, &text[..]),
        (StatusCode::FORBIDDEN, "02:00:00:00:00:05 may not boot: the room is closed\n")
    );
    now(&running.table).bind(NEW, Ipv4Addr::LOCALHOST, 3600, Timestamp::now());
    let (status, text) = running.text(&format!("/v1/boot/answer?mac={NEW}")).await;
    assert_eq!((status, &text[..]), (StatusCode::ACCEPTED, "02:00:00:00:00:62 is no machine of this site\n"));
}

/// The answer carries the node's secret: nobody gets it by naming another machine's card.
#[tokio::test]
async fn an_answer_goes_only_to_the_address_that_the_machine_has() {
    let running = start().await;
    let answer = async || running.text(&format!("/v1/boot/answer?mac={FIXED}")).await;
    assert_eq!(answer().await.0, StatusCode::OK);
    let before = Timestamp::now() - SignedDuration::from_hours(2);
    now(&running.table).bind(POOLED, Ipv4Addr::LOCALHOST, 3600, before);
    let (status, text) = answer().await;
    assert_eq!(status, StatusCode::FORBIDDEN, "the lease is over");
    assert!(text.contains("127.0.0.1 is not leased by this server"), "{text}");
    now(&running.table).bind(POOLED, Ipv4Addr::LOCALHOST, 3600, Timestamp::now());
    let (status, text) = answer().await;
    assert_eq!(status, StatusCode::FORBIDDEN);
    assert!(text.contains("127.0.0.1 is the address of another machine"), "{text}");
}

#[tokio::test]
async fn reports_are_journalled_within_limits() {
    let running = start().await;
    let client = Client::new();
    let post = async |body: String| {
        let url = format!("{}/v1/boot/report", running.base);
        client.post(url).body(body).send().await.expect("an answer").status()
    };
    let report =
        format!(r#"{{"mac":"{FIXED}","attempt":3,"stages":[{{"stage":"link","at_ms":1200}}],"log":"up"}}"#);
    assert_eq!(post(report.clone()).await, StatusCode::NO_CONTENT);
    let seen = running.notes.all();
    assert!(
        matches!(&seen[0], BootPlaneEvent::Report { report, .. } if report.mac == FIXED && report.log == "up")
    );
    for (bad, wanted) in [
        ("{}".to_owned(), StatusCode::BAD_REQUEST),
        ("[".repeat(200_000), StatusCode::BAD_REQUEST),
        (report.replace("attempt", "attempts"), StatusCode::BAD_REQUEST),
        (report.replace("up", &"x".repeat(70_000)), StatusCode::PAYLOAD_TOO_LARGE),
        (report.replace("up", &"x".repeat(300_000)), StatusCode::PAYLOAD_TOO_LARGE),
    ] {
        assert_eq!(post(bad).await, wanted);
    }
    let mut answers = vec![];
    for _ in 0..60 {
        answers.push(post(report.clone()).await);
    }
    assert_eq!(answers.last(), Some(&StatusCode::TOO_MANY_REQUESTS));
}
