//! The store's HTTP side as the node uses it: files that are verified while they come in, and saved guests that
//! the store verifies while they go out.
//!
//! ```text
//! fetch:  GET -> hash while writing FILE.part -> size and SHA-256 as expected? -> FILE
//! send:   PUT, hashed while it is read -> the store answers its own size and SHA-256 -> the same? -> done
//! ```
//!
//! A local copy is deleted by the caller, and only after [`Store::send`] returned.

use std::{
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures_util::StreamExt;
use labshift_model::{manifest::FileEntry, paths};
use reqwest::{Body, Client, Response, StatusCode};
use sha2::{Digest, Sha256};
use tokio::{
    fs::File,
    io::{AsyncReadExt, AsyncWriteExt, BufWriter},
};

use crate::record::named;

/// Bytes read and sent at a time.
const CHUNK: usize = 1 << 20;
/// A server that says nothing for so long is gone.
const SILENCE: Duration = Duration::from_secs(60);

/// The store refused, or its bytes are wrong.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The exchange broke.
    #[error("{url}: {}", chain(.source))]
    Broken {
        /// Where.
        url: String,
        /// Why.
        source: reqwest::Error,
    },
    /// The server answered with an error.
    #[error("{url}: the server answers {status}{}", said(.body))]
    Status {
        /// Where.
        url: String,
        /// HTTP status.
        status: StatusCode,
        /// The beginning of its text.
        body: String,
    },
    /// More bytes than expected.
    #[error("{url}: more than {limit} bytes")]
    TooLarge {
        /// Where.
        url: String,
        /// Bytes allowed.
        limit: u64,
    },
    /// The bytes are not the expected ones.
    #[error("{url}: {found_size} bytes with SHA-256 {found}, expected {expected_size} bytes with {expected}")]
    Differs {
        /// Where.
        url: String,
        /// SHA-256 of what was there.
        found: String,
        /// Its size.
        found_size: u64,
        /// SHA-256 wanted.
        expected: String,
        /// Size wanted.
        expected_size: u64,
    },
    /// The node's own file system.
    #[error("{0}")]
    Disk(io::Error),
}

fn said(body: &str) -> String {
    if body.is_empty() { String::new() } else { format!(": {body}") }
}

/// reqwest keeps the reason in the chain.
fn chain(error: &reqwest::Error) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(error) = source {
        text.push_str(&format!(": {error}"));
        source = error.source();
    }
    text
}

/// The server, as a store of files.
#[derive(Debug, Clone)]
pub struct Store {
    client: Client,
    server: String,
    token: String,
}

impl Store {
    /// `server` is `http://ADDRESS:PORT`; `token` is the node's.
    pub fn new(server: &str, token: &str) -> Self {
        let client = Client::builder().connect_timeout(Duration::from_secs(10)).read_timeout(SILENCE).build();
        Store { client: client.unwrap_or_default(), server: server.to_owned(), token: token.to_owned() }
    }

    /// Reads a small file.
    pub async fn read(&self, path: &str, limit: u64) -> Result<Vec<u8>, StoreError> {
        let url = self.url(path);
        let mut response = self.get(&url).await?;
        let mut bytes = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(|e| broken(&url, e))? {
            if bytes.len() as u64 + chunk.len() as u64 > limit {
                return Err(StoreError::TooLarge { url, limit });
            }
            bytes.extend_from_slice(&chunk);
        }
        Ok(bytes)
    }

    /// Fetches a file; it appears at `to` only when size and hash are right.
    pub async fn fetch(&self, path: &str, to: &Path, expected: &FileEntry) -> Result<(), StoreError> {
        let url = self.url(path);
        let part = to.with_extension("part");
        let mut response = self.get(&url).await?;
        let file = File::create(&part).await.map_err(|e| StoreError::Disk(named(&part, e)))?;
        let mut file = BufWriter::with_capacity(CHUNK, file);
        let (mut hash, mut size) = (Sha256::new(), 0u64);
        while let Some(chunk) = response.chunk().await.map_err(|e| broken(&url, e))? {
            size += chunk.len() as u64;
            if size > expected.size {
                return Err(StoreError::TooLarge { url, limit: expected.size });
            }
            hash.update(&chunk);
            file.write_all(&chunk).await.map_err(|e| StoreError::Disk(named(&part, e)))?;
        }
        file.flush().await.map_err(|e| StoreError::Disk(named(&part, e)))?;
        compare(&url, &FileEntry { size, sha256: hex::encode(hash.finalize()) }, expected)?;
        tokio::fs::rename(&part, to).await.map_err(|e| StoreError::Disk(named(to, e)))
    }

    /// Sends a file. Returns what the store has, once that is proven to be the file's bytes.
    pub async fn send(&self, file: &Path, path: &str) -> Result<FileEntry, StoreError> {
        let url = self.url(path);
        let disk = |e| StoreError::Disk(named(file, e));
        let opened = File::open(file).await.map_err(disk)?;
        let length = opened.metadata().await.map_err(disk)?.len();
        let sent = Arc::new(Mutex::new((Sha256::new(), 0u64)));
        let counting = sent.clone();
        let chunks = futures_util::stream::try_unfold((opened, counting), async |(mut file, counting)| {
            let mut chunk = Vec::with_capacity(CHUNK);
            (&mut file).take(CHUNK as u64).read_to_end(&mut chunk).await?;
            if chunk.is_empty() {
                return Ok::<_, io::Error>(None);
            }
            {
                let mut count = counting.lock().unwrap_or_else(PoisonError::into_inner);
                count.0.update(&chunk);
                count.1 += chunk.len() as u64;
            }
            Ok(Some((chunk, (file, counting))))
        });
        let request = self
            .client
            .put(&url)
            .bearer_auth(&self.token)
            .header("content-length", length)
            .body(Body::wrap_stream(chunks.boxed()));
        let response = checked(&url, request.send().await.map_err(|e| broken(&url, e))?).await?;
        let stored: FileEntry = response.json().await.map_err(|e| broken(&url, e))?;
        let ours = {
            let count = sent.lock().unwrap_or_else(PoisonError::into_inner);
            FileEntry { size: count.1, sha256: hex::encode(count.0.clone().finalize()) }
        };
        compare(&url, &stored, &ours)?;
        Ok(stored)
    }

    fn url(&self, path: &str) -> String {
        format!("{}{path}", self.server)
    }

    async fn get(&self, url: &str) -> Result<Response, StoreError> {
        let request = self.client.get(url).bearer_auth(&self.token);
        checked(url, request.send().await.map_err(|e| broken(url, e))?).await
    }
}

/// Path of one part (`memory`, `disk`) of a saved guest.
pub fn path_of(guest: &str, revision: u64, part: &str) -> String {
    format!("{}/{guest}/{revision}/{part}", paths::SAVED)
}

/// The files of a saved guest on the node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalFiles {
    /// libvirt's save image.
    pub memory: PathBuf,
    /// qcow2 disk, for a guest that has one.
    pub disk: Option<PathBuf>,
}

fn broken(url: &str, source: reqwest::Error) -> StoreError {
    StoreError::Broken { url: url.to_owned(), source: source.without_url() }
}

async fn checked(url: &str, mut response: Response) -> Result<Response, StoreError> {
    let status = response.status();
    if status.is_success() {
        return Ok(response);
    }
    // A refusal's text is for the log; its first piece is enough, and it may be anything.
    let body = response.chunk().await.ok().flatten().unwrap_or_default();
    let body: String = String::from_utf8_lossy(&body).chars().filter(|c| !c.is_control()).take(200).collect();
    Err(StoreError::Status { url: url.to_owned(), status, body })
}

fn compare(url: &str, found: &FileEntry, expected: &FileEntry) -> Result<(), StoreError> {
    if found == expected {
        return Ok(());
    }
    Err(StoreError::Differs {
        url: url.to_owned(),
        found: found.sha256.chars().take(64).collect(),
        found_size: found.size,
        expected: expected.sha256.clone(),
        expected_size: expected.size,
    })
}

#[cfg(test)]
pub(crate) mod test_server {
    //! A small HTTP server with files in memory, for this crate's tests.

    use std::{
        collections::BTreeMap,
        sync::{Arc, Mutex},
    };

    use sha2::{Digest, Sha256};
    use tokio::{
        io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
        net::{TcpListener, TcpStream},
    };

    /// Path to content.
    pub type Files = BTreeMap<String, Vec<u8>>;

    pub struct Server {
        pub url: String,
        pub files: Arc<Mutex<Files>>,
        /// Flips a byte of everything that is stored.
        pub corrupts: Arc<Mutex<bool>>,
        task: tokio::task::JoinHandle<()>,
    }

    impl Drop for Server {
        fn drop(&mut self) {
            self.task.abort();
        }
    }

    pub async fn serve(files: Files) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let files = Arc::new(Mutex::new(files));
        let corrupts = Arc::new(Mutex::new(false));
        let (shared, flag) = (files.clone(), corrupts.clone());
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let _ = answer(stream, &shared, &flag).await;
            }
        });
        Server { url, files, corrupts, task }
    }

    async fn answer(stream: TcpStream, files: &Mutex<Files>, corrupts: &Mutex<bool>) -> std::io::Result<()> {
        let mut stream = BufReader::new(stream);
        let mut head = Vec::new();
        while stream.read_until(b'\n', &mut head).await? > 2 {
            if head.ends_with(b"\r\n\r\n") {
                break;
            }
        }
        let head = String::from_utf8_lossy(&head).to_ascii_lowercase();
        let mut words = head.split_whitespace();
        let (method, path) = (words.next().unwrap_or(""), words.next().unwrap_or("").to_owned());
        let authorised = head.contains("authorization: bearer token\r\n");
        let length = head.lines().find_map(|l| l.strip_prefix("content-length: ")?.parse::<usize>().ok());
        let (status, body) = match method {
            _ if !authorised => ("401 Unauthorized", b"who are you?".to_vec()),
            "put" => {
                let mut body = vec![0; length.unwrap_or(0)];
                stream.read_exact(&mut body).await?;
                if *corrupts.lock().unwrap() {
                    body[0] ^= 1;
                }
                let entry = labshift_model::manifest::FileEntry {
                    size: body.len() as u64,
                    sha256: hex::encode(Sha256::digest(&body)),
                };
                files.lock().unwrap().insert(path, body);
                ("200 OK", serde_json::to_vec(&entry).unwrap())
            }
            _ => match files.lock().unwrap().get(&path) {
                Some(body) => ("200 OK", body.clone()),
                None => ("404 Not Found", b"no such file".to_vec()),
            },
        };
        let head =
            format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
        stream.write_all(head.as_bytes()).await?;
        stream.write_all(&body).await?;
        stream.shutdown().await
    }
}

#[cfg(test)]
mod tests {
    use super::{test_server::serve, *};

    fn entry(bytes: &[u8]) -> FileEntry {
        FileEntry { size: bytes.len() as u64, sha256: hex::encode(Sha256::digest(bytes)) }
    }

    #[tokio::test]
    async fn a_saved_guest_goes_out_and_comes_back() {
        let directory = tempfile::tempdir().unwrap();
        let server = serve(Default::default()).await;
        let store = Store::new(&server.url, "token");
        let (out, back) = (directory.path().join("memory-1"), directory.path().join("back"));
        // More than two chunks, and not a whole number of them.
        let bytes: Vec<u8> = (0..CHUNK * 2 + 77).map(|i| (i / 3) as u8).collect();
        std::fs::write(&out, &bytes).unwrap();
        let path = path_of("batch-1", 1, "memory");
        assert_eq!(path, "/v1/saved/batch-1/1/memory");
        assert_eq!(store.send(&out, &path).await.unwrap(), entry(&bytes));
        store.fetch(&path, &back, &entry(&bytes)).await.unwrap();
        assert_eq!(std::fs::read(&back).unwrap(), bytes);
    }

    #[tokio::test]
    async fn damage_on_the_way_is_noticed_in_both_directions() {
        let directory = tempfile::tempdir().unwrap();
        let server = serve(Default::default()).await;
        let store = Store::new(&server.url, "token");
        let (out, back) = (directory.path().join("memory-1"), directory.path().join("back"));
        std::fs::write(&out, b"precious").unwrap();

        *server.corrupts.lock().unwrap() = true;
        let error = store.send(&out, "/v1/saved/g/1/memory").await.unwrap_err();
        assert!(matches!(error, StoreError::Differs { .. }), "{error}");

        *server.corrupts.lock().unwrap() = false;
        store.send(&out, "/v1/saved/g/1/memory").await.unwrap();
        server.files.lock().unwrap().insert("/v1/saved/g/1/memory".into(), b"preciouz".to_vec());
        let error = store.fetch("/v1/saved/g/1/memory", &back, &entry(b"precious")).await.unwrap_err();
        assert!(matches!(error, StoreError::Differs { .. }), "{error}");
        server.files.lock().unwrap().insert("/v1/saved/g/1/memory".into(), b"precious and more".to_vec());
        let error = store.fetch("/v1/saved/g/1/memory", &back, &entry(b"precious")).await.unwrap_err();
        assert!(matches!(error, StoreError::TooLarge { limit: 8, .. }), "{error}");
        assert!(!back.exists(), "wrong bytes never get the file's name");
    }

    #[tokio::test]
    async fn refusals_are_told_in_the_servers_words() {
        let server = serve(Default::default()).await;
        let error = Store::new(&server.url, "wrong").read("/x", 10).await.unwrap_err();
        assert!(
            error.to_string().ends_with("/x: the server answers 401 Unauthorized: who are you?"),
            "{error}"
        );
        let error = Store::new("http://127.0.0.1:9", "token").read("/x", 10).await.unwrap_err();
        assert!(error.to_string().starts_with("http://127.0.0.1:9/x: "), "{error}");
    }
}
