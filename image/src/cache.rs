//! Downloads, kept by their SHA-256: what was fetched once and verified is never fetched again.
//!
//! ```text
//! CACHE/objects/ab/abcd...      complete and verified when it was put there; verified again when it is read
//! CACHE/partial/abcd...         a download that was interrupted; the next one goes on from its end
//! CACHE/tools/HASH/             a tool's packages, unpacked
//! ```

use std::{
    fs,
    io::{Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
    time::Duration,
};

use sha2::{Digest, Sha256};

use crate::error::{At, BuildError};

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
        for part in ["objects", "partial", "tools"] {
            let path = directory.join(part);
            fs::create_dir_all(&path).at("making the cache directory", &path)?;
        }
        let chosen = ureq::Proxy::try_from_env().or_else(|| proxy.and_then(|p| ureq::Proxy::new(p).ok()));
        let config = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .proxy(chosen)
            .timeout_connect(Some(Duration::from_secs(20)))
            .timeout_recv_response(Some(Duration::from_secs(60)))
            .timeout_per_read(Some(Duration::from_secs(60)))
            .user_agent(concat!("labshift/", env!("CARGO_PKG_VERSION")))
            .build();
        Ok(Cache { directory: directory.to_owned(), agent: config.new_agent() })
    }

    /// The cache's directory.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    fn object(&self, sha256: &str) -> PathBuf {
        self.directory.join("objects").join(sha256.get(..2).unwrap_or("xx")).join(sha256)
    }

    /// Whether a file of this hash is here.
    pub fn has(&self, expected: &Expected) -> bool {
        fs::metadata(self.object(&expected.sha256)).is_ok_and(|m| m.len() == expected.size)
    }

    /// The verified bytes of a file that is here; `None` when it is absent or damaged (it is then removed).
    pub fn read(&self, expected: &Expected) -> Result<Option<Vec<u8>>, BuildError> {
        let path = self.object(&expected.sha256);
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(e).at("reading", &path),
        };
        if hex::encode(Sha256::digest(&bytes)) == expected.sha256 {
            return Ok(Some(bytes));
        }
        fs::remove_file(&path).at("removing the damaged", &path)?;
        Ok(None)
    }

    /// The verified bytes of a file, from here or from `url`.
    pub fn get(&self, url: &str, expected: &Expected) -> Result<Vec<u8>, BuildError> {
        if let Some(bytes) = self.read(expected)? {
            return Ok(bytes);
        }
        self.download(url, expected, &|_| ())?;
        self.read(expected)?.ok_or_else(|| BuildError::Mismatch {
            what: url.to_owned(),
            expected: expected.sha256.clone(),
            found: "changed on this disk while it was read".to_owned(),
        })
    }

    /// Fetches a file into the cache, going on with an interrupted download; `heard` gets each count of new bytes.
    pub fn download(&self, url: &str, expected: &Expected, heard: &dyn Fn(u64)) -> Result<(), BuildError> {
        let partial = self.directory.join("partial").join(&expected.sha256);
        let mut file = fs::OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&partial)
            .at("opening", &partial)?;
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
        ureq::Error::TlsRequired => "this program reads http mirrors only (what comes is verified by OpenPGP); use the mirror's http address".to_owned(),
        other => other.to_string(),
    }
}
