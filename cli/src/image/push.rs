//! `labshift image push` and `image trust`: images for other hosts, and from them.

use anyhow::{Context, Result, bail};
use labshift_image::{
    push::{self, Destination, Server},
    receive::{self, With},
    s3::{Bucket, Credentials},
};
use labshift_model::manifest::short;
use serde_json::json;

use super::{existing, mebibytes, refused, watch::Watcher};
use crate::args::{ImagePush, ImageTrust};

/// `image push`.
pub fn push(arguments: &ImagePush, json: bool) -> Result<()> {
    let store = existing(&arguments.store)?;
    let to = destination(arguments, store.servers().map_err(refused)?)?;
    let watcher = Watcher::new(json);
    let pushed = push::push(&store, &arguments.image, &*to, &arguments.channel, &watcher).map_err(refused)?;
    watcher.end();
    let (name, generation) = (&pushed.name, &pushed.generation);
    if json {
        println!(
            "{}",
            json!({ "event": "pushed", "image": name, "generation": generation, "to": arguments.url,
                    "channel": arguments.channel, "sent": pushed.sent, "bytes": pushed.bytes, "had": pushed.had })
        );
        return Ok(());
    }
    println!(
        "{name}@{}: {} files ({}) sent to {}, {} were there; {} points to it",
        short(generation),
        pushed.sent.len(),
        mebibytes(pushed.bytes),
        arguments.url,
        pushed.had,
        arguments.channel
    );
    Ok(())
}

#[allow(clippy::disallowed_methods, reason = "the command line is the edge of the program")]
fn destination(arguments: &ImagePush, believed: Vec<String>) -> Result<Box<dyn Destination>> {
    let agent = push::agent(arguments.ca.as_deref()).map_err(refused)?;
    let url = &arguments.url;
    if !url.starts_with("s3://") {
        let file = &arguments.token_file;
        let token = std::fs::read_to_string(file)
            .with_context(|| format!("reading the server's admin token from {}", file.display()))?;
        return Ok(Box::new(Server::new(url, &token, believed, agent).map_err(refused)?));
    }
    let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let (Some(id), Some(secret)) = (variable("AWS_ACCESS_KEY_ID"), variable("AWS_SECRET_ACCESS_KEY")) else {
        bail!(
            "{url} needs keys: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (and AWS_SESSION_TOKEN for keys that pass)"
        );
    };
    let credentials = Credentials { id, secret, session: variable("AWS_SESSION_TOKEN") };
    let region = variable("AWS_REGION").or_else(|| variable("AWS_DEFAULT_REGION"));
    let region = region.unwrap_or_else(|| "us-east-1".to_owned());
    let endpoint = arguments.endpoint.as_deref();
    Ok(Box::new(Bucket::new(url, endpoint, &region, credentials, agent).map_err(refused)?))
}

/// `image trust`.
pub fn trust(arguments: &ImageTrust) -> Result<()> {
    let store = existing(&arguments.store)?;
    let text = std::fs::read_to_string(&arguments.key)
        .with_context(|| format!("reading {}", arguments.key.display()))?;
    let keys = labshift_model::manifest::trusted_keys(&text);
    if keys.is_empty() {
        bail!(
            "{} holds no public key; give the other store's keys/signing.pub or keys/server.pub",
            arguments.key.display()
        );
    }
    for line in text.lines().filter(|line| !labshift_model::manifest::trusted_keys(line).is_empty()) {
        let (with, does) = match arguments.answers {
            false => (With::Images, "takes images"),
            true => (With::Answers, "builds images that believe boot answers"),
        };
        receive::trust(&store, line, with).map_err(refused)?;
        println!("{} {does} that {} signed", arguments.store.display(), line.trim());
    }
    Ok(())
}
