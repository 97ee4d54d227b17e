//! Signatures against Amazon's published examples, and pushes to a service that speaks as S3 does.

use std::{
    io::{BufRead, BufReader, Write},
    net::{TcpListener, TcpStream},
    sync::{Arc, Mutex},
};

use super::*;
use crate::{
    build,
    progress::Silent,
    push::push,
    store::Store,
    world::{RECIPE, World},
};

fn credentials() -> Credentials {
    Credentials {
        id: "AKIAIOSFODNN7EXAMPLE".into(),
        secret: "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY".into(),
        session: None,
    }
}

fn headers(list: &[(&str, &str)]) -> BTreeMap<String, String> {
    list.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect()
}

/// The examples of Amazon's "Signature Calculations for the Authorization Header: Transferring Payload in a Single Chunk".
#[test]
fn agrees_with_the_published_examples() {
    let time = "20130524T000000Z";
    let empty = sha256(b"");
    let get = headers(&[
        ("host", "examplebucket.s3.amazonaws.com"),
        ("range", "bytes=0-9"),
        ("x-amz-content-sha256", &empty),
        ("x-amz-date", time),
    ]);
    let found = authorization(("GET", "/test.txt", ""), &get, &empty, time, "us-east-1", &credentials());
    assert_eq!(
        found,
        "AWS4-HMAC-SHA256 Credential=AKIAIOSFODNN7EXAMPLE/20130524/us-east-1/s3/aws4_request,SignedHeaders=host;range;x-amz-content-sha256;x-amz-date,Signature=f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41"
    );
    let payload = sha256(b"Welcome to Amazon S3.");
    let put = headers(&[
        ("date", "Fri, 24 May 2013 00:00:00 GMT"),
        ("host", "examplebucket.s3.amazonaws.com"),
        ("x-amz-content-sha256", &payload),
        ("x-amz-date", time),
        ("x-amz-storage-class", "REDUCED_REDUNDANCY"),
    ]);
    let path = encoded("/test$file.text");
    let found = authorization(("PUT", &path, ""), &put, &payload, time, "us-east-1", &credentials());
    assert!(found.ends_with("98ad721746da40c64f1a55b78f14c238d841ea1380cd77a1b5971af0ece108bd"), "{found}");
}

#[test]
fn addresses() {
    let bucket = |url: &str, endpoint: Option<&str>| {
        Bucket::new(url, endpoint, "eu-central-1", credentials(), crate::push::agent(None).unwrap())
    };
    let own = bucket("s3://lab/a b/", Some("https://s3.lan:9000/")).unwrap();
    assert_eq!((own.base.as_str(), own.host.as_str()), ("https://s3.lan:9000", "s3.lan:9000"));
    assert_eq!(own.path_of("channels/lab@canary"), "/lab/a%20b/channels/lab%40canary");
    let amazon = bucket("s3://lab", None).unwrap();
    assert_eq!(amazon.host, "lab.s3.eu-central-1.amazonaws.com");
    assert_eq!(amazon.path_of("images/x"), "/images/x");
    for (url, endpoint) in [("s3://", None), ("https://x", None), ("s3://x", Some("s3.lan"))] {
        assert!(bucket(url, endpoint).is_err(), "{url}");
    }
}

/// Path, hash and parts of an upload.
type Upload = (String, String, BTreeMap<u32, Vec<u8>>);

/// What a service holds.
#[derive(Default)]
struct Held {
    /// Path to bytes and the hash that the client gave with them.
    objects: BTreeMap<String, (Vec<u8>, String)>,
    /// Uploads that are not complete.
    uploads: BTreeMap<String, Upload>,
    /// Methods and targets of all requests.
    asked: Vec<String>,
    /// The part that is refused, for a test of that.
    refused: Option<u32>,
}

/// No request brings more bytes than this.
const LIMIT: usize = 4000;

/// A service on the loopback that knows the verbs which are used here, and checks every signature and hash.
fn service() -> (String, Arc<Mutex<Held>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let held = Arc::new(Mutex::new(Held::default()));
    let shared = held.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let held = shared.clone();
            std::thread::spawn(move || while answer(&stream, &held).is_some() {});
        }
    });
    (address, held)
}

fn answer(mut stream: &TcpStream, held: &Mutex<Held>) -> Option<()> {
    let mut reader = BufReader::new(stream);
    let mut lines = vec![];
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok().filter(|n| *n > 0)?;
        if line.trim_end().is_empty() {
            break;
        }
        lines.push(line.trim_end().to_owned());
    }
    let (method, rest) = lines[0].split_once(' ').unwrap();
    let target = rest.split(' ').next().unwrap();
    let given: BTreeMap<String, String> = lines[1..]
        .iter()
        .filter_map(|l| l.split_once(": "))
        .map(|(n, v)| (n.to_lowercase(), v.into()))
        .collect();
    let length = given.get("content-length").map_or(0, |l| l.parse().unwrap());
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    let (status, extra, text) = reply(held, (method, target), &given, body);
    let content = if method == "HEAD" { "" } else { &text };
    let length = if extra.contains("Content-Length") {
        String::new()
    } else {
        format!("Content-Length: {}\r\n", text.len())
    };
    write!(stream, "HTTP/1.1 {status} X\r\n{length}{extra}\r\n{content}").ok()
}

fn reply(
    held: &Mutex<Held>,
    (method, target): (&str, &str),
    given: &BTreeMap<String, String>,
    body: Vec<u8>,
) -> (u16, String, String) {
    let mut held = held.lock().unwrap();
    held.asked.push(format!("{method} {target}"));
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let names = given["authorization"].split_once("SignedHeaders=").unwrap().1.split(',').next().unwrap();
    let signed = names.split(';').map(|n| (n.to_owned(), given[n].clone())).collect();
    let (payload, time) = (&given["x-amz-content-sha256"], &given["x-amz-date"]);
    let right = authorization((method, path, query), &signed, payload, time, "us-east-1", &credentials());
    let error =
        |status: u16, code: &str| (status, String::new(), format!("<Error><Code>{code}</Code></Error>"));
    if right != given["authorization"] || !given.contains_key("host") {
        return error(403, "SignatureDoesNotMatch");
    }
    if *payload != sha256(&body) {
        return error(400, "XAmzContentSHA256Mismatch");
    }
    if body.len() > LIMIT {
        return error(400, "EntityTooLarge");
    }
    let fields: BTreeMap<&str, &str> = query.split('&').filter_map(|f| f.split_once('=')).collect();
    let hash = given.get(HASH_HEADER).cloned().unwrap_or_default();
    match (method, fields.get("uploadId"), fields.get("partNumber")) {
        ("POST", None, None) if query == "uploads=" => {
            // Real ones have letters that must be encoded.
            let id = format!("{}/+=", held.uploads.len());
            held.uploads.insert(encoded_value(&id), (path.to_owned(), hash, BTreeMap::new()));
            (200, String::new(), format!("<R><UploadId>{id}</UploadId></R>"))
        }
        ("PUT", Some(id), Some(number)) => {
            let number = number.parse().unwrap();
            if held.refused == Some(number) {
                return error(500, "InternalError");
            }
            held.uploads.get_mut(*id).unwrap().2.insert(number, body);
            (200, format!("ETag: \"part-{number}\"\r\n"), String::new())
        }
        ("POST", Some(id), None) => {
            let (path, hash, parts) = held.uploads.remove(*id).unwrap();
            let named: String = (1..=parts.len())
                .map(|n| format!("<Part><PartNumber>{n}</PartNumber><ETag>\"part-{n}\"</ETag></Part>"))
                .collect();
            let list = format!("<CompleteMultipartUpload>{named}</CompleteMultipartUpload>");
            if list.as_bytes() != body {
                return error(400, "InvalidPart");
            }
            held.objects.insert(path, (parts.into_values().flatten().collect(), hash));
            (200, String::new(), "<R/>".to_owned())
        }
        ("DELETE", Some(id), None) => {
            held.uploads.remove(*id);
            (204, String::new(), String::new())
        }
        ("PUT", None, None) => {
            let from = given.get("x-amz-copy-source").and_then(|from| held.objects.get(from).cloned());
            held.objects.insert(path.to_owned(), from.unwrap_or((body, hash)));
            (200, String::new(), String::new())
        }
        ("HEAD" | "GET", None, None) => match held.objects.get(path) {
            None => error(404, "NoSuchKey"),
            Some((bytes, hash)) => {
                let head = format!("Content-Length: {}\r\n{HASH_HEADER}: {hash}\r\n", bytes.len());
                (200, head, String::from_utf8_lossy(bytes).into_owned())
            }
        },
        _ => error(405, "MethodNotAllowed"),
    }
}

/// A bucket of that service, in which a request takes as little as the service does.
fn bucket(address: &str) -> Bucket {
    let agent = ureq::Agent::config_builder().http_status_as_error(false).proxy(None).build().new_agent();
    let mut bucket = Bucket::new("s3://lab/net", Some(address), "us-east-1", credentials(), agent).unwrap();
    bucket.limits = (LIMIT as u64, 1500);
    bucket
}

#[test]
fn large_files_go_in_parts_and_what_is_there_is_not_sent_again() {
    let world = World::new();
    let built = build(&world.options(), &Silent).unwrap();
    let store = Store::open(&world.path("store")).unwrap();
    let (address, held) = service();
    let pushed = push(&store, "tiny", &bucket(&address), STABLE, &Silent).unwrap();
    assert_eq!(pushed.had, 0);
    let directory = format!("/lab/net/images/tiny/{}", built.generation);
    {
        let held = held.lock().unwrap();
        assert!(held.uploads.is_empty());
        let mut large = 0;
        for (file, entry) in &built.manifest.files {
            let (bytes, hash) = &held.objects[&format!("{directory}/{file}")];
            assert_eq!((sha256(bytes), hash), (entry.sha256.clone(), &entry.sha256), "{file}");
            large += usize::from(bytes.len() > LIMIT);
        }
        assert!(
            large > 0 && held.asked.iter().any(|a| a.contains("partNumber=3&uploadId=")),
            "{:?}",
            held.asked
        );
        assert_eq!(held.objects["/lab/net/channels/tiny"].0, format!("{}\n", built.generation).as_bytes());
        assert!(held.asked.last().unwrap().ends_with("/channels/tiny"));
    }
    assert!(push(&store, "tiny", &bucket(&address), STABLE, &Silent).unwrap().sent.is_empty());
}

#[test]
fn a_part_that_fails_leaves_nothing_behind() {
    let world = World::new();
    build(&world.options(), &Silent).unwrap();
    let store = Store::open(&world.path("store")).unwrap();
    let (address, held) = service();
    held.lock().unwrap().refused = Some(2);
    let error = push(&store, "tiny", &bucket(&address), STABLE, &Silent).unwrap_err().to_string();
    assert!(error.contains("status 500 InternalError"), "{error}");
    {
        let mut held = held.lock().unwrap();
        assert!(held.asked.last().unwrap().starts_with("DELETE /lab/net/images/tiny/"), "{:?}", held.asked);
        assert!(held.uploads.is_empty() && !held.objects.contains_key("/lab/net/channels/tiny"));
        held.refused = None;
    }
    push(&store, "tiny", &bucket(&address), STABLE, &Silent).unwrap();
    // What another generation has is copied in the service, where one request can do that.
    world.recipe(&RECIPE.replace("hello", "other"));
    build(&world.options(), &Silent).unwrap();
    push(&store, "tiny", &bucket(&address), STABLE, &Silent).unwrap();
    // A file that is not what the manifest says.
    let entry = FileEntry { size: 2000, sha256: "00".repeat(32) };
    let error = bucket(&address).in_parts("x", &entry, &mut &[1; 2000][..]).unwrap_err().to_string();
    assert!(error.contains("changed while it was sent"), "{error}");
    assert!(held.lock().unwrap().uploads.is_empty());
}
