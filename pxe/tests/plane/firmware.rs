//! Real UEFI firmware (OVMF in QEMU) against the plane: PXE beside a foreign DHCP server, and HTTP boot. What it loads is iPXE
//! in the place of an image, which asks DHCP again: that shows that the firmware ran what it got.

use std::{
    fs,
    net::SocketAddr,
    path::Path,
    process::{Child, Command, Stdio},
    sync::{Arc, mpsc},
    time::Duration,
};

use labshift_model::boot::{BootPlaneEvent, Speaker};
use labshift_pxe::{BootPlane, Config, Mode};
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

/// Boots the machine in a plane of this mode, beside a dnsmasq that gives addresses if there is one, until iPXE speaks.
fn boots(mode: Mode, http_only: bool) -> Vec<BootPlaneEvent> {
    let notes = Notes::default();
    let heard = notes.clone();
    let (over, wait) = mpsc::channel::<()>();
    on_a_cable(
        move |runtime, _, ready, _| {
            let _over = over;
            let scratch = tempfile::tempdir().expect("a directory");
            let loader = fs::read("/usr/lib/ipxe/snponly.efi").expect("iPXE; `make deps` installs it");
            let generation = publish(scratch.path(), &[("uki.efi", &loader)]);
            ip("link add bridge0 type bridge");
            ip("tuntap add tap0 mode tap");
            for port in ["server0", "tap0"] {
                ip(&format!("link set {port} master bridge0"));
                ip(&format!("link set {port} up"));
            }
            ip("address add 10.77.0.1/24 dev bridge0");
            ip("link set bridge0 up");
            let state = scratch.path().join("state");
            let mut config = Config::new("bridge0", SERVER, 24, scratch.path().into(), state);
            config.mode = mode;
            let site = Arc::new(Site { generation, ..Site::default() });
            runtime.block_on(async {
                let plane = BootPlane::bind(config, site, Arc::new(notes.clone())).expect("the plane");
                let listener = TcpListener::bind(plane.http_address()).await.expect("the HTTP port");
                tokio::spawn(plane.http_front().serve(listener, plane.http_router()));
                ready.send(String::new()).expect("the other side waits");
                let _machine = machine(scratch.path(), http_only);
                let spoke =
                    |e: &BootPlaneEvent| matches!(e, BootPlaneEvent::Offer { speaker: Speaker::Ipxe, .. });
                let done = async { drop(notes.wait_for(spoke).await) };
                let served = timeout(GUARD, plane.serve(done)).await;
                assert!(served.is_ok(), "the firmware got no further than {:#?}", notes.all());
            });
        },
        move |_, _, _| {
            if mode != Mode::Proxy {
                return;
            }
            let address: SocketAddr = ([10, 77, 0, 3], 0).into();
            ip(&format!("address add {}/24 dev client0", address.ip()));
            ip("link set client0 up");
            let scratch = tempfile::tempdir().expect("a directory");
            let leases = format!("--dhcp-leasefile={}", scratch.path().join("leases").display());
            let arguments = [
                "--keep-in-foreground",
                "--log-facility=-",
                "--user=root",
                "--port=0",
                "--interface=client0",
                "--bind-interfaces",
                "--dhcp-authoritative",
                "--no-ping",
                "--dhcp-range=10.77.0.100,10.77.0.150,1h",
                "--conf-file=/dev/null",
                &leases,
            ];
            let _dnsmasq = start("dnsmasq", &arguments);
            // Until the server's side is done.
            let _ = wait.recv();
        },
    );
    heard.all()
}

fn fetched(events: &[BootPlaneEvent], wanted: &str) -> bool {
    let program = |path: &str| path.ends_with("uki.efi");
    events.iter().any(
        |e| matches!(e, BootPlaneEvent::Sent { protocol, path, .. } if protocol == wanted && program(path)),
    )
}

#[test]
fn case_03_04_ovmf_boots_by_pxe_beside_a_foreign_dhcp_server() {
    let events = boots(Mode::Proxy, false);
    let none = |e: &BootPlaneEvent| matches!(e, BootPlaneEvent::Lease { .. });
    assert!(events.is_empty() || (fetched(&events, "tftp") && !events.iter().any(none)), "{events:#?}");
}

#[test]
fn case_05_22_24_ovmf_boots_by_http() {
    let events = boots(Mode::Authoritative, true);
    assert!(events.is_empty() || fetched(&events, "http"), "{events:#?}");
}
