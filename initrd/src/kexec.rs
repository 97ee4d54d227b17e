//! Into another generation without the firmware's start-up: kernel and initramfs are fetched and verified while everything still runs,
//! then the services stop as at any restart, and the kernel starts the next one itself (`kexec_file_load(2)`).

use std::{
    io::{Read, Write},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use labshift_model::{
    MacAddr,
    manifest::{Manifest, short},
    paths,
};
use sha2::{Digest, Sha256};
use ureq::Agent;

use crate::{
    server::{self, Asked, Trust},
    sys,
};

/// Whom to ask for the next generation, and whom to believe: kept from the boot, whose files are gone.
#[derive(Debug, Clone)]
pub struct Next {
    /// HTTP client.
    pub agent: Agent,
    /// Base URL of the server.
    pub server: String,
    /// This machine.
    pub mac: MacAddr,
    /// Keys and minimum.
    pub trust: Trust,
}

impl Next {
    /// Loads the kernel that the server wants this machine to run. Returns what it is, for people.
    pub fn load(&self) -> Result<String> {
        let answer = match server::ask(&self.agent, &self.server, self.mac, &self.trust)? {
            Asked::Answer(answer) => answer,
            Asked::Unknown(why) => bail!("{}: {why}", self.server),
        };
        let manifest = server::verify(&answer, &self.trust, None)?;
        let shown = format!("{} generation {}", answer.image, short(&answer.generation));
        let at = format!("{}{}/{}/{}", self.server, paths::IMAGES, answer.image, answer.generation);
        let kernel = self.fetch(&at, &manifest, paths::KERNEL)?;
        let initrd = self.fetch(&at, &manifest, paths::INITRD)?;
        let text = command_line(&manifest, &self.server, self.mac);
        sys::load_kernel(&kernel, &initrd, &text).with_context(|| format!("giving {shown} to the kernel"))?;
        Ok(shown)
    }

    /// Fetches one file of a generation into memory; it is what the signed manifest says, or an error.
    fn fetch(&self, at: &str, manifest: &Manifest, name: &str) -> Result<std::fs::File> {
        let wanted = manifest.files.get(name).with_context(|| format!("the manifest names no {name}"))?;
        let url = format!("{at}/{name}");
        let request = self.agent.get(&url).config().timeout_per_read(Some(Duration::from_secs(20))).build();
        let response = request.call().with_context(|| format!("fetching {url}"))?;
        if !response.status().is_success() {
            bail!("fetching {url}: the server answered {}", response.status());
        }
        let mut body = response.into_body().into_reader().take(wanted.size + 1);
        let mut file = sys::memory_file().context("making a file in memory")?;
        let (mut hash, mut size, mut buffer) = (Sha256::new(), 0, vec![0; 256 * 1024]);
        loop {
            let length = body.read(&mut buffer).with_context(|| format!("fetching {url}"))?;
            if length == 0 {
                break;
            }
            hash.update(&buffer[..length]);
            size += length as u64;
            file.write_all(&buffer[..length]).with_context(|| format!("keeping {name}"))?;
        }
        if size != wanted.size || hex::encode(hash.finalize()) != wanted.sha256 {
            bail!("{name} is not what the signed manifest says");
        }
        Ok(file)
    }
}

/// The command line that a boot program would give.
fn command_line(manifest: &Manifest, server: &str, mac: MacAddr) -> String {
    format!(
        "{} labshift.server={server} labshift.mac={mac} labshift.roothash={}",
        manifest.kernel_arguments, manifest.root.root_hash
    )
}
