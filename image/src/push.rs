//! Images sent to another host: to a store that `labshift serve` serves, or to a bucket of an S3 service.
//!
//! The other side says what it lacks; only that is sent. An image appears there whole or not at all, because its manifest,
//! or the server's own rename, comes last.

use std::{
    fs::File,
    io::{self, Read},
    path::Path,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use labshift_model::{
    manifest::{self, FileEntry, ImageKind, Signature},
    paths,
};
use serde::{Deserialize, de::DeserializeOwned};
use ureq::{
    SendBody,
    tls::{Certificate, RootCerts, TlsConfig},
};

use crate::{
    error::{At, BuildError},
    inspect::{Inspected, inspect},
    progress::{Progress, Stage},
    receive::{Missing, Offer, Publish},
    store::Store,
};

/// Somewhere that takes images.
pub trait Destination {
    /// Offers an image; the names of files that are still to be sent.
    fn missing(&self, name: &str, image: &Inspected) -> Result<Vec<String>, BuildError>;
    /// Sends one file; `body` gives its bytes.
    fn send(
        &self,
        at: (&str, &str),
        file: &str,
        entry: &FileEntry,
        body: &mut dyn Read,
    ) -> Result<(), BuildError>;
    /// Makes the image appear, and points a channel to it.
    fn publish(&self, name: &str, image: &Inspected, channel: &str) -> Result<(), BuildError>;
}

/// A pushed image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pushed {
    /// Image.
    pub name: String,
    /// Full generation.
    pub generation: String,
    /// Files that were sent.
    pub sent: Vec<String>,
    /// Bytes of them.
    pub bytes: u64,
    /// Number of files that the other side had.
    pub had: usize,
}

/// Verifies an image and sends it.
pub fn push(
    store: &Store,
    reference: &str,
    to: &dyn Destination,
    channel: &str,
    progress: &dyn Progress,
) -> Result<Pushed, BuildError> {
    let (name, generation) = store.find(reference)?;
    let image = inspect(store, &name, Some(&generation))?;
    let sent = to.missing(&name, &image)?;
    let entry = |file: &String| {
        image.manifest.files.get(file).ok_or_else(|| BuildError::Refused {
            name: name.clone(),
            reason: format!("the other side asks for a file \"{file}\", which the image does not have"),
        })
    };
    let mut total = 0;
    for file in &sent {
        total += entry(file)?.size;
    }
    progress.stage(Stage::Send, &format!("{} files, {} MiB", sent.len(), total >> 20));
    let done = AtomicU64::new(0);
    for file in &sent {
        let path = image.directory.join(file);
        let inner = File::open(&path).at("opening", &path)?;
        let mut body = Told { inner, done: &done, total, progress };
        to.send((&name, &generation), file, entry(file)?, &mut body)?;
    }
    to.publish(&name, &image, channel)?;
    let had = image.manifest.files.len() - sent.len();
    Ok(Pushed { name, generation, sent, bytes: total, had })
}

/// A file that tells how far it was read.
struct Told<'a> {
    inner: File,
    done: &'a AtomicU64,
    total: u64,
    progress: &'a dyn Progress,
}

impl Read for Told<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        let now = self.done.fetch_add(count as u64, Ordering::Relaxed) + count as u64;
        self.progress.bytes(Stage::Send, now.min(self.total), self.total);
        Ok(count)
    }
}

/// How to connect. `authority` is a PEM file with the certificate of the other side's own authority.
pub fn agent(authority: Option<&Path>) -> Result<ureq::Agent, BuildError> {
    let roots = match authority {
        None => RootCerts::PlatformVerifier,
        Some(path) => {
            let pem = std::fs::read(path).at("reading", path)?;
            let certificate = Certificate::from_pem(&pem).map_err(|e| BuildError::Io {
                doing: "reading the certificate in",
                path: path.to_owned(),
                why: io::Error::other(e.to_string()),
            })?;
            RootCerts::new_with_certs(&[certificate])
        }
    };
    let config = ureq::Agent::config_builder()
        .http_status_as_error(false)
        .timeout_connect(Some(Duration::from_secs(20)))
        .tls_config(TlsConfig::builder().root_certs(roots).build())
        .user_agent(concat!("labshift/", env!("CARGO_PKG_VERSION")))
        .build();
    Ok(config.new_agent())
}

/// A store behind `labshift serve`.
pub struct Server {
    url: String,
    token: String,
    /// Public keys of servers that the images believe.
    believed: Vec<String>,
    agent: ureq::Agent,
}

#[derive(Deserialize)]
struct Problem {
    problem: String,
}

impl Server {
    /// `url` is the server's address; the token is its admin's. Plain http is for this machine only: the token would be
    /// readable on the way.
    ///
    /// `believed` are the server keys that the images were built with: see [`Store::servers`].
    pub fn new(
        url: &str,
        token: &str,
        believed: Vec<String>,
        agent: ureq::Agent,
    ) -> Result<Server, BuildError> {
        let url = url.trim_end_matches('/').to_owned();
        let here = ["http://127.0.0.1", "http://localhost", "http://[::1]"];
        let is_here =
            here.iter().any(|h| url.strip_prefix(h).is_some_and(|r| r.is_empty() || r.starts_with(':')));
        if !url.starts_with("https://") && !is_here {
            let reason = "use https:// (labshift serve --https-port), or s3://; the token would be readable on the way";
            return Err(BuildError::Push { url, reason: reason.to_owned() });
        }
        Ok(Server { url, token: token.trim().to_owned(), believed, agent })
    }

    fn fail(&self, reason: impl ToString) -> BuildError {
        BuildError::Push { url: self.url.clone(), reason: reason.to_string() }
    }

    fn address(&self, (name, generation): (&str, &str), rest: &str) -> String {
        format!("{}/api/v1/store/{name}/{generation}{rest}", self.url)
    }

    fn answer(
        &self,
        answer: Result<ureq::http::Response<ureq::Body>, ureq::Error>,
    ) -> Result<Vec<u8>, BuildError> {
        let mut response = answer.map_err(|e| self.fail(e))?;
        let status = response.status().as_u16();
        let bytes =
            response.body_mut().with_config().limit(16 << 20).read_to_vec().map_err(|e| self.fail(e))?;
        if (200..300).contains(&status) {
            return Ok(bytes);
        }
        let said = serde_json::from_slice::<Problem>(&bytes).map(|p| p.problem);
        Err(self.fail(match (status, said) {
            (404, Err(_)) => {
                "there is no labshift server that takes images; push to its HTTPS port".to_owned()
            }
            (_, Ok(problem)) => problem,
            (status, Err(_)) => format!("the server answered with status {status}"),
        }))
    }

    fn ask<T: DeserializeOwned>(&self, url: &str, body: &impl serde::Serialize) -> Result<T, BuildError> {
        let request = self.agent.post(url).header("Authorization", format!("Bearer {}", self.token));
        let bytes = self.answer(request.send_json(body))?;
        serde_json::from_slice(&bytes).map_err(|e| self.fail(format!("its answer can't be read: {e}")))
    }
}

impl Destination for Server {
    fn missing(&self, name: &str, image: &Inspected) -> Result<Vec<String>, BuildError> {
        let (manifest, signature) = signed(image)?;
        let signature: Signature = serde_json::from_slice(&signature).map_err(|e| self.fail(e))?;
        let offer = Offer { manifest: String::from_utf8_lossy(&manifest).into_owned(), signature };
        let url = self.address((name, &image.generation), "");
        let Missing { missing, server } = self.ask(&url, &offer)?;
        if image.manifest.kind == ImageKind::Host && !self.believed.contains(&server) {
            return Err(self.fail(format!(
                "machines that boot {name} would not believe its boot answers; tell this store its key ({server}, its store's keys/server.pub) with `labshift image trust --answers`, and build again"
            )));
        }
        Ok(missing)
    }

    fn send(
        &self,
        at: (&str, &str),
        file: &str,
        entry: &FileEntry,
        body: &mut dyn Read,
    ) -> Result<(), BuildError> {
        let request = self.agent.put(self.address(at, &format!("/files/{file}")));
        let request = request.header("Authorization", format!("Bearer {}", self.token));
        let request = request.header("Content-Length", entry.size.to_string());
        let mut body = body;
        self.answer(request.send(SendBody::from_reader(&mut body))).map(drop)
    }

    fn publish(&self, name: &str, image: &Inspected, channel: &str) -> Result<(), BuildError> {
        let url = self.address((name, &image.generation), "/publish");
        self.ask::<serde_json::Value>(&url, &Publish { channel: channel.to_owned() }).map(drop)
    }
}

/// A generation's manifest and signature, as they lie in the store.
pub(crate) fn signed(image: &Inspected) -> Result<(Vec<u8>, Vec<u8>), BuildError> {
    let read = |file: &str| {
        let path = image.directory.join(file);
        std::fs::read(&path).at("reading", &path)
    };
    let manifest = read(paths::MANIFEST)?;
    debug_assert_eq!(manifest::generation_of(&manifest), image.generation);
    Ok((manifest, read(paths::SIGNATURE)?))
}
