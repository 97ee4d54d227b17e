//! `labshift image sign`: signatures for Secure Boot that are made after the build, here or elsewhere.

use std::path::Path;

use anyhow::{Context, Result};
use jiff::Timestamp;
use labshift_image::{
    Published,
    sign::{self, Signer},
};
use labshift_model::manifest::short;
use serde_json::json;

use super::{existing, refused};
use crate::args::ImageSign;

/// `image sign`.
pub fn sign(arguments: &ImageSign, json: bool) -> Result<()> {
    let store = existing(&arguments.store)?;
    let read = |path: &Path| {
        let bytes = std::fs::read(path).with_context(|| format!("reading {}", path.display()))?;
        Ok::<_, anyhow::Error>((path.display().to_string(), bytes))
    };
    let cert = arguments.cert.as_deref().map(read).transpose()?;
    let given = cert.as_ref().map(|(path, bytes)| (path.as_str(), &bytes[..]));
    let file = arguments.key.as_deref().or(arguments.attach.as_deref()).map(read).transpose()?;
    let Some((path, bytes)) = &file else {
        return tell(&sign::to_sign(&store, &arguments.image).map_err(refused)?, json);
    };
    let signer = if arguments.key.is_some() { Signer::Key(path, bytes) } else { Signer::Made(path, bytes) };
    let to = (arguments.channel.as_str(), Timestamp::now());
    let signed = sign::sign(&store, &arguments.image, given, signer, to).map_err(refused)?;
    if json {
        return crate::print_json(&json!({
            "image": signed.name, "before": signed.before, "generation": signed.generation,
            "new": signed.published == Published::New, "channel": arguments.channel, "signed_by": signed.subject,
        }));
    }
    let (name, before, generation) = (&signed.name, short(&signed.before), short(&signed.generation));
    println!("{name}@{generation} is {name}@{before} signed with the key of {}", signed.subject);
    println!("{name}: {} is now {generation}", arguments.channel);
    Ok(())
}

/// What a signer elsewhere needs.
fn tell(wanted: &sign::ToSign, json: bool) -> Result<()> {
    if json {
        return crate::print_json(&json!({
            "image": wanted.name, "generation": wanted.generation, "file": wanted.file,
            "authenticode_sha256": wanted.digest, "signed_by": wanted.signed_by,
        }));
    }
    println!("{}@{}", wanted.name, short(&wanted.generation));
    println!("file       {}", wanted.file.display());
    println!("digest     {} (Authenticode, SHA-256)", wanted.digest);
    match &wanted.signed_by[..] {
        [] => {
            println!("signed by  nobody yet; --key signs here, --attach takes what a signer elsewhere made")
        }
        names => println!("signed by  {}", names.join("; ")),
    }
    Ok(())
}
