//! The node's libvirt: one connection, opened again when it broke; every call runs on a blocking thread.
//!
//! Domains are defined, not transient, so that libvirt remembers how one ended. Lifecycle events only wake the
//! engine, which lists everything again.

use std::{
    collections::BTreeMap,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, Once, PoisonError},
};

use labshift_plan::node as plan;
use tokio::sync::mpsc::UnboundedSender;
use virt::{connect::Connect, domain::Domain, error::Error};
use virt_sys as sys;

use crate::ffi;

/// libvirt refused, or can't be reached.
#[derive(Debug, thiserror::Error)]
pub enum LibvirtError {
    /// No connection.
    #[error("libvirt does not answer on {uri}")]
    Unreachable {
        /// Where it was looked for.
        uri: String,
        /// Why.
        source: Error,
    },
    /// A call failed.
    #[error("libvirt could not {what} {domain}")]
    Refused {
        /// The verb.
        what: &'static str,
        /// The domain.
        domain: String,
        /// libvirt's own words.
        source: Error,
    },
    /// The thread of the call ended without an answer.
    #[error("a call to libvirt ended without an answer")]
    Lost,
}

/// What libvirt says of one domain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Found {
    /// In the planner's words.
    pub domain: plan::Domain,
    /// It ended by being saved.
    pub saved: bool,
}

/// The connection.
#[derive(Clone)]
pub struct Hypervisor {
    inner: Arc<Inner>,
}

struct Inner {
    uri: String,
    connection: Mutex<Option<Arc<Connect>>>,
    changes: UnboundedSender<String>,
}

impl Hypervisor {
    /// Connects to `uri` when first used; names of domains that change go to `changes`.
    pub fn new(uri: &str, changes: UnboundedSender<String>) -> Self {
        start_event_loop();
        let inner = Inner { uri: uri.to_owned(), connection: Mutex::default(), changes };
        Hypervisor { inner: Arc::new(inner) }
    }

    /// Fails when libvirt does not answer; returns its version as a number (major * 1,000,000 + minor * 1000 + release).
    pub async fn version(&self) -> Result<u32, LibvirtError> {
        self.call("tell its version", "", |c| c.get_lib_version()).await
    }

    /// Lets libvirt find out what QEMU can do, which it otherwise does when the first guest starts.
    pub async fn probe(&self) -> Result<(), LibvirtError> {
        self.call("probe", "its hypervisor", |c| c.get_capabilities().map(drop)).await
    }

    /// All domains.
    pub async fn list(&self) -> Result<BTreeMap<String, Found>, LibvirtError> {
        self.call("list", "domains", |c| {
            let mut found = BTreeMap::new();
            for domain in c.list_all_domains(0)? {
                // A domain that vanished since the list was made is no error.
                if let (Ok(name), Ok((state, reason))) = (domain.get_name(), domain.get_state()) {
                    found.insert(name, translate(state, reason));
                }
            }
            Ok(found)
        })
        .await
    }

    /// Defines a domain and starts it.
    pub async fn start(&self, name: &str, xml: String) -> Result<(), LibvirtError> {
        self.call("start", name, move |c| {
            let domain = Domain::define_xml(c, &xml)?;
            if !domain.is_active()? {
                domain.create()?;
            }
            Ok(())
        })
        .await
    }

    /// Defines a domain and restores its memory from a file that [`Hypervisor::save`] wrote.
    pub async fn restore(&self, name: &str, xml: String, memory: PathBuf) -> Result<(), LibvirtError> {
        self.call("restore", name, move |c| {
            let domain = Domain::define_xml(c, &xml)?;
            if !domain.is_active()? {
                Domain::domain_restore_flags(
                    c,
                    &memory.to_string_lossy(),
                    None,
                    sys::VIR_DOMAIN_SAVE_RUNNING,
                )?;
            }
            Ok(())
        })
        .await
    }

    /// Writes a domain's memory to a file; the domain stops.
    pub async fn save(&self, name: &str, memory: &Path) -> Result<(), LibvirtError> {
        let memory = memory.to_owned();
        self.with_domain("save", name, move |d| ffi::save(d, &memory)).await
    }

    /// Lets a paused domain go on.
    pub async fn resume(&self, name: &str) -> Result<(), LibvirtError> {
        self.with_domain("resume", name, |d| d.resume().map(drop)).await
    }

    /// Presses the domain's power button.
    pub async fn press_power(&self, name: &str) -> Result<(), LibvirtError> {
        self.with_domain("shut down", name, |d| if d.is_active()? { d.shutdown().map(drop) } else { Ok(()) })
            .await
    }

    /// Switches a domain off.
    pub async fn switch_off(&self, name: &str) -> Result<(), LibvirtError> {
        self.with_domain("switch off", name, |d| if d.is_active()? { d.destroy() } else { Ok(()) }).await
    }

    /// Switches a domain off and on again, as it was defined.
    pub async fn power_cycle(&self, name: &str) -> Result<(), LibvirtError> {
        self.with_domain("switch off and on", name, |d| {
            if d.is_active()? {
                d.destroy()?;
            }
            d.create().map(drop)
        })
        .await
    }

    /// Forgets a domain that does not run.
    pub async fn forget(&self, name: &str) -> Result<(), LibvirtError> {
        self.with_domain("forget", name, |d| d.undefine()).await
    }

    /// A socket to the domain's screen (RFC 6143).
    pub async fn screen(&self, name: &str) -> Result<OwnedFd, LibvirtError> {
        self.with_domain("open the screen of", name, ffi::open_graphics).await
    }

    async fn with_domain<T: Send + 'static>(
        &self,
        what: &'static str,
        name: &str,
        work: impl FnOnce(&Domain) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, LibvirtError> {
        let wanted = name.to_owned();
        self.call(what, name, move |c| work(&Domain::lookup_by_name(c, &wanted)?)).await
    }

    async fn call<T: Send + 'static>(
        &self,
        what: &'static str,
        domain: &str,
        work: impl FnOnce(&Connect) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, LibvirtError> {
        let (inner, domain) = (self.inner.clone(), domain.to_owned());
        tokio::task::spawn_blocking(move || {
            let connection = inner.connection()?;
            work(&connection).map_err(|source| LibvirtError::Refused { what, domain, source })
        })
        .await
        .unwrap_or(Err(LibvirtError::Lost))
    }
}

impl Inner {
    fn connection(&self) -> Result<Arc<Connect>, LibvirtError> {
        let mut kept = self.connection.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(connection) = kept.as_ref().filter(|c| c.is_alive().unwrap_or(false)) {
            return Ok(connection.clone());
        }
        let unreachable = |source| LibvirtError::Unreachable { uri: self.uri.clone(), source };
        let connection = Arc::new(Connect::open(Some(&self.uri)).map_err(unreachable)?);
        ffi::watch_domains(&connection, self.changes.clone()).map_err(unreachable)?;
        *kept = Some(connection.clone());
        Ok(connection)
    }
}

/// libvirt's state and reason in the planner's words.
fn translate(state: sys::virDomainState, reason: i32) -> Found {
    let reason = reason.cast_unsigned();
    let saved = state == sys::VIR_DOMAIN_SHUTOFF && reason == sys::VIR_DOMAIN_SHUTOFF_SAVED;
    let domain = match state {
        // A domain that is shutting down still runs.
        sys::VIR_DOMAIN_RUNNING | sys::VIR_DOMAIN_BLOCKED | sys::VIR_DOMAIN_SHUTDOWN => plan::Domain::Running,
        sys::VIR_DOMAIN_PAUSED | sys::VIR_DOMAIN_PMSUSPENDED => plan::Domain::Paused,
        sys::VIR_DOMAIN_SHUTOFF => match reason {
            sys::VIR_DOMAIN_SHUTOFF_UNKNOWN => plan::Domain::None,
            sys::VIR_DOMAIN_SHUTOFF_SHUTDOWN
            | sys::VIR_DOMAIN_SHUTOFF_DESTROYED
            | sys::VIR_DOMAIN_SHUTOFF_SAVED => plan::Domain::Ended { orderly: true },
            _ => plan::Domain::Ended { orderly: false },
        },
        _ => plan::Domain::Ended { orderly: false },
    };
    Found { domain, saved }
}

/// libvirt delivers events only to a thread that runs its loop; there is one per process.
fn start_event_loop() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        virt::error::clear_error_callback();
        if let Err(error) = virt::event::event_register_default_impl() {
            tracing::error!(%error, "libvirt's event loop can't be set up; domains are only polled");
            return;
        }
        let run = || {
            loop {
                if let Err(error) = virt::event::event_run_default_impl() {
                    tracing::warn!(%error, "libvirt's event loop");
                    std::thread::sleep(std::time::Duration::from_secs(1));
                }
            }
        };
        if let Err(error) = std::thread::Builder::new().name("libvirt-events".into()).spawn(run) {
            tracing::error!(%error, "no thread for libvirt's events; domains are only polled");
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_in_the_planners_words() {
        let of = |state, reason: u32| translate(state, reason.cast_signed());
        assert_eq!(of(sys::VIR_DOMAIN_RUNNING, 1).domain, plan::Domain::Running);
        assert_eq!(of(sys::VIR_DOMAIN_PAUSED, 3).domain, plan::Domain::Paused);
        assert_eq!(of(sys::VIR_DOMAIN_SHUTOFF, 0).domain, plan::Domain::None);
        let saved = of(sys::VIR_DOMAIN_SHUTOFF, sys::VIR_DOMAIN_SHUTOFF_SAVED);
        assert_eq!(saved, Found { domain: plan::Domain::Ended { orderly: true }, saved: true });
        let crashed = of(sys::VIR_DOMAIN_SHUTOFF, sys::VIR_DOMAIN_SHUTOFF_CRASHED);
        assert_eq!(crashed.domain, plan::Domain::Ended { orderly: false });
    }

    #[tokio::test]
    async fn a_libvirt_that_is_not_there_is_named() {
        let (sender, _receiver) = tokio::sync::mpsc::unbounded_channel();
        let hypervisor = Hypervisor::new("qemu:///system?socket=/nowhere/libvirt-sock", sender);
        let error = hypervisor.version().await.unwrap_err();
        assert!(error.to_string().contains("does not answer on qemu:///system"), "{error}");
    }
}
