//! `labshift serve`: joins the boot plane and the control plane on one network.
//!
//! ```text
//!   lab network   DHCP, TFTP            pxe::BootPlane ---asks---> fleet::Directory
//!   lab network   HTTP :8080            pxe routes + fleet routes (nodes, guests)
//!   lab network   HTTPS (--https-port)   the same + images that admins push
//!   (both once for each network that the server has an interface on)
//!   this machine  HTTP 127.0.0.1:8088   fleet routes (admins) + dashboard + images that admins push
//! ```

use std::{
    future::Future,
    io,
    net::SocketAddr,
    os::unix::fs::MetadataExt,
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime},
};

use anyhow::{Context, Result, anyhow, bail};
use axum::Router;
use labshift_fleet::{Clock, Fleet, FleetOptions};
use labshift_model::site::{Dhcp, Server, Site};
use labshift_pxe::{
    BootPlane, Config, Control, Mode, NO_POOL, Subnet, dhcp::elsewhere::Elsewhere, http::tls::Tls,
};
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
    sync::watch,
    task::JoinSet,
};
use tracing::{info, warn};

use crate::{
    args::{DhcpMode, Serve},
    receive, site,
};

/// How often the site file is looked at.
const LOOK: Duration = Duration::from_secs(1);

/// Runs until SIGINT or SIGTERM. The site file is read again when it changes, and at SIGHUP.
pub fn run(arguments: Serve) -> Result<()> {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().enable_all().build().context("starting tokio")?;
    runtime.block_on(serve(arguments))
}

async fn serve(arguments: Serve) -> Result<()> {
    // Before it is read: a change during the start is seen afterwards.
    let known = state_of(&arguments.site);
    let site = site::read(&arguments.site)?;
    let clock = Clock::parse(&arguments.clock, &site.timezone).context("reading --clock")?;

    let configs = settings(&site, &arguments);

    let fleet = Arc::new(
        Fleet::open(FleetOptions {
            site,
            store: arguments.store.clone(),
            state: arguments.state.clone(),
            interface: Some(arguments.interface.clone()),
            clock,
        })
        .context("opening the fleet's state")?,
    );
    let tls = match (&arguments.tls_certificate, &arguments.tls_key) {
        (Some(certificate), Some(key)) => Some((certificate, key)),
        _ => None,
    };
    let (mut networks, mut elsewhere) = (vec![], String::new());
    for config in configs {
        if config.mode == Mode::Off {
            let texts = Elsewhere::ALL.map(|e| format!("\n# {}\n{}", e.title(), e.text(&config)));
            elsewhere += &format!("\n# on {}\n{}", config.interface, texts.concat());
        }
        let plane = BootPlane::bind(config, fleet.directory(), fleet.journal())
            .map_err(permission)
            .context("starting the boot plane")?;
        let http = listen(plane.http_address()).await?;
        let https = match (arguments.https_port, tls) {
            (Some(port), Some((certificate, key))) => {
                let tls = Tls::read(certificate, key).context("preparing HTTPS")?;
                Some((tls, listen((plane.http_address().ip(), port).into()).await?))
            }
            _ => None,
        };
        networks.push(Network { plane, http, https });
    }
    let controls: Vec<Control> = networks.iter().map(|n| n.plane.control()).collect();
    let admins = match inherited()? {
        Some(listener) => listener,
        None => listen(arguments.dashboard).await?,
    };
    let dashboard = admins.local_addr().context("reading the dashboard's address")?;
    let interfaces: Vec<String> = controls.iter().map(|c| c.now().interface.clone()).collect();
    println!("labshift: serving {} on {}", arguments.site.display(), interfaces.join(", "));
    println!(
        "labshift: dashboard http://{dashboard}/ · token {}",
        arguments.state.join("admin.token").display()
    );

    if !elsewhere.is_empty() {
        println!(
            "labshift: DHCP is off here; the server that gives the addresses needs one of these:{elsewhere}"
        );
    }

    let (stop, stopped) = watch::channel(false);
    let until = || {
        let mut stopped = stopped.clone();
        async move { drop(stopped.wait_for(|s| *s).await) }
    };
    let images = receive::router(fleet.clone(), arguments.store.clone());
    let mut serving = JoinSet::new();
    for network in networks {
        serving.spawn(network.serve(fleet.clone(), images.clone(), until()));
    }
    let people = fleet.router().merge(fleet.dashboard()).merge(images);
    // A task of its own: planning for a large site must not hold up the machines that boot.
    let (engine, end) = (fleet.clone(), until());
    let mut engine = tokio::spawn(async move { engine.run(end).await });
    let result = tokio::select! {
        Some(ended) = serving.join_next() => ended.context("serving a network")?,
        ended = http(admins, people, until()) => ended.context("serving the dashboard"),
        ended = &mut engine => ended.context("running the fleet")?.context("running the fleet"),
        ended = signals(&fleet, &controls, &arguments, known) => ended,
    };
    stop.send_replace(true);
    if !engine.is_finished() {
        // What it has taken note of is written before the end.
        engine.await.context("ending the fleet")?.context("ending the fleet")?;
    }
    result
}

/// One network: the plane on its interface, and where it listens for HTTP.
struct Network {
    plane: BootPlane,
    http: TcpListener,
    https: Option<(Tls, TcpListener)>,
}

impl Network {
    /// Serves until `shutdown` completes, or one of the ports fails.
    async fn serve(
        self,
        fleet: Arc<Fleet>,
        images: Router,
        shutdown: impl Future<Output = ()> + Send,
    ) -> Result<()> {
        let Network { plane, http, https } = self;
        let interface = plane.control().now().interface.clone();
        let (front, machines) = (plane.http_front(), plane.http_router().merge(fleet.router()));
        let secure = machines.clone().merge(images);
        let https = async {
            match https {
                Some((tls, listener)) => tls.serve(listener, secure).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            ended = front.serve(http, machines) => ended.with_context(|| format!("serving HTTP on {interface}")),
            ended = https => ended.with_context(|| format!("serving HTTPS on {interface}")),
            ended = plane.serve(shutdown) => ended.with_context(|| format!("serving DHCP and TFTP on {interface}")),
        }
    }
}

/// What the boot plane needs of a site, for the network of `[server]`.
pub fn config(site: &Site, interface: &str, store: &Path, state: &Path) -> Config {
    network(site, &site.server, interface, None, store, state)
}

/// The same for one network. `card` is the name that relayed networks refer to it by.
fn network(
    site: &Site,
    server: &Server,
    interface: &str,
    card: Option<&str>,
    store: &Path,
    state: &Path,
) -> Config {
    let mut config =
        Config::new(interface, server.address, server.prefix, store.to_owned(), state.to_owned());
    config.gateway = server.gateway;
    config.dns = server.dns.clone();
    config.lease_seconds = server.lease_seconds;
    config.pool = server.pool.unwrap_or(NO_POOL);
    let behind = site.relayed.iter().filter(|r| r.interface.as_deref() == card);
    config.relayed = behind
        .map(|r| Subnet {
            network: r.network,
            prefix: r.prefix,
            pool: r.pool.unwrap_or(NO_POOL),
            gateway: r.gateway,
        })
        .collect();
    config
}

/// The settings of all networks, that of `[server]` first.
fn settings(site: &Site, arguments: &Serve) -> Vec<Config> {
    let (store, state) = (&arguments.store, &arguments.state);
    let mode = match arguments.dhcp {
        DhcpMode::Authoritative => Mode::Authoritative,
        DhcpMode::Proxy => Mode::Proxy,
        DhcpMode::Off => Mode::Off,
    };
    let main = Config { mode, ..config(site, &arguments.interface, store, state) };
    let others = site.interfaces.iter().map(|interface| {
        let name = interface.name.as_str();
        // Each keeps its leases by itself.
        let state = state.join("interfaces").join(name);
        let config = network(site, &interface.server, name, Some(name), store, &state);
        let mode = match interface.dhcp {
            Dhcp::Authoritative => Mode::Authoritative,
            Dhcp::Proxy => Mode::Proxy,
            Dhcp::Off => Mode::Off,
        };
        Config { mode, ..config }
    });
    let common = |config| Config {
        http_port: arguments.http_port,
        loaders: arguments.loaders.clone(),
        tftp_ipv6: arguments.tftp_ipv6,
        ..config
    };
    [main].into_iter().chain(others).map(common).collect()
}

async fn http(
    listener: TcpListener,
    routes: Router,
    until: impl Future<Output = ()> + Send + 'static,
) -> io::Result<()> {
    let service = routes.into_make_service_with_connect_info::<SocketAddr>();
    axum::serve(listener, service).with_graceful_shutdown(until).await
}

async fn listen(address: SocketAddr) -> Result<TcpListener> {
    TcpListener::bind(address).await.map_err(|e| match e.kind() {
        io::ErrorKind::AddrInUse => anyhow!(
            "TCP port {} of {} is in use by another program; `ss -ltnp sport = :{}` shows which",
            address.port(),
            address.ip(),
            address.port()
        ),
        _ => anyhow::Error::new(e).context(format!("listening on {address}")),
    })
}

/// The first socket that systemd (or a virtual lab) handed over.
fn inherited() -> Result<Option<TcpListener>> {
    let mut passed = listenfd::ListenFd::from_env();
    let Some(listener) = passed.take_tcp_listener(0).context("taking the inherited socket")? else {
        return Ok(None);
    };
    listener.set_nonblocking(true).context("preparing the inherited socket")?;
    Ok(Some(TcpListener::from_std(listener).context("using the inherited socket")?))
}

/// Returns when it is time to stop. Until then a changed site file is taken over, at SIGHUP or when its bytes change.
async fn signals(
    fleet: &Fleet,
    controls: &[Control],
    arguments: &Serve,
    mut known: Option<State>,
) -> Result<()> {
    let mut interrupt = signal(SignalKind::interrupt()).context("listening for SIGINT")?;
    let mut terminate = signal(SignalKind::terminate()).context("listening for SIGTERM")?;
    let mut hangup = signal(SignalKind::hangup()).context("listening for SIGHUP")?;
    let mut look = tokio::time::interval(LOOK);
    loop {
        tokio::select! {
            _ = interrupt.recv() => return Ok(()),
            _ = terminate.recv() => return Ok(()),
            _ = hangup.recv() => known = state_of(&arguments.site),
            _ = look.tick() => {
                let found = state_of(&arguments.site);
                // While an editor replaces the file there is none.
                if found == known || found.is_none() {
                    continue;
                }
                known = found;
            }
        }
        match reload(fleet, controls, arguments).await {
            Ok(()) => info!("site file {} read again", arguments.site.display()),
            Err(mistakes) => warn!("the old site stays in force: {mistakes:#}"),
        }
    }
}

/// Everything of the new site, or nothing of it. Transfers and leases go on.
async fn reload(fleet: &Fleet, controls: &[Control], arguments: &Serve) -> Result<()> {
    let site = site::read(&arguments.site)?;
    let configs = settings(&site, arguments);
    if configs.len() != controls.len() {
        bail!("an [[interface]] comes or goes only when the server is started anew");
    }
    let pairs = || controls.iter().zip(&configs);
    pairs().try_for_each(|(control, new)| control.check(new)).context("taking the new site over")?;
    for (control, new) in pairs() {
        control.reload(new.clone()).context("taking the new site over")?;
    }
    fleet.reload(site).await.context("taking the new site over")
}

/// When a file was written, how long it is, and which file it is.
type State = (SystemTime, u64, u64);

fn state_of(file: &Path) -> Option<State> {
    let metadata = std::fs::metadata(file).ok()?;
    Some((metadata.modified().ok()?, metadata.len(), metadata.ino()))
}

/// Gives a refusal of the system its exit code.
fn permission(error: labshift_pxe::BindError) -> anyhow::Error {
    match error {
        labshift_pxe::BindError::Permission { .. } => {
            crate::exit::Refusal::NoPermission(error.to_string()).into()
        }
        other => other.into(),
    }
}
