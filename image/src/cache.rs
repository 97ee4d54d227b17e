//! Downloads, kept by their SHA-256: what was fetched once and verified is never fetched again.
//!
//! ```text
//! CACHE/objects/ab/abcd...      complete and verified when it was put there; verified again when it is read
//! CACHE/partial/abcd...         a download that was interrupted; the next one goes on from its end
//! CACHE/tools/HASH/             a tool's packages, unpacked
//! CACHE/layers/KEY/             what packages give, packed: see `layer`
//! CACHE/locks/KEY              which packages were chosen from lists of these hashes
//! CACHE/tmp/                    what builds are at; a dead one's is removed by the next
//! ```

use std::{
    fs,
    io::{Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
    time::Duration,
};

use nix::fcntl::{Flock, FlockArg};
use sha2::{Digest, Sha256};
use ureq::tls::{RootCerts, TlsConfig};

use crate::{
    error::{At, BuildError},
    scratch::{self, Scratch},
    shelf::Shelf,
};

/// What a mirror's signed lists say of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Expected {
    /// Bytes.
    pub size: u64,
    /// Lower-case hex.
    pub sha256: String,
}

/// A download directory and the connection that fills it.
pub struct Cache {
    directory: PathBuf,
    agent: ureq::Agent,
}

impl Cache {
    /// Opens (and makes) the directory. `proxy` is used when the environment names none.
    pub fn open(directory: &Path, proxy: Option<&str>) -> Result<Cache, BuildError> {
        for part in ["objects", "partial", "tools", "layers", "locks", "tmp"] {
            let path = directory.join(part);
            fs::create_dir_all(&path).at("making the cache directory", &path)?;
        }
        scratch::sweep(&directory.join("tmp"))?;
        let chosen = ureq::Proxy::try_from_env().or_else(|| proxy.and_then(|p| ureq::Proxy::new(p).ok()));
        let config = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .proxy(chosen)
            .timeout_connect(Some(Duration::from_secs(20)))
            .timeout_recv_response(Some(Duration::from_secs(60)))
            .timeout_per_read(Some(Duration::from_secs(60)))
            // https mirrors are checked against this machine's own certificates: a lab's mirror may have a lab's authority.
            .tls_config(TlsConfig::builder().root_certs(RootCerts::PlatformVerifier).build())
            .user_agent(concat!("labshift/", env!("CARGO_PKG_VERSION")))
            .build();
        Ok(Cache { directory: directory.to_owned(), agent: config.new_agent() })
    }

    /// The cache's directory.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// A directory to work in, on the cache's own disk.
    pub(crate) fn scratch(&self, prefix: &str) -> Result<Scratch, BuildError> {
        Scratch::new(&self.directory.join("tmp"), prefix)
    }

    /// Unpacked packages: those that earlier builds kept, or none for a `fresh` build that works in `scratch`.
    pub(crate) fn shelf(&self, fresh: bool, scratch: &Path) -> Result<Shelf, BuildError> {
        let directory = if fresh { scratch } else { &self.directory }.join("unpacked");
        Shelf::open(&directory).at("making", &directory)
    }

    fn object(&self, sha256: &str) -> PathBuf {
        self.directory.join("objects").join(sha256.get(..2).unwrap_or("xx")).join(sha256)
    }

    /// Whether a file of this hash is here.
    pub fn has(&self, expected: &Expected) -> bool {
        fs::metadata(self.object(&expected.sha256)).is_ok_and(|m| m.len() == expected.size)
    }

    /// The verified file, open at its beginning; `None` when it is absent or damaged (it is then removed).
    pub fn open_verified(&self, expected: &Expected) -> Result<Option<fs::File>, BuildError> {
        let path = self.object(&expected.sha256);
        let mut file = match fs::File::open(&path) {
            Ok(file) => file,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(e).at("reading", &path),
        };
        let (mut hash, mut buffer) = (Sha256::new(), vec![0; 1 << 20]);
        loop {
            match file.read(&mut buffer).at("reading", &path)? {
                0 => break,
                count => hash.update(&buffer[..count]),
            }
        }
        if hex::encode(hash.finalize()) == expected.sha256 {
            file.seek(SeekFrom::Start(0)).at("reading", &path)?;
            return Ok(Some(file));
        }
        fs::remove_file(&path).at("removing the damaged", &path)?;
        Ok(None)
    }

    /// The verified file, from here or from `url`.
    pub fn open_or_get(&self, url: &str, expected: &Expected) -> Result<fs::File, BuildError> {
        if let Some(file) = self.open_verified(expected)? {
            return Ok(file);
        }
        self.download(url, expected, &|_| ())?;
        self.open_verified(expected)?.ok_or_else(|| BuildError::Mismatch {
            what: url.to_owned(),
            expected: expected.sha256.clone(),
            found: "changed on this disk while it was read".to_owned(),
        })
    }

    /// The verified bytes of a file, from here or from `url`.
    pub fn get(&self, url: &str, expected: &Expected) -> Result<Vec<u8>, BuildError> {
        let mut bytes = vec![];
        self.open_or_get(url, expected)?
            .read_to_end(&mut bytes)
            .at("reading", self.object(&expected.sha256))?;
        Ok(bytes)
    }

    /// Fetches a file into the cache, going on with an interrupted download; `heard` gets each count of new bytes.
    pub fn download(&self, url: &str, expected: &Expected, heard: &dyn Fn(u64)) -> Result<(), BuildError> {
        let partial = self.directory.join("partial").join(&expected.sha256);
        let Some(mut file) = self.open_partial(&partial, expected)? else { return Ok(()) };
        let mut hash = Sha256::new();
        let mut kept = Vec::new();
        file.read_to_end(&mut kept).at("reading", &partial)?;
        hash.update(&kept);
        let mut have = kept.len() as u64;
        if have > expected.size {
            (have, hash) = (0, Sha256::new());
        }
        for attempt in 0.. {
            if have == expected.size {
                break;
            }
            match self.fetch_rest(url, expected, &mut file, &mut have, &mut hash, heard) {
                Ok(()) => {}
                Err(BuildError::Fetch { .. }) if attempt < 2 => {
                    std::thread::sleep(Duration::from_millis(300 << attempt));
                }
                Err(other) => return Err(other),
            }
        }
        let found = hex::encode(hash.finalize());
        if found != expected.sha256 {
            fs::remove_file(&partial).at("removing", &partial)?;
            let what = url.to_owned();
            return Err(BuildError::Mismatch {
                what,
                expected: format!("SHA-256 {}", expected.sha256),
                found: format!("SHA-256 {found}"),
            });
        }
        file.set_len(expected.size).at("writing", &partial)?;
        let object = self.object(&expected.sha256);
        if let Some(parent) = object.parent() {
            fs::create_dir_all(parent).at("making", parent)?;
        }
        fs::rename(&partial, &object).at("moving a download to", &object)
    }

    /// The file to go on with, locked against other builds; `None` when one of them has finished it meanwhile.
    fn open_partial(
        &self,
        partial: &Path,
        expected: &Expected,
    ) -> Result<Option<Flock<fs::File>>, BuildError> {
        loop {
            let mut options = fs::OpenOptions::new();
            let file = options.read(true).write(true).create(true).truncate(false).open(partial);
            let file = Flock::lock(file.at("opening", partial)?, FlockArg::LockExclusive)
                .map_err(|(_, e)| std::io::Error::from(e))
                .at("locking", partial)?;
            if self.has(expected) {
                let _ = fs::remove_file(partial);
                return Ok(None);
            }
            // What was locked may have been moved or removed while we waited for it.
            let inode =
                |m: std::io::Result<fs::Metadata>| m.map(|m| std::os::unix::fs::MetadataExt::ino(&m)).ok();
            if inode(file.metadata()) == inode(fs::metadata(partial)) {
                return Ok(Some(file));
            }
        }
    }

    fn fetch_rest(
        &self,
        url: &str,
        expected: &Expected,
        file: &mut fs::File,
        have: &mut u64,
        hash: &mut Sha256,
        heard: &dyn Fn(u64),
    ) -> Result<(), BuildError> {
        let fail = |reason: String| BuildError::Fetch { url: url.to_owned(), reason };
        let mut request = self.agent.get(url);
        if *have > 0 {
            request = request.header("Range", format!("bytes={have}-"));
        }
        let response = request.call().map_err(|e| fail(explain(&e)))?;
        match response.status().as_u16() {
            206 if *have > 0 => {}
            200 => {
                *have = 0;
                *hash = Sha256::new();
            }
            status => return Err(fail(format!("the server answered with status {status}"))),
        }
        file.seek(SeekFrom::Start(*have)).at("writing", self.directory.join("partial"))?;
        let mut body = response.into_body().into_reader();
        let mut buffer = vec![0; 256 << 10];
        loop {
            let count = body.read(&mut buffer).map_err(|e| fail(e.to_string()))?;
            if count == 0 {
                break;
            }
            if *have + count as u64 > expected.size {
                return Err(BuildError::Mismatch {
                    what: url.to_owned(),
                    expected: format!("{} bytes", expected.size),
                    found: "more bytes".to_owned(),
                });
            }
            file.write_all(&buffer[..count]).at("writing", self.directory.join("partial"))?;
            hash.update(&buffer[..count]);
            *have += count as u64;
            heard(count as u64);
        }
        if *have < expected.size {
            return Err(fail(format!("the connection ended after {have} of {} bytes", expected.size)));
        }
        Ok(())
    }

    /// A small file whose hash is not known before; `None` when the server has none (404).
    pub fn small(&self, url: &str) -> Result<Option<Vec<u8>>, BuildError> {
        let fail = |reason: String| BuildError::Fetch { url: url.to_owned(), reason };
        let mut response = self.agent.get(url).call().map_err(|e| fail(explain(&e)))?;
        match response.status().as_u16() {
            200 => {
                let body = response.body_mut().with_config().limit(16 << 20).read_to_vec();
                body.map(Some).map_err(|e| fail(explain(&e)))
            }
            404 => Ok(None),
            status => Err(fail(format!("the server answered with status {status}"))),
        }
    }
}

fn explain(error: &ureq::Error) -> String {
    match error {
        ureq::Error::HostNotFound => "this host name is not known; is the network up?".to_owned(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use std::{io::BufRead, net::TcpListener, sync::mpsc};

    use super::*;

    /// A server that answers each connection with the next of `answers`, and tells what was asked.
    fn server(answers: Vec<Vec<u8>>) -> (String, mpsc::Receiver<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/pool/x.deb", listener.local_addr().unwrap());
        let (tell, asked) = mpsc::channel();
        std::thread::spawn(move || {
            for answer in answers {
                let (mut stream, _) = listener.accept().unwrap();
                let mut request = String::new();
                for line in std::io::BufReader::new(&stream).lines().map_while(Result::ok) {
                    if line.is_empty() {
                        break;
                    }
                    request += &format!("{}\n", line.to_lowercase());
                }
                let _ = tell.send(request);
                let _ = stream.write_all(&answer);
            }
        });
        (url, asked)
    }

    fn answer(status: &str, length: usize, body: &[u8]) -> Vec<u8> {
        let head = format!("HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n");
        [head.as_bytes(), body].concat()
    }

    fn expected(content: &[u8]) -> Expected {
        Expected { size: content.len() as u64, sha256: hex::encode(Sha256::digest(content)) }
    }

    fn cache() -> (tempfile::TempDir, Cache) {
        let directory = tempfile::tempdir().unwrap();
        let mut cache = Cache::open(directory.path(), None).unwrap();
        // The tests' server is on this machine: no proxy of the environment in between.
        cache.agent = agent_without_proxy();
        (directory, cache)
    }

    fn agent_without_proxy() -> ureq::Agent {
        ureq::Agent::config_builder().http_status_as_error(false).proxy(None).build().new_agent()
    }

    #[test]
    fn goes_on_where_the_connection_broke() {
        let content = b"0123456789".repeat(100);
        let (url, asked) = server(vec![
            answer("200 OK", content.len(), &content[..300]),
            answer("206 Partial Content", content.len() - 300, &content[300..]),
        ]);
        let (_directory, cache) = cache();
        assert_eq!(cache.get(&url, &expected(&content)).unwrap(), content);
        assert!(!asked.recv().unwrap().contains("range:"));
        assert!(asked.recv().unwrap().contains("range: bytes=300-"));
        // From here on without a server.
        assert_eq!(cache.get(&url, &expected(&content)).unwrap(), content);
    }

    #[test]
    fn the_next_run_goes_on_where_this_one_was_stopped() {
        let content = b"0123456789".repeat(100);
        let cut = |from: usize, to: usize| answer("200 OK", content.len() - from, &content[from..to]);
        let gone = answer("503 Away", 0, b"");
        let (url, _asked) = server(vec![cut(0, 400), gone.clone(), gone]);
        let (directory, first) = cache();
        let error = first.get(&url, &expected(&content)).unwrap_err().to_string();
        assert!(error.contains("503"), "{error}");
        drop(first);
        let (url, asked) = server(vec![answer("206 Partial Content", content.len() - 400, &content[400..])]);
        let mut second = Cache::open(directory.path(), None).unwrap();
        second.agent = agent_without_proxy();
        assert_eq!(second.get(&url, &expected(&content)).unwrap(), content);
        assert!(asked.recv().unwrap().contains("range: bytes=400-"));
    }

    #[test]
    fn a_server_without_ranges_starts_again() {
        let content = b"abc".repeat(1000);
        let (url, _asked) = server(vec![
            answer("200 OK", content.len(), &content[..9]),
            answer("200 OK", content.len(), &content),
        ]);
        let (_directory, cache) = cache();
        assert_eq!(cache.get(&url, &expected(&content)).unwrap(), content);
    }

    #[test]
    fn refuses_other_bytes_and_keeps_none_of_them() {
        let content = b"right";
        for wrong in [&b"wrong"[..], b"right and more"] {
            let (url, _asked) = server(vec![answer("200 OK", wrong.len(), wrong)]);
            let (directory, cache) = cache();
            let error = cache.get(&url, &expected(content)).unwrap_err();
            assert!(matches!(error, BuildError::Mismatch { .. }), "{error}");
            assert!(!cache.has(&expected(content)));
            let kept = directory.path().join("partial").join(expected(content).sha256);
            assert!(!kept.exists() || fs::metadata(kept).unwrap().len() <= content.len() as u64);
        }
    }

    #[test]
    fn damage_on_disk_is_fetched_again() {
        let content = b"content".to_vec();
        let (url, _asked) = server(vec![answer("200 OK", 7, &content), answer("200 OK", 7, &content)]);
        let (_directory, cache) = cache();
        cache.get(&url, &expected(&content)).unwrap();
        fs::write(cache.object(&expected(&content).sha256), b"c0ntent").unwrap();
        assert_eq!(cache.get(&url, &expected(&content)).unwrap(), content);
    }

    #[test]
    fn says_what_the_server_said() {
        let (url, _asked) = server(vec![
            answer("500 Oops", 0, b""),
            answer("500 Oops", 0, b""),
            answer("500 Oops", 0, b""),
            answer("404 Not Found", 0, b""),
        ]);
        let (_directory, cache) = cache();
        let error = cache.get(&url, &expected(b"x")).unwrap_err().to_string();
        assert!(error.contains("status 500"), "{error}");
        assert_eq!(cache.small(&url).unwrap(), None);
    }
}
