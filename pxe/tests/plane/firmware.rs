//! Real UEFI firmware (OVMF in QEMU) against the plane: PXE beside foreign DHCP servers and behind a relay, and HTTP boot. What it loads is iPXE
//! in the place of an image, which asks DHCP again: that shows that the firmware ran what it got.

use std::{
    fs,
    path::Path,
    process::{Child, Command, Stdio},
    sync::{Arc, mpsc},
    time::Duration,
};

use labshift_model::boot::{BootPlaneEvent, Speaker};
use labshift_pxe::{BootPlane, Config, Mode, Subnet};
use tokio::{net::TcpListener, time::timeout};

use crate::{
    fake::{FIXED, Notes, SERVER, Site, publish},
    namespace::on_a_cable,
};

/// Firmware in an emulated machine on a busy builder takes its time.
const GUARD: Duration = Duration::from_secs(420);

/// Ends with the test, whatever happens.
struct Ends(Child);

impl Drop for Ends {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

fn start(program: &str, arguments: &[&str]) -> Ends {
    let child = Command::new(program).args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).spawn();
    Ends(child.unwrap_or_else(|e| panic!("{program}: {e}; `make deps` installs what tests need")))
}

fn ip(line: &str) {
    let done = Command::new("ip").args(line.split(' ')).status().expect("starting ip");
    assert!(done.success(), "ip {line}");
}

/// A machine with a network card on the server's bridge, and nothing else.
fn machine(scratch: &Path, http_only: bool) -> Ends {
    let vars = scratch.join("vars.fd");
    fs::copy("/usr/share/OVMF/OVMF_VARS_4M.fd", &vars).expect("OVMF; `make deps` installs it");
    let vars = format!("if=pflash,unit=1,format=raw,file={}", vars.display());
    let card = format!("virtio-net-pci,netdev=net0,mac={FIXED},bootindex=1,romfile=");
    let mut arguments = vec![
        "-nodefaults",
        "-machine",
        "q35",
        "-accel",
        "tcg",
        "-cpu",
        "max",
        "-m",
        "512",
        "-display",
        "none",
        "-device",
        "virtio-rng-pci",
        "-netdev",
        "tap,id=net0,ifname=tap0,script=no,downscript=no",
        "-device",
        &card,
        "-drive",
        "if=pflash,unit=0,format=raw,readonly=on,file=/usr/share/OVMF/OVMF_CODE_4M.fd",
        "-drive",
        &vars,
        "-fw_cfg",
        "name=opt/org.tianocore/IPv6PXESupport,string=n",
    ];
    if http_only {
        arguments.extend(["-fw_cfg", "name=opt/org.tianocore/IPv4PXESupport,string=n"]);
    }
    start("qemu-system-x86_64", &arguments)
}

/// What stands between the machine and the plane, or beside it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Around {
    /// Nothing; the firmware may do HTTP boot only.
    HttpOnly,
    /// A dnsmasq that gives the addresses.
    Dnsmasq,
    /// A Kea that gives the addresses.
    Kea,
    /// A router with a DHCP relay: the machine is behind it.
    Relay,
}

/// A bridge with an address, these ports, and the machine's.
fn bridge(name: &str, address: &str, ports: &[&str]) {
    ip(&format!("link add {name} type bridge"));
    ip("tuntap add tap0 mode tap");
    for port in ports.iter().chain(&["tap0"]) {
        ip(&format!("link set {port} master {name}"));
        ip(&format!("link set {port} up"));
    }
    ip(&format!("address add {address} dev {name}"));
    ip(&format!("link set {name} up"));
}

/// Boots the machine until iPXE speaks; gives what the plane saw.
fn boots(around: Around) -> Vec<BootPlaneEvent> {
    let notes = Notes::default();
    let heard = notes.clone();
    let (over, wait) = mpsc::channel::<()>();
    on_a_cable(
        move |runtime, _, ready, _| {
            let _over = over;
            let scratch = tempfile::tempdir().expect("a directory");
            let loader = fs::read("/usr/lib/ipxe/snponly.efi").expect("iPXE; `make deps` installs it");
            let generation = publish(scratch.path(), &[("uki.efi", &loader)]);
            let state = scratch.path().join("state");
            let mut config = Config::new("bridge0", SERVER, 24, scratch.path().into(), state);
            if around == Around::Relay {
                config.interface = "server0".to_owned();
                config.relayed.push(Subnet {
                    network: [10, 78, 0, 0].into(),
                    prefix: 24,
                    pool: ([10, 78, 0, 100].into(), [10, 78, 0, 150].into()),
                    gateway: Some([10, 78, 0, 1].into()),
                });
                ip("address add 10.77.0.1/24 dev server0");
                ip("link set server0 up");
                ip("route add 10.78.0.0/24 via 10.77.0.254");
            } else {
                bridge("bridge0", "10.77.0.1/24", &["server0"]);
            }
            if matches!(around, Around::Dnsmasq | Around::Kea) {
                config.mode = Mode::Proxy;
            }
            let site = Arc::new(Site { generation, ..Site::default() });
            runtime.block_on(async {
                let plane = BootPlane::bind(config, site, Arc::new(notes.clone())).expect("the plane");
                let listener = TcpListener::bind(plane.http_address()).await.expect("the HTTP port");
                tokio::spawn(plane.http_front().serve(listener, plane.http_router()));
                ready.send(String::new()).expect("the other side waits");
                let here = around != Around::Relay;
                let _machine = here.then(|| machine(scratch.path(), around == Around::HttpOnly));
                let spoke =
                    |e: &BootPlaneEvent| matches!(e, BootPlaneEvent::Offer { speaker: Speaker::Ipxe, .. });
                let done = async { drop(notes.wait_for(spoke).await) };
                let served = timeout(GUARD, plane.serve(done)).await;
                assert!(served.is_ok(), "the firmware got no further than {:#?}", notes.all());
            });
        },
        move |_, _, _| {
            let scratch = tempfile::tempdir().expect("a directory");
            let leases = scratch.path().join("leases").display().to_string();
            if around != Around::HttpOnly {
                let own = if around == Around::Relay { 254 } else { 3 };
                ip(&format!("address add 10.77.0.{own}/24 dev client0"));
                ip("link set client0 up");
            }
            let dnsmasq = |arguments: &str| {
                let common = "--keep-in-foreground --user=root --port=0 --bind-interfaces --conf-file=/dev/null --pid-file=";
                start("dnsmasq", &common.split(' ').chain(arguments.split(' ')).collect::<Vec<_>>())
            };
            let _running = match around {
                Around::HttpOnly => return,
                Around::Dnsmasq => vec![dnsmasq(&format!(
                    "--interface=client0 --dhcp-authoritative --no-ping --dhcp-range=10.77.0.100,10.77.0.150,1h \
                     --dhcp-leasefile={leases}"
                ))],
                Around::Kea => vec![kea(scratch.path())],
                Around::Relay => {
                    bridge("lan0", "10.78.0.1/24", &[]);
                    fs::write("/proc/sys/net/ipv4/ip_forward", "1").expect("a router");
                    let relay =
                        dnsmasq("--interface=lan0 --interface=client0 --dhcp-relay=10.78.0.1,10.77.0.1");
                    vec![relay, machine(scratch.path(), false)]
                }
            };
            // Until the server's side is done.
            let _ = wait.recv();
        },
    );
    heard.all()
}

/// A Kea on `client0`, as its manual sets it up; newer ones write leases to one directory of the system only, and need not here.
fn kea(scratch: &Path) -> Ends {
    let text = r#"{ "Dhcp4": { "interfaces-config": { "interfaces": [ "client0" ] },
        "lease-database": { "type": "memfile", "persist": false }, "valid-lifetime": 3600,
        "subnet4": [ { "id": 1, "subnet": "10.77.0.0/24", "pools": [ { "pool": "10.77.0.100 - 10.77.0.150" } ] } ] } }"#;
    let file = scratch.join("kea.json");
    fs::write(&file, text).expect("its settings");
    let (file, here) = (file.display().to_string(), scratch.display());
    let arguments = [&format!("KEA_PIDFILE_DIR={here}"), "KEA_LOCKFILE_DIR=none", "kea-dhcp4", "-c", &file];
    start("env", &arguments)
}

fn fetched(events: &[BootPlaneEvent], wanted: &str) -> bool {
    let program = |path: &str| path.ends_with("uki.efi");
    events.iter().any(
        |e| matches!(e, BootPlaneEvent::Sent { protocol, path, .. } if protocol == wanted && program(path)),
    )
}

/// Without root nothing is booted, and nothing seen.
fn beside(around: Around) {
    let events = boots(around);
    let leased = |e: &BootPlaneEvent| matches!(e, BootPlaneEvent::Lease { .. });
    assert!(events.is_empty() || (fetched(&events, "tftp") && !events.iter().any(leased)), "{events:#?}");
}

#[test]
fn case_03_04_ovmf_boots_by_pxe_beside_a_foreign_dhcp_server() {
    beside(Around::Dnsmasq);
}

#[test]
fn case_03_04_ovmf_boots_by_pxe_beside_kea() {
    beside(Around::Kea);
}

#[test]
fn case_05_22_24_ovmf_boots_by_http() {
    let events = boots(Around::HttpOnly);
    assert!(events.is_empty() || fetched(&events, "http"), "{events:#?}");
}

#[test]
fn case_12_ovmf_boots_by_pxe_behind_a_relay() {
    let events = boots(Around::Relay);
    let there =
        |e: &BootPlaneEvent| matches!(e, BootPlaneEvent::Lease { address, .. } if address.octets()[1] == 78);
    assert!(events.is_empty() || (fetched(&events, "tftp") && events.iter().any(there)), "{events:#?}");
}
