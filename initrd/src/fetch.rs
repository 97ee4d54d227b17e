//! Fetches a root over HTTP and verifies every block while it comes.
//!
//! ```text
//! Range: tree  ──> verified up to the root hash ──> leaves
//! Range: data  ──> reader ──chunks──> worker per CPU: hash, compare with leaf, write at its place
//! ```
//!
//! A connection that breaks is taken up again where it broke, with back-off, as long as something arrives. A block that differs
//! ends the fetch at once: asking again would hide a damaged store.

use std::{
    fs::File,
    io::{self, Read},
    os::unix::fs::FileExt,
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
        mpsc,
    },
    time::{Duration, Instant},
};

use ureq::{Agent, http::StatusCode};

use crate::verity::{BLOCK, Leaves, Mismatch, Shape};

/// Bytes that one worker checks at a time.
const CHUNK: usize = 256 * BLOCK;
/// Tries without a single new byte before the fetch gives up.
const BARREN_TRIES: u32 = 6;

/// Why a root could not be fetched.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// The bytes are not what was signed.
    #[error(transparent)]
    Mismatch(#[from] Mismatch),
    /// The server answered something else.
    #[error("{url}: the server answered {status}")]
    Status {
        /// What was asked.
        url: String,
        /// The answer.
        status: StatusCode,
    },
    /// No byte came in spite of several tries.
    #[error("{url} broke off at byte {at} of {total}, {tries} times in a row: {why}")]
    Broken {
        /// What was asked.
        url: String,
        /// Bytes that had come.
        at: u64,
        /// Bytes wanted.
        total: u64,
        /// Tries.
        tries: u32,
        /// The last reason.
        why: String,
    },
    /// The file could not be written.
    #[error("writing the root to memory: {0}")]
    Write(io::Error),
}

/// How a fetch went.
#[derive(Debug, Clone, Copy)]
pub struct Fetched {
    /// Bytes of data and tree.
    pub bytes: u64,
    /// How long it took.
    pub took: Duration,
    /// Times a connection broke and was taken up again.
    pub resumed: u32,
}

/// Where the root is and how patient to be.
#[derive(Debug)]
pub struct Source {
    /// HTTP client.
    pub agent: Agent,
    /// URLs of the file, the preferred one first. One that brings nothing is left for the next.
    pub urls: Vec<String>,
    /// Which of them is used now.
    pub current: AtomicUsize,
    /// Unit of the back-off between tries; a second in real life.
    pub pause: Duration,
    /// Worker threads.
    pub workers: usize,
}

/// Fetches data and tree into `file` at their places.
pub fn fetch(source: &Source, shape: Shape, file: &File) -> Result<Fetched, FetchError> {
    let begin = Instant::now();
    let (data_size, tree_size) = (shape.data_size(), shape.tree_size());
    let mut tree = Vec::with_capacity(tree_size as usize);
    let mut resumed = 0;
    if tree_size > 0 {
        let mut keep = |bytes: &[u8]| {
            tree.extend_from_slice(bytes);
            true
        };
        resumed += source.stream(data_size, data_size + tree_size, &mut keep)?;
    }
    let leaves = shape.verify_tree(&tree)?;
    file.write_all_at(&tree, data_size).map_err(FetchError::Write)?;
    drop(tree);
    resumed += source.fetch_data(&leaves, file)?;
    Ok(Fetched { bytes: data_size + tree_size, took: begin.elapsed(), resumed })
}

impl Source {
    fn fetch_data(&self, leaves: &Leaves, file: &File) -> Result<u32, FetchError> {
        let fault: Mutex<Option<FetchError>> = Mutex::new(None);
        let stop = AtomicBool::new(false);
        let (send, receive) = mpsc::sync_channel::<(u64, Vec<u8>)>(self.workers * 2);
        let receive = Mutex::new(receive);
        let (recycle, recycled) = mpsc::channel::<Vec<u8>>();
        let streamed = std::thread::scope(|scope| {
            for _ in 0..self.workers {
                let recycle = recycle.clone();
                let (fault, stop, receive) = (&fault, &stop, &receive);
                scope.spawn(move || {
                    while let Some((at, chunk)) = next(receive) {
                        let checked = leaves
                            .verify(at / BLOCK as u64, &chunk)
                            .map_err(FetchError::from)
                            .and_then(|()| file.write_all_at(&chunk, at).map_err(FetchError::Write));
                        if let Err(why) = checked {
                            stop.store(true, Ordering::Relaxed);
                            keep_first(fault, why);
                        }
                        let _ = recycle.send(chunk);
                    }
                });
            }
            let total = leaves.shape().data_size();
            let mut at = 0;
            let mut chunk = Vec::with_capacity(CHUNK);
            let mut deal = |mut bytes: &[u8]| {
                while !bytes.is_empty() {
                    let (now, later) = bytes.split_at(bytes.len().min(CHUNK - chunk.len()));
                    chunk.extend_from_slice(now);
                    bytes = later;
                    if chunk.len() == CHUNK || at + chunk.len() as u64 == total {
                        let mut fresh = recycled.try_recv().unwrap_or_else(|_| Vec::with_capacity(CHUNK));
                        fresh.clear();
                        let full = std::mem::replace(&mut chunk, fresh);
                        let length = full.len() as u64;
                        if send.send((at, full)).is_err() {
                            return false;
                        }
                        at += length;
                    }
                }
                !stop.load(Ordering::Relaxed)
            };
            let streamed = self.stream(0, total, &mut deal);
            drop(send);
            streamed
        });
        // What a worker found is the reason; that the stream then ended early is its consequence.
        match fault.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner) {
            Some(why) => Err(why),
            None => streamed,
        }
    }

    /// Streams bytes `from..to` into `take`, over as many connections as it needs; returns how often it resumed. `take` returns
    /// false to stop.
    pub(crate) fn stream(
        &self,
        from: u64,
        to: u64,
        take: &mut dyn FnMut(&[u8]) -> bool,
    ) -> Result<u32, FetchError> {
        let (mut at, mut resumed, mut barren) = (from, 0, 0);
        loop {
            let before = at;
            let why = match self.stream_once(&mut at, to, take) {
                Ok(true) => return Ok(resumed),
                Ok(false) => return Err(self.broken(at, to, barren, "stopped".to_owned())),
                Err(Interrupted::Final(why)) => return Err(why),
                Err(Interrupted::Again(why)) => why,
            };
            barren = if at > before { 0 } else { barren + 1 };
            if barren > 0 {
                self.current.fetch_add(1, Ordering::Relaxed);
            }
            if barren >= BARREN_TRIES {
                return Err(self.broken(at, to, barren, why));
            }
            std::thread::sleep(self.pause * (1 << barren.min(4)));
            resumed += 1;
        }
    }

    fn url(&self) -> &str {
        let current = self.current.load(Ordering::Relaxed) % self.urls.len().max(1);
        self.urls.get(current).map(String::as_str).unwrap_or_default()
    }

    fn broken(&self, at: u64, total: u64, tries: u32, why: String) -> FetchError {
        FetchError::Broken { url: self.url().to_owned(), at, total, tries, why }
    }

    /// One connection. `Ok(true)`: all bytes are there.
    fn stream_once(
        &self,
        at: &mut u64,
        to: u64,
        take: &mut dyn FnMut(&[u8]) -> bool,
    ) -> Result<bool, Interrupted> {
        let again = |e: &dyn std::fmt::Display| Interrupted::Again(e.to_string());
        let range = format!("bytes={}-{}", *at, to - 1);
        let request = self.agent.get(self.url()).header("range", range).config();
        let response = request.timeout_per_read(Some(Duration::from_secs(20))).build().call();
        let response = response.map_err(|e| again(&e))?;
        match response.status() {
            StatusCode::PARTIAL_CONTENT => {}
            status if status.is_server_error() => return Err(again(&status)),
            status => {
                return Err(Interrupted::Final(FetchError::Status { url: self.url().to_owned(), status }));
            }
        }
        let mut body = response.into_body().into_reader();
        let mut buffer = vec![0; 256 * 1024];
        while *at < to {
            let room = buffer.len().min((to - *at) as usize);
            match body.read(&mut buffer[..room]) {
                Ok(0) => return Err(again(&"the connection ended early")),
                Ok(length) => {
                    *at += length as u64;
                    if !take(&buffer[..length]) {
                        return Ok(false);
                    }
                }
                Err(e) => return Err(again(&e)),
            }
        }
        Ok(true)
    }
}

enum Interrupted {
    /// Worth another try.
    Again(String),
    /// It will not get better.
    Final(FetchError),
}

fn next(receive: &Mutex<mpsc::Receiver<(u64, Vec<u8>)>>) -> Option<(u64, Vec<u8>)> {
    receive.lock().unwrap_or_else(std::sync::PoisonError::into_inner).recv().ok()
}

fn keep_first(fault: &Mutex<Option<FetchError>>, why: FetchError) {
    fault.lock().unwrap_or_else(std::sync::PoisonError::into_inner).get_or_insert(why);
}

#[cfg(test)]
mod tests {
    use std::{
        io::{BufRead, BufReader, Write},
        net::TcpListener,
        sync::Arc,
    };

    use labshift_model::boot_order::BootOrder;

    use super::*;
    use crate::{
        blocks::{Blocks, Policy},
        disk::Cache,
        server::agent,
        verity,
    };

    /// Serves `body` by ranges. `cut` connections end after `cut_after` bytes of their body.
    fn serve(body: Vec<u8>, cut: usize, cut_after: usize) -> (String, Arc<AtomicUsize>) {
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

    fn source(urls: Vec<String>) -> Source {
        Source {
            agent: agent(),
            urls,
            current: AtomicUsize::new(0),
            pause: Duration::from_millis(1),
            workers: 2,
        }
    }

    fn image(blocks: usize) -> (Vec<u8>, Shape) {
        let data: Vec<u8> = (0..blocks * BLOCK).map(|i| (i % 253) as u8 ^ (i / BLOCK) as u8).collect();
        let (tree, root_hash) = verity::build(&data, &[1]);
        let shape = Shape::new(&root_hash, "01", data.len() as u64, 4096).unwrap();
        ([data, tree].concat(), shape)
    }

    fn run(
        body: Vec<u8>,
        shape: Shape,
        cut: usize,
        cut_after: usize,
    ) -> (Result<Fetched, FetchError>, Vec<u8>, usize) {
        let (url, served) = serve(body, cut, cut_after);
        let source = source(vec![url]);
        let path = std::env::temp_dir().join(format!(
            "labshift-fetch-{}-{:?}",
            std::process::id(),
            std::thread::current().id()
        ));
        let file = File::options().create(true).truncate(true).read(true).write(true).open(&path).unwrap();
        let result = fetch(&source, shape, &file);
        let bytes = std::fs::read(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        (result, bytes, served.load(Ordering::SeqCst))
    }

    #[test]
    fn a_whole_root_arrives() {
        let (body, shape) = image(700);
        let (result, bytes, requests) = run(body.clone(), shape, 0, 0);
        let fetched = result.unwrap();
        assert_eq!((fetched.bytes as usize, fetched.resumed, requests), (body.len(), 0, 2));
        assert!(bytes == body);
    }

    #[test]
    fn cut_connections_are_resumed() {
        let (body, shape) = image(700);
        let (result, bytes, _) = run(body.clone(), shape, 5, 300_001);
        assert!(result.unwrap().resumed >= 4);
        assert!(bytes == body);
    }

    #[test]
    fn another_server_takes_over_where_the_first_died() {
        let (body, shape) = image(700);
        let (dies, asked) = serve(body.clone(), 1000, 0);
        let (lives, _) = serve(body.clone(), 0, 0);
        let blocks = Blocks::open(source(vec![dies, lives]), shape, Policy::Lazy, None).unwrap();
        let mut bytes = vec![0; 9000];
        blocks.read(123_456, &mut bytes).unwrap();
        assert!(bytes == body[123_456..][..9000]);
        assert_eq!(asked.load(Ordering::SeqCst), 1, "a server that brings nothing is left");
    }

    #[test]
    fn a_root_comes_as_it_is_read_and_then_needs_no_server() {
        let (body, shape) = image(700);
        let (url, served) = serve(body.clone(), 0, 0);
        let blocks = Arc::new(Blocks::open(source(vec![url]), shape, Policy::Full, None).unwrap());
        assert_eq!(blocks.size(), body.len() as u64);
        // Several readers of the same place: one request.
        let readers: Vec<_> = (0..4)
            .map(|_| {
                let (blocks, body) = (blocks.clone(), body.clone());
                std::thread::spawn(move || {
                    let mut bytes = vec![0; 5000];
                    blocks.read(1_000_000, &mut bytes).unwrap();
                    assert!(bytes == body[1_000_000..][..5000]);
                })
            })
            .collect();
        readers.into_iter().for_each(|r| r.join().unwrap());
        assert_eq!(served.load(Ordering::SeqCst), 2, "the tree and one row of chunks");
        assert!(blocks.fetched() < 1_000_000);
        assert!(blocks.fetch_rest(Duration::ZERO));
        let before = served.load(Ordering::SeqCst);
        let mut all = vec![0; body.len()];
        blocks.read(0, &mut all).unwrap();
        assert!(all == body);
        assert_eq!(served.load(Ordering::SeqCst), before, "everything was there");
        assert!(blocks.read(body.len() as u64 - 10, &mut [0; 20]).is_err(), "past the end");
    }

    #[test]
    fn a_lazy_root_keeps_little_and_fetches_again() {
        let (body, shape) = image(3200);
        let (url, served) = serve(body.clone(), 0, 0);
        let blocks = Blocks::open(source(vec![url]), shape, Policy::Lazy, None).unwrap();
        let mut all = vec![0; body.len()];
        blocks.read(0, &mut all).unwrap();
        assert!(all == body);
        let before = served.load(Ordering::SeqCst);
        assert!(before < 30, "reads in a row are fetched together: {before}");
        blocks.read(body.len() as u64 - 9_000_000, &mut all[..100]).unwrap();
        blocks.read(0, &mut all[..100]).unwrap();
        assert!(served.load(Ordering::SeqCst) > before);
    }

    /// The second boot fetches what the first one has read, in its order, before anybody asks, and nothing else.
    #[test]
    fn a_recorded_order_is_fetched_ahead() {
        let (body, shape) = image(3200);
        let chunk = 32 * BLOCK as u64;
        let reads = [70, 3, 4, 5, 90, 0, 70];
        let (url, _) = serve(body.clone(), 0, 0);
        let first = Blocks::open(source(vec![url]), shape.clone(), Policy::Full, None).unwrap();
        for at in reads {
            first.read(at * chunk + 100, &mut [0; 1000]).unwrap();
        }
        let order = first.order();
        assert_eq!(order.to_string(), "2240+32,96+96,2880+32,0+32");

        let (url, served) = serve(body.clone(), 0, 0);
        let then = Blocks::open(source(vec![url]), shape.clone(), Policy::Full, None).unwrap();
        let tree = then.fetched();
        then.follow(&order);
        assert!(then.is_ordered() && !first.is_ordered());
        then.prefetch();
        assert_eq!((then.fetched() - tree, served.load(Ordering::SeqCst)), (6 * chunk, 1 + 4));
        for at in reads {
            let mut bytes = [0; 1000];
            then.read(at * chunk + 100, &mut bytes).unwrap();
            assert!(bytes == body[(at * chunk) as usize + 100..][..1000]);
        }
        assert_eq!(served.load(Ordering::SeqCst), 5, "everything was there");
        // What the recorded boot did not read comes alone.
        then.read(50 * chunk, &mut [0; 10]).unwrap();
        assert_eq!(then.fetched() - tree, 7 * chunk);

        // An order that names blocks beyond the end, or wrong ones, costs nothing but time.
        let (url, _) = serve(body, 1, 0);
        let odd = Blocks::open(source(vec![url]), shape, Policy::Full, None).unwrap();
        odd.follow(&BootOrder::parse("3199+4000000000,4000000000+4000000000").unwrap());
        odd.prefetch();
        assert!(odd.read(0, &mut [0; 10]).is_ok());
        odd.forget_order();
        assert!(!odd.is_ordered());
    }

    /// What one boot has kept on the disk, the next one takes from there, but for a block that was changed; another root's blocks are none.
    #[test]
    fn a_disk_is_read_by_the_next_boot_and_not_believed() {
        let path = std::env::temp_dir().join(format!("labshift-cache-{}", std::process::id()));
        let disk = File::options().create(true).truncate(true).read(true).write(true).open(&path).unwrap();
        disk.set_len(20 << 20).unwrap();
        let (body, shape) = image(3200);
        let boot = |body: &[u8], shape: &Shape| {
            let (url, _) = serve(body.to_vec(), 0, 0);
            let cache = Cache::open(disk.try_clone().unwrap(), shape).unwrap();
            let warm = cache.is_warm();
            let blocks = Blocks::open(source(vec![url]), shape.clone(), Policy::Disk, Some(cache)).unwrap();
            let mut all = vec![0; body.len()];
            blocks.read(0, &mut all).unwrap();
            assert!(all == body);
            // Few are kept in memory: this one comes from the disk again.
            let fetched = blocks.fetched();
            blocks.read(0, &mut all[..10]).unwrap();
            assert_eq!(blocks.fetched(), fetched);
            assert!(blocks.fetch_rest(Duration::ZERO) && blocks.fetched() == fetched);
            (warm, fetched)
        };
        assert_eq!(boot(&body, &shape), (false, body.len() as u64));
        assert_eq!(boot(&body, &shape), (true, 0));
        let chunk = 32 * BLOCK as u64;
        for at in [2_000_000, 9_000_000] {
            disk.write_all_at(b"somebody was here", at).unwrap();
        }
        assert_eq!(boot(&body, &shape), (true, 2 * chunk));
        assert_eq!(boot(&body, &shape), (true, 0), "it was put right");
        disk.write_all_at(&[7; 100], 140_000).unwrap();
        let tree = body.len() as u64 - shape.data_size();
        assert_eq!(boot(&body, &shape), (true, tree));
        let (other, other_shape) = image(900);
        assert_eq!(boot(&other, &other_shape), (false, other.len() as u64));
        std::fs::remove_file(path).unwrap();
    }

    /// A root of which little is kept is fetched ahead only so far that nothing is thrown away before it is read.
    #[test]
    fn a_lazy_root_is_not_fetched_too_far_ahead() {
        let (body, shape) = image(3200);
        let (url, served) = serve(body, 0, 0);
        let blocks = Arc::new(Blocks::open(source(vec![url]), shape, Policy::Lazy, None).unwrap());
        blocks.follow(&BootOrder::parse("0+3200").unwrap());
        let fetching = blocks.clone();
        let ahead = std::thread::spawn(move || fetching.prefetch());
        for chunk in 0..100 {
            blocks.read(chunk * 32 * BLOCK as u64, &mut [0; 10]).unwrap();
        }
        ahead.join().unwrap();
        assert!(served.load(Ordering::SeqCst) < 100, "most came ahead, in rows");
    }

    #[test]
    fn a_flipped_byte_is_found_when_it_is_read() {
        let (mut body, shape) = image(700);
        body[612 * BLOCK + 99] ^= 4;
        let (url, _) = serve(body, 0, 0);
        let blocks = Blocks::open(source(vec![url]), shape, Policy::Full, None).unwrap();
        assert!(blocks.read(0, &mut [0; 4096]).is_ok());
        assert!(blocks.read(612 * BLOCK as u64, &mut [0; 4096]).is_err());
        assert!(matches!(
            blocks.fault(),
            Some(FetchError::Mismatch(Mismatch::Data { block: 612, total: 700 }))
        ));
        assert!(!blocks.fetch_rest(Duration::ZERO));
    }

    #[test]
    fn a_dead_server_is_given_up() {
        let (body, shape) = image(3);
        let (result, _, requests) = run(body, shape, 1000, 0);
        assert!(
            matches!(result, Err(FetchError::Broken { at: 12288, tries: BARREN_TRIES, .. })),
            "{result:?}"
        );
        assert_eq!(requests, BARREN_TRIES as usize);
    }

    #[test]
    fn a_flipped_byte_is_found_with_its_block() {
        let (mut body, shape) = image(700);
        body[612 * BLOCK + 99] ^= 4;
        let (result, ..) = run(body, shape, 0, 0);
        assert!(
            matches!(result, Err(FetchError::Mismatch(Mismatch::Data { block: 612, total: 700 }))),
            "{result:?}"
        );
    }

    #[test]
    fn a_changed_tree_is_found_before_any_data_is_asked() {
        let (mut body, shape) = image(700);
        let last = body.len() - 4000;
        body[last] ^= 4;
        let (result, _, requests) = run(body, shape, 0, 0);
        assert!(matches!(result, Err(FetchError::Mismatch(Mismatch::Tree { .. }))), "{result:?}");
        assert_eq!(requests, 1);
    }
}
