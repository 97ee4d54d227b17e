//! Buckets of S3 services: images lie there under the same paths as in a store, for a cache or a content network to serve.
//!
//! ```text
//! s3://BUCKET/PREFIX   ->   PREFIX/images/NAME/GENERATION/FILE     the manifest comes last
//!                           PREFIX/channels/NAME[@CHANNEL]         the full generation
//! ```
//!
//! What is larger than one request may be goes in parts, and appears when the last one is there ("Multipart upload").
//!
//! Requests are signed as "AWS Signature Version 4" asks: four HMACs over a text that names the request. The SDK would bring
//! more crates than the rest of the builder for three verbs.

use std::{collections::BTreeMap, io::Read};

use hmac::{Hmac, Mac};
use jiff::Timestamp;
use labshift_model::{
    manifest::{FileEntry, Manifest},
    paths,
};
use rsa::sha2::{Digest, Sha256};
use ureq::SendBody;

use crate::{
    channel::STABLE,
    error::BuildError,
    inspect::Inspected,
    push::{Destination, signed},
};

/// Who asks.
#[derive(Clone)]
pub struct Credentials {
    /// Access key.
    pub id: String,
    /// Secret key.
    pub secret: String,
    /// Token of a session, for keys that pass.
    pub session: Option<String>,
}

/// A bucket, and a place in it.
pub struct Bucket {
    shown: String,
    /// `https://HOST` or, with an endpoint of one's own, `https://HOST/BUCKET`.
    base: String,
    host: String,
    /// Path of the bucket on the host, and of the prefix in it: empty or `/...`.
    root: String,
    prefix: String,
    region: String,
    credentials: Credentials,
    agent: ureq::Agent,
    /// [`LARGEST`] and [`PART`].
    limits: (u64, u64),
}

const HASH_HEADER: &str = "x-amz-meta-sha256";

/// Bytes that one request may bring at most (Amazon S3, "Multipart upload limits").
const LARGEST: u64 = 5 << 30;

/// Bytes of a part, which is held in memory: its hash is signed before it is sent.
const PART: u64 = 32 << 20;

/// Parts that an object may have.
const PARTS: u64 = 10_000;

fn sha256(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

fn hmac(key: &[u8], text: &str) -> Vec<u8> {
    // HMAC takes keys of any length.
    let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(key) else { return vec![] };
    mac.update(text.as_bytes());
    mac.finalize().into_bytes().to_vec()
}

/// The `Authorization` header of a request (AWS, "Signature Version 4"). `headers` are those that are signed, with `host`, in lower
/// case; `time` is as in `x-amz-date`; `path` and `query` are encoded as they go out, the query's names in order and each with a `=`.
fn authorization(
    (method, path, query): (&str, &str, &str),
    headers: &BTreeMap<String, String>,
    payload: &str,
    time: &str,
    region: &str,
    credentials: &Credentials,
) -> String {
    let day = time.get(..8).unwrap_or_default();
    let names = headers.keys().map(String::as_str).collect::<Vec<_>>().join(";");
    let listed: String = headers.iter().map(|(name, value)| format!("{name}:{}\n", value.trim())).collect();
    let request = format!("{method}\n{path}\n{query}\n{listed}\n{names}\n{payload}");
    let scope = format!("{day}/{region}/s3/aws4_request");
    let text = format!("AWS4-HMAC-SHA256\n{time}\n{scope}\n{}", sha256(request.as_bytes()));
    let key = [region, "s3", "aws4_request"]
        .iter()
        .fold(hmac(format!("AWS4{}", credentials.secret).as_bytes(), day), |key, part| hmac(&key, part));
    let signature = hex::encode(hmac(&key, &text));
    format!(
        "AWS4-HMAC-SHA256 Credential={}/{scope},SignedHeaders={names},Signature={signature}",
        credentials.id
    )
}

/// A path as it goes out: everything but unreserved letters and `/` in percent signs.
fn encoded(path: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.~/".contains(&b);
    path.bytes().map(|b| if plain(b) { char::from(b).to_string() } else { format!("%{b:02X}") }).collect()
}

/// A value of a query as it goes out: everything but unreserved letters in percent signs.
fn encoded_value(value: &str) -> String {
    encoded(value).replace('/', "%2F")
}

struct Answer {
    status: u16,
    size: Option<u64>,
    hash: Option<String>,
    etag: Option<String>,
    body: Vec<u8>,
}

impl Bucket {
    /// `url` is `s3://BUCKET/PREFIX`; without an `endpoint` the bucket is Amazon's.
    pub fn new(
        url: &str,
        endpoint: Option<&str>,
        region: &str,
        credentials: Credentials,
        agent: ureq::Agent,
    ) -> Result<Bucket, BuildError> {
        let bad = |reason: &str| BuildError::Push { url: url.to_owned(), reason: reason.to_owned() };
        let rest = url.strip_prefix("s3://").ok_or_else(|| bad("write s3://BUCKET/PREFIX"))?;
        let (bucket, prefix) =
            rest.trim_end_matches('/').split_once('/').unwrap_or((rest.trim_end_matches('/'), ""));
        if bucket.is_empty() {
            return Err(bad("it names no bucket: write s3://BUCKET/PREFIX"));
        }
        let (base, root) = match endpoint {
            None => (format!("https://{bucket}.s3.{region}.amazonaws.com"), String::new()),
            Some(endpoint) => (endpoint.trim_end_matches('/').to_owned(), format!("/{bucket}")),
        };
        let host = base.split_once("://").map(|(_, host)| host.to_owned());
        let host = host.filter(|h| !h.is_empty() && !h.contains('/'));
        let host = host.ok_or_else(|| bad("the endpoint must be https://HOST or https://HOST:PORT"))?;
        let prefix = if prefix.is_empty() { String::new() } else { format!("/{prefix}") };
        let region = region.to_owned();
        let limits = (LARGEST, PART);
        Ok(Bucket { shown: url.to_owned(), base, host, root, prefix, region, credentials, agent, limits })
    }

    fn fail(&self, reason: impl ToString) -> BuildError {
        BuildError::Push { url: self.shown.clone(), reason: reason.to_string() }
    }

    fn path_of(&self, key: &str) -> String {
        encoded(&format!("{}{}/{key}", self.root, self.prefix))
    }

    /// Sends a signed request. `payload` is the SHA-256 of its body: the service refuses another body.
    fn ask(
        &self,
        method: &str,
        (key, query): (&str, &str),
        further: &[(&str, String)],
        (payload, size): (&str, u64),
        body: &mut dyn Read,
    ) -> Result<Answer, BuildError> {
        let path = self.path_of(key);
        let time = Timestamp::now().strftime("%Y%m%dT%H%M%SZ").to_string();
        let mut headers: BTreeMap<String, String> =
            further.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect();
        headers.insert("x-amz-date".into(), time.clone());
        headers.insert("x-amz-content-sha256".into(), payload.to_owned());
        if let Some(session) = &self.credentials.session {
            headers.insert("x-amz-security-token".into(), session.clone());
        }
        let mut signed = headers.clone();
        signed.insert("host".into(), self.host.clone());
        let authorization =
            authorization((method, &path, query), &signed, payload, &time, &self.region, &self.credentials);
        let asked = if query.is_empty() { String::new() } else { format!("?{query}") };
        let uri = format!("{}{path}{asked}", self.base);
        let mut request = ureq::http::Request::builder().method(method).uri(uri);
        for (name, value) in &headers {
            request = request.header(name, value);
        }
        request = request.header("authorization", authorization);
        let mut body = body;
        let answer = if matches!(method, "PUT" | "POST") {
            let request = request.header("content-length", size.to_string());
            let request = request.body(SendBody::from_reader(&mut body)).map_err(|e| self.fail(e))?;
            self.agent.run(request)
        } else {
            self.agent.run(request.body(()).map_err(|e| self.fail(e))?)
        };
        let mut answer = answer.map_err(|e| self.fail(e))?;
        let header = |name: &str| Some(answer.headers().get(name)?.to_str().ok()?.to_owned());
        let (size, hash) = (header("content-length").and_then(|l| l.parse().ok()), header(HASH_HEADER));
        let etag = header("etag");
        let status = answer.status().as_u16();
        let body = match method {
            "HEAD" => vec![],
            _ => answer.body_mut().with_config().limit(16 << 20).read_to_vec().map_err(|e| self.fail(e))?,
        };
        Ok(Answer { status, size, hash, etag, body })
    }

    fn done(&self, what: &str, answer: Answer) -> Result<Answer, BuildError> {
        let part = |tag: &str| element(&answer.body, tag);
        // A copy may fail with status 200 and say so in its body.
        if (200..300).contains(&answer.status) && part("Code").is_none() {
            return Ok(answer);
        }
        let said = [part("Code"), part("Message")].into_iter().flatten().collect::<Vec<_>>().join(": ");
        let hint =
            if answer.status == 403 { "; check the keys, the region and what they may do" } else { "" };
        Err(self.fail(format!("{what}: status {} {said}{hint}", answer.status)))
    }

    /// Sends what fits into memory.
    fn bytes(
        &self,
        method: &str,
        at: (&str, &str),
        further: &[(&str, String)],
        bytes: &[u8],
    ) -> Result<Answer, BuildError> {
        let answer = self.ask(method, at, further, (&sha256(bytes), bytes.len() as u64), &mut &bytes[..])?;
        self.done(at.0, answer)
    }

    fn put(&self, key: &str, bytes: &[u8]) -> Result<(), BuildError> {
        self.bytes("PUT", (key, ""), &[(HASH_HEADER, sha256(bytes))], bytes).map(drop)
    }

    /// Sends a file in parts. It appears when all are there; when one can't be sent, none of them stays.
    fn in_parts(&self, key: &str, entry: &FileEntry, body: &mut dyn Read) -> Result<(), BuildError> {
        let begun = self.bytes("POST", (key, "uploads="), &[(HASH_HEADER, entry.sha256.clone())], b"")?;
        let upload = element(&begun.body, "UploadId")
            .ok_or_else(|| self.fail(format!("{key}: the service gives no name to an upload in parts")))?;
        let upload = encoded_value(&upload);
        let sent = self.parts(key, &upload, entry, body);
        if sent.is_err() {
            // What was sent would be kept, and paid for, until somebody removes it. The first error is the one to tell.
            let _ = self.bytes("DELETE", (key, &format!("uploadId={upload}")), &[], b"");
        }
        sent
    }

    fn parts(
        &self,
        key: &str,
        upload: &str,
        entry: &FileEntry,
        body: &mut dyn Read,
    ) -> Result<(), BuildError> {
        let size = self.limits.1.max(entry.size.div_ceil(PARTS));
        let (mut list, mut whole) = (String::new(), Sha256::new());
        for number in 1..=entry.size.div_ceil(size) {
            let mut part = vec![];
            body.take(size).read_to_end(&mut part).map_err(|e| self.fail(format!("reading {key}: {e}")))?;
            whole.update(&part);
            let query = format!("partNumber={number}&uploadId={upload}");
            let etag = self.bytes("PUT", (key, &query), &[], &part)?.etag;
            let etag = etag.ok_or_else(|| self.fail(format!("{key}: the service names no part {number}")))?;
            list += &format!("<Part><PartNumber>{number}</PartNumber><ETag>{etag}</ETag></Part>");
        }
        // The service knows the parts' hashes only.
        if hex::encode(whole.finalize()) != entry.sha256 {
            return Err(self.fail(format!("{key} changed while it was sent; push again")));
        }
        let list = format!("<CompleteMultipartUpload>{list}</CompleteMultipartUpload>");
        self.bytes("POST", (key, &format!("uploadId={upload}")), &[], list.as_bytes()).map(drop)
    }

    fn get(&self, key: &str) -> Result<Option<Vec<u8>>, BuildError> {
        let answer = self.ask("GET", (key, ""), &[], (&sha256(b""), 0), &mut std::io::empty())?;
        match answer.status {
            404 => Ok(None),
            _ => self.done(key, answer).map(|a| Some(a.body)),
        }
    }

    /// Files of the generation that is stable there: hash to key.
    fn known(&self, name: &str) -> BTreeMap<String, String> {
        let read = || {
            let generation = String::from_utf8(self.get(&channel_key(name, STABLE)).ok()??).ok()?;
            let directory = format!("images/{name}/{}", generation.trim());
            let manifest = self.get(&format!("{directory}/{}", paths::MANIFEST)).ok()??;
            let files = Manifest::from_bytes(&manifest).ok()?.files;
            Some(files.into_iter().map(|(file, e)| (e.sha256, format!("{directory}/{file}"))).collect())
        };
        read().unwrap_or_default()
    }
}

/// The text of the first element of this name in an answer of the service.
fn element(body: &[u8], tag: &str) -> Option<String> {
    let text = String::from_utf8_lossy(body);
    let (_, rest) = text.split_once(&format!("<{tag}>"))?;
    Some(rest.split_once("</")?.0.to_owned())
}

fn channel_key(name: &str, channel: &str) -> String {
    match channel {
        STABLE => format!("channels/{name}"),
        other => format!("channels/{name}@{other}"),
    }
}

impl Destination for Bucket {
    fn missing(&self, name: &str, image: &Inspected) -> Result<Vec<String>, BuildError> {
        let directory = format!("images/{name}/{}", image.generation);
        let known = self.known(name);
        let mut missing = vec![];
        for (file, entry) in &image.manifest.files {
            let key = format!("{directory}/{file}");
            let answer = self.ask("HEAD", (&key, ""), &[], (&sha256(b""), 0), &mut std::io::empty())?;
            if answer.status == 403 {
                self.done(&key, answer)?;
                continue;
            }
            if answer.status == 200
                && answer.size == Some(entry.size)
                && answer.hash.as_deref() == Some(&entry.sha256)
            {
                continue;
            }
            // What another generation has is copied within the service.
            if let Some(from) = known.get(&entry.sha256).filter(|_| entry.size <= self.limits.0) {
                let bucket = self.shown.trim_start_matches("s3://").split('/').next().unwrap_or_default();
                let source = encoded(&format!("/{bucket}{}/{from}", self.prefix));
                let further = [("x-amz-copy-source", source)];
                let answer =
                    self.ask("PUT", (&key, ""), &further, (&sha256(b""), 0), &mut std::io::empty())?;
                if self.done(&key, answer).is_ok() {
                    continue;
                }
            }
            missing.push(file.clone());
        }
        Ok(missing)
    }

    fn send(
        &self,
        (name, generation): (&str, &str),
        file: &str,
        entry: &FileEntry,
        body: &mut dyn Read,
    ) -> Result<(), BuildError> {
        let key = format!("images/{name}/{generation}/{file}");
        if entry.size > self.limits.0 {
            return self.in_parts(&key, entry, body);
        }
        let further = [(HASH_HEADER, entry.sha256.clone())];
        let answer = self.ask("PUT", (&key, ""), &further, (&entry.sha256, entry.size), body)?;
        self.done(&key, answer).map(drop)
    }

    fn publish(&self, name: &str, image: &Inspected, channel: &str) -> Result<(), BuildError> {
        let (manifest, signature) = signed(image)?;
        let directory = format!("images/{name}/{}", image.generation);
        self.put(&format!("{directory}/{}", paths::SIGNATURE), &signature)?;
        self.put(&format!("{directory}/{}", paths::MANIFEST), &manifest)?;
        self.put(&channel_key(name, channel), format!("{}\n", image.generation).as_bytes())
    }
}

#[cfg(test)]
#[path = "s3_tests.rs"]
mod tests;
