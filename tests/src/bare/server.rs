//! The small server behind QEMU's own network: it answers, serves a root, dies and comes back as it is told, and keeps what was
//! reported.

use std::{
    fs::File,
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    os::unix::fs::FileExt,
    path::PathBuf,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use labshift_model::{
    boot::{BootAnswer, BootReport, Failure, SignedAnswer},
    paths::NODE_CHANNEL,
};
use tokio_tungstenite::tungstenite::{WebSocket, handshake::derive_accept_key, protocol::Role};

use super::server_key;
use crate::GUARD;

/// What the server does when it is asked.
#[derive(Default)]
pub struct Behaviour {
    /// The boot answer, or a refusal.
    pub answer: Option<Result<BootAnswer, String>>,
    /// The answer to every question after the first.
    pub then: Option<BootAnswer>,
    /// The answer was recorded when another machine asked.
    pub recorded: bool,
    /// The root file that it serves.
    pub root: PathBuf,
    /// Byte of the root that comes out flipped.
    pub flip: Option<u64>,
    /// The server dies after so many bytes of the root: once each, first to last. It is back after [`Server::revive`].
    pub die_after: Vec<u64>,
    /// The server is dead now.
    pub dead: bool,
    /// Nodes may open their channel; nothing is said there.
    pub channel: bool,
    /// Other files that it serves, by path.
    pub files: Vec<(String, PathBuf)>,
    /// Bytes of root and files that it has sent.
    pub sent: u64,
}

struct Shared {
    state: Mutex<(Behaviour, Vec<BootReport>)>,
    changed: Condvar,
}

/// A server on the loopback that does as it is told.
pub struct Server {
    shared: Arc<Shared>,
    port: u16,
}

impl Server {
    /// Serves until the test ends.
    pub fn start(behaviour: Behaviour) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("its number").port();
        let shared = Arc::new(Shared { state: Mutex::new((behaviour, vec![])), changed: Condvar::new() });
        let serving = shared.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let shared = serving.clone();
                std::thread::spawn(move || while let Ok(true) = converse(&shared, &stream) {});
            }
        });
        Server { shared, port }
    }

    /// As the machine reaches it.
    pub fn url(&self) -> String {
        format!("http://10.0.2.2:{}", self.port)
    }

    /// Waits for a failure in a report.
    pub fn failure(&self) -> Failure {
        self.wait("a failure", |_, reports| {
            reports.iter().flat_map(|r| &r.stages).find_map(|s| s.failure.clone())
        })
    }

    /// Waits for the word on how the last run ended.
    pub fn crash(&self) -> String {
        self.wait("a crash", |_, reports| reports.iter().find_map(|r| r.crash.clone()))
    }

    /// Waits for a report whose log holds a text.
    pub fn log(&self, text: &str) {
        self.wait(text, |_, reports| reports.iter().any(|r| r.log.contains(text)).then_some(()));
    }

    /// Waits until the server has died.
    pub fn died(&self) {
        self.wait("its end", |behaviour, _| behaviour.dead.then_some(()));
    }

    /// Bytes of root and files that it has sent so far.
    pub fn sent(&self) -> u64 {
        self.shared.lock().0.sent
    }

    /// The server is back.
    pub fn revive(&self) {
        self.shared.lock().0.dead = false;
    }

    fn wait<T>(&self, what: &str, found: impl Fn(&Behaviour, &[BootReport]) -> Option<T>) -> T {
        let begin = Instant::now();
        let mut state = self.shared.lock();
        loop {
            if let Some(found) = found(&state.0, &state.1) {
                return found;
            }
            let left =
                GUARD.checked_sub(begin.elapsed()).unwrap_or_else(|| panic!("no {what} came: {:?}", state.1));
            state = self.shared.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, (Behaviour, Vec<BootReport>)> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One request. True when the connection stays for another: after a part of the root, of which there are many.
fn converse(shared: &Shared, mut stream: &TcpStream) -> std::io::Result<bool> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let (mut first, mut length, mut range, mut key) = (String::new(), 0, None, String::new());
    reader.read_line(&mut first)?;
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? <= 2 {
            break;
        }
        if let Some((_, value)) =
            line.split_once(": ").filter(|(name, _)| name.eq_ignore_ascii_case("sec-websocket-key"))
        {
            key = value.trim().to_owned();
        }
        let line = line.to_ascii_lowercase();
        if let Some(value) = line.strip_prefix("content-length:") {
            length = value.trim().parse().unwrap_or(0);
        }
        if let Some((from, to)) = line.trim().strip_prefix("range: bytes=").and_then(|r| r.split_once('-')) {
            range = Some((from.parse::<u64>().unwrap_or(0), to.parse::<u64>().unwrap_or(0)));
        }
    }
    if shared.lock().0.dead {
        return Ok(false);
    }
    if let Some((from, to)) = range {
        return send_root(shared, &mut stream, from, to);
    }
    if first.contains(NODE_CHANNEL) && shared.lock().0.channel {
        return listen(stream, &key).map(|()| false);
    }
    let mut reply = |status: &str, body: &[u8]| {
        let head =
            format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
        stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body))
    };
    if first.contains("/v1/boot/answer") {
        let (answer, recorded) = {
            let mut state = shared.lock();
            let answer = state.0.answer.clone();
            if let Some(then) = state.0.then.take() {
                state.0.answer = Some(Ok(then));
            }
            (answer, state.0.recorded)
        };
        let nonce = first.split(['&', ' ']).find_map(|word| word.strip_prefix("nonce="));
        match answer {
            Some(Ok(answer)) => {
                let nonce = nonce.filter(|_| !recorded).unwrap_or("earlier").to_owned();
                let signed = SignedAnswer::sign(&BootAnswer { nonce, ..answer }, &server_key());
                reply("200 OK", &serde_json::to_vec(&signed)?)
            }
            Some(Err(reason)) => reply("403 Forbidden", reason.as_bytes()),
            None => Ok(()),
        }
    } else if first.contains("/v1/boot/report") {
        let mut body = vec![0; length];
        reader.read_exact(&mut body)?;
        shared.lock().1.push(serde_json::from_slice(&body)?);
        shared.changed.notify_all();
        reply("204 No Content", &[])
    } else {
        let wanted = first.split(' ').nth(1).unwrap_or_default();
        let file =
            shared.lock().0.files.iter().find(|(path, _)| *path == wanted).map(|(_, file)| file.clone());
        let Some(file) = file else { return reply("404 Not Found", &[]).map(|()| false) };
        let mut file = File::open(file)?;
        let length = file.metadata()?.len();
        write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n")?;
        let sent = std::io::copy(&mut file, &mut stream)?;
        shared.lock().0.sent += sent;
        Ok(())
    }?;
    Ok(false)
}

/// A node's channel (RFC 6455): its pings are answered until it goes.
fn listen(mut stream: &TcpStream, key: &str) -> std::io::Result<()> {
    let accept = derive_accept_key(key.as_bytes());
    write!(
        stream,
        "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: {accept}\r\n\r\n"
    )?;
    let mut channel = WebSocket::from_raw_socket(stream, Role::Server, None);
    while channel.read().is_ok() {}
    Ok(())
}

fn send_root(shared: &Shared, stream: &mut impl Write, from: u64, to: u64) -> std::io::Result<bool> {
    let (path, flip) = {
        let state = shared.lock();
        (state.0.root.clone(), state.0.flip)
    };
    let mut bytes = vec![0; (to - from + 1) as usize];
    File::open(path)?.read_exact_at(&mut bytes, from)?;
    if let Some(byte) =
        flip.filter(|f| (from..=to).contains(f)).and_then(|f| bytes.get_mut((f - from) as usize))
    {
        *byte ^= 1;
    }
    let head = format!("HTTP/1.1 206 Partial Content\r\nContent-Length: {}\r\n\r\n", bytes.len());
    stream.write_all(head.as_bytes())?;
    // The tree comes first and is small: it passes. Data passes up to the place where the server is to die.
    let dies = {
        let mut state = shared.lock();
        let next = state.0.die_after.first().copied();
        next.filter(|at| from == 0 || *at > from).filter(|at| (from..=to).contains(at)).inspect(|_| {
            state.0.die_after.remove(0);
            state.0.dead = true;
        })
    };
    if let Some(at) = dies {
        shared.lock().0.sent += at - from;
        stream.write_all(&bytes[..(at - from) as usize])?;
        shared.changed.notify_all();
        return Ok(false);
    }
    shared.lock().0.sent += bytes.len() as u64;
    stream.write_all(&bytes).map(|()| true)
}
