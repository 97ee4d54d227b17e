//! Fetches a whole root and verifies every block while it comes.
//!
//! ```text
//! Range: tree  ──> verified up to the root hash ──> leaves
//! Range: data  ──> reader ──chunks──> worker per CPU: hash, compare with leaf, write at its place
//! ```
//!
//! A block that differs ends the fetch at once: asking again would hide a damaged store.

use std::{
    fs::File,
    os::unix::fs::FileExt,
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    time::{Duration, Instant},
};

use crate::{
    source::{FetchError, Source},
    verity::{BLOCK, Leaves, Shape},
};

/// Bytes that one worker checks at a time.
const CHUNK: usize = 256 * BLOCK;

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
}

fn next(receive: &Mutex<mpsc::Receiver<(u64, Vec<u8>)>>) -> Option<(u64, Vec<u8>)> {
    receive.lock().unwrap_or_else(std::sync::PoisonError::into_inner).recv().ok()
}

fn keep_first(fault: &Mutex<Option<FetchError>>, why: FetchError) {
    fault.lock().unwrap_or_else(std::sync::PoisonError::into_inner).get_or_insert(why);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        fixture::{image, serve, source},
        source::BARREN_TRIES,
        verity::Mismatch,
    };

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
