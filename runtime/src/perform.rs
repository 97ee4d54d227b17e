//! Performs steps. Decides nothing: what a step needs is in the step, the desired state and the guest's record.
//! Every step may be repeated.

use std::{
    path::{Path, PathBuf},
    process::Stdio,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result, anyhow, bail};
use labshift_model::{
    context::{InitRequest, NodeContext},
    guest::{GuestSpec, SavedState},
    node::NodeDesired,
    paths,
};
use labshift_plan::node::{Domain, Step};
use tokio::{sync::watch, time::timeout};

use crate::{
    bridge,
    domain::{self, DISK, Source},
    images::Images,
    init,
    libvirt::Hypervisor,
    rcuda::Rcuda,
    record::{Record, Records, is_safe_name, named},
    saved::{Store, path_of},
    screen::Screen,
};

/// Everything that steps act upon.
#[derive(Clone)]
pub struct Performer {
    /// What init handed over.
    pub context: Arc<NodeContext>,
    /// libvirt.
    pub hypervisor: Hypervisor,
    /// Counts up whenever a domain's life changes.
    pub domains: watch::Receiver<u64>,
    /// Guest images.
    pub images: Images,
    /// Guests' records.
    pub records: Records,
    /// The server's files.
    pub store: Store,
    /// The screen.
    pub screen: Screen,
    /// Remote CUDA.
    pub rcuda: Rcuda,
    /// Why this machine has no KVM, if so.
    pub no_kvm: Option<String>,
}

impl Performer {
    /// Performs one step.
    pub async fn perform(&self, step: &Step, desired: &NodeDesired) -> Result<()> {
        match step {
            Step::EnsureBridge => Ok(bridge::ensure(&self.context.network).await?),
            Step::FetchImage { image, generation } => {
                Ok(self.images.fetch(&self.store, image, generation).await?)
            }
            Step::WarnPerson { seconds, .. } => {
                self.screen.warn(Some(warning(*seconds))).await;
                Ok(())
            }
            Step::AwaitGrace { seconds, .. } => {
                tokio::time::sleep(Duration::from_secs(*seconds)).await;
                Ok(())
            }
            Step::WithdrawWarning => {
                self.screen.warn(None).await;
                Ok(())
            }
            Step::ShutDownGuest { guest, grace } => self.shut_down(guest, *grace).await,
            Step::HideGuest => {
                self.screen.hide().await;
                Ok(())
            }
            Step::SaveGuest { guest, revision } => self.save(guest, *revision).await,
            Step::UploadSaved { guest, revision } => self.upload(guest, *revision).await,
            Step::StartGuest { guest } => self.start(spec(desired, guest)?).await,
            Step::ResetGuest { guest } => self.reset(guest).await,
            Step::RestoreGuest { guest, revision } => self.restore(spec(desired, guest)?, *revision).await,
            Step::ResumeGuest { guest } => Ok(self.hypervisor.resume(guest).await?),
            Step::ShowGuest { guest } => {
                let socket = self.hypervisor.screen(guest).await?;
                self.screen.show(guest, socket).await.map_err(|e| anyhow!("showing {guest}: {e}"))
            }
            Step::StartRcuda => self.rcuda.start().await.map_err(|e| anyhow!("starting remote CUDA: {e}")),
            Step::StopRcuda => self.rcuda.stop().await.map_err(|e| anyhow!("stopping remote CUDA: {e}")),
            Step::ForgetGuest { guest } => self.forget(guest).await,
            Step::DropImage { generation } => Ok(self.images.remove(generation)?),
            Step::Reboot => self.ask_init(InitRequest::Reboot).await,
            Step::Kexec => self.ask_init(InitRequest::Kexec).await,
            Step::PowerOff => {
                let interface = self.context.network.interface.clone();
                self.ask_init(InitRequest::PowerOff { interface }).await
            }
        }
    }

    async fn ask_init(&self, request: InitRequest) -> Result<()> {
        Ok(init::ask(Path::new(paths::INIT_SOCKET), &request).await?)
    }

    async fn shut_down(&self, guest: &str, grace: u32) -> Result<()> {
        self.hypervisor.press_power(guest).await?;
        let mut domains = self.domains.clone();
        let ended = async {
            loop {
                domains.mark_unchanged();
                let found = self.hypervisor.list().await?;
                if !matches!(found.get(guest).map(|f| f.domain), Some(Domain::Running | Domain::Paused)) {
                    return anyhow::Ok(());
                }
                domains.changed().await?;
            }
        };
        match timeout(Duration::from_secs(grace.into()), ended).await {
            Ok(result) => result,
            Err(_) => {
                tracing::warn!(guest, grace, "did not shut down in time; it is switched off");
                Ok(self.hypervisor.switch_off(guest).await?)
            }
        }
    }

    async fn save(&self, guest: &str, revision: u64) -> Result<()> {
        let mut record = self.records.read(guest)?;
        record.saving = Some(revision);
        self.records.write(&record)?;
        let memory = self.records.memory(guest, revision);
        self.hypervisor.save(guest, &memory).await?;
        (record.saving, record.saved) = (None, Some(revision));
        Ok(self.records.write(&record)?)
    }

    async fn upload(&self, guest: &str, revision: u64) -> Result<()> {
        let mut record = self.records.read(guest)?;
        let (memory, disk) = (self.records.memory(guest, revision), self.disk(&record.spec));
        let sending = || format!("sending saved state {revision} of {guest} to the store");
        let memory_entry =
            self.store.send(&memory, &path_of(guest, revision, "memory")).await.with_context(sending)?;
        let disk_entry = match &disk {
            Some(disk) => {
                Some(self.store.send(disk, &path_of(guest, revision, "disk")).await.with_context(sending)?)
            }
            None => None,
        };
        let node = self.context.node.clone();
        record.stored = Some(SavedState { revision, memory: memory_entry, disk: disk_entry, node });
        (record.saving, record.saved) = (None, None);
        self.records.write(&record)?;
        // From here on the store's copy is the one that counts.
        for file in [Some(memory), disk].into_iter().flatten() {
            remove_file(&file)?;
        }
        Ok(())
    }

    async fn reset(&self, guest: &str) -> Result<()> {
        let mut record = self.records.read(guest)?;
        record.resets += 1;
        tracing::warn!(
            guest,
            resets = record.resets,
            "says nothing on its console; it is switched off and on again"
        );
        self.records.write(&record)?;
        Ok(self.hypervisor.power_cycle(guest).await?)
    }

    async fn start(&self, spec: &GuestSpec) -> Result<()> {
        let xml = self.xml(spec)?;
        let record = Record {
            spec: spec.clone(),
            revision: 0,
            started: false,
            saving: None,
            saved: None,
            stored: None,
            resets: 0,
        };
        self.records.write(&record)?;
        if let Some(disk) = self.disk(spec) {
            create_disk(&disk, spec.disk_mib).await?;
        }
        self.hypervisor.start(&spec.name, xml).await?;
        Ok(self.records.write(&Record { started: true, ..record })?)
    }

    async fn restore(&self, spec: &GuestSpec, revision: u64) -> Result<()> {
        let xml = self.xml(spec)?;
        let name = spec.name.as_str();
        let old = self.records.read(name).ok();
        let memory = self.records.memory(name, revision);
        let complete_here =
            old.as_ref().is_some_and(|r| [r.saved, r.saving].contains(&Some(revision)) && memory.is_file());
        if !complete_here {
            let stored = spec.restore.iter().chain(old.iter().filter_map(|r| r.stored.as_ref()));
            let state = stored
                .into_iter()
                .find(|s| s.revision == revision)
                .ok_or_else(|| anyhow!("nobody knows saved state {revision} of {name}"))?;
            self.fetch_saved(spec, state).await?;
        }
        let record = Record {
            spec: spec.clone(),
            revision,
            started: true,
            saving: None,
            saved: complete_here.then_some(revision),
            stored: old.and_then(|r| r.stored),
            resets: 0,
        };
        self.records.write(&record)?;
        self.hypervisor.restore(name, xml, memory.clone()).await?;
        self.records.write(&Record { saved: None, stored: None, ..record })?;
        Ok(remove_file(&memory)?)
    }

    async fn fetch_saved(&self, spec: &GuestSpec, state: &SavedState) -> Result<()> {
        let fetching = || format!("fetching saved state {} of {}", state.revision, spec.name);
        let directory = self.records.directory(&spec.name);
        std::fs::create_dir_all(&directory).map_err(|e| named(&directory, e))?;
        let memory = self.records.memory(&spec.name, state.revision);
        let path = |part| path_of(&spec.name, state.revision, part);
        self.store.fetch(&path("memory"), &memory, &state.memory).await.with_context(fetching)?;
        match (&state.disk, self.disk(spec)) {
            (Some(entry), Some(disk)) => {
                self.store.fetch(&path("disk"), &disk, entry).await.with_context(fetching)
            }
            (None, None) => Ok(()),
            _ => bail!(
                "saved state {} of {} and its specification differ about a disk",
                state.revision,
                spec.name
            ),
        }
    }

    async fn forget(&self, guest: &str) -> Result<()> {
        if self.hypervisor.list().await?.contains_key(guest) {
            self.hypervisor.forget(guest).await?;
        }
        Ok(self.records.remove(guest)?)
    }

    fn xml(&self, spec: &GuestSpec) -> Result<String> {
        if let Some(reason) = &self.no_kvm {
            bail!("this machine can't run {}: {reason}; switch virtualisation on in its firmware", spec.name);
        }
        let manifest = self.images.manifest(&spec.image, &spec.generation)?;
        Ok(domain::xml(&Source {
            spec,
            manifest: &manifest,
            image: &self.images.directory(&spec.generation),
            directory: &self.records.directory(&spec.name),
            server: &self.context.server,
            vsock: Path::new("/dev/vhost-vsock").exists(),
        }))
    }

    fn disk(&self, spec: &GuestSpec) -> Option<PathBuf> {
        (spec.disk_mib > 0).then(|| self.records.directory(&spec.name).join(DISK))
    }
}

fn spec<'a>(desired: &'a NodeDesired, guest: &str) -> Result<&'a GuestSpec> {
    let mut specs = desired.desktop.iter().chain(&desired.batch);
    let spec = specs.find(|s| s.name == guest).ok_or_else(|| anyhow!("nobody asked for {guest}"))?;
    if !is_safe_name(&spec.name) {
        bail!("{:?} is no name for a guest: use letters, digits, - and _", spec.name);
    }
    Ok(spec)
}

/// What the person at the screen reads.
fn warning(seconds: u64) -> String {
    let left = match seconds {
        0..=90 => format!("{seconds} seconds"),
        _ => format!("{} minutes", seconds.div_ceil(60)),
    };
    format!("This session ends in {left}. Save your work now.")
}

async fn create_disk(path: &Path, mib: u32) -> Result<()> {
    let output = tokio::process::Command::new("qemu-img")
        .args(["create", "-q", "-f", "qcow2"])
        .arg(path)
        .arg(format!("{mib}M"))
        .stdin(Stdio::null())
        .output()
        .await
        .context("running qemu-img")?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("creating {}: qemu-img: {}: {}", path.display(), output.status, said.trim());
    }
    Ok(())
}

fn remove_file(path: &Path) -> std::io::Result<()> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(named(path, e)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_person_reads_seconds_or_minutes() {
        assert_eq!(warning(60), "This session ends in 60 seconds. Save your work now.");
        assert_eq!(warning(301), "This session ends in 6 minutes. Save your work now.");
    }
}
