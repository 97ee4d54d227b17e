//! What the user typed.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

mod image;

pub use image::{
    Image, ImageBuild, ImageGc, ImageInspect, ImageLock, ImagePush, ImageRun, ImageSign, ImageTrust,
    ImageVerify,
};

/// Turn a room of PCs into a stateless KVM cloud: desktops in lab hours, compute hosts otherwise, off when idle.
#[derive(Debug, Parser)]
#[command(
    name = "labshift",
    version,
    propagate_version = true,
    subcommand_required = true,
    arg_required_else_help = true,
    after_help = "Exit codes: 0 done · 1 failed · 2 wrong usage · 3 a file has mistakes · 4 not found · \
5 no permission · 6 the server can't be reached"
)]
pub struct Arguments {
    /// Print JSON on standard output instead of text.
    #[arg(long, global = true)]
    pub json: bool,
    /// Say more about what happens; twice for everything.
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub verbose: u8,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The nouns.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Build, lock and look at images.
    #[command(subcommand)]
    Image(Image),
    /// Boot server and control plane: DHCP, TFTP, HTTP, schedules, dashboard.
    Serve(Serve),
    /// Check a site file and see its schedule.
    #[command(subcommand)]
    Site(Site),
    /// Find out why machines do not boot: watches a network, or reads a capture.
    Doctor(Doctor),
    /// Look at and steer workstations.
    #[command(subcommand)]
    Node(Node),
    /// The whole fleet at a glance.
    Status(Server),
    /// A virtual lab in QEMU: try a recipe or a schedule before a room sees it.
    #[command(subcommand)]
    Lab(Lab),
    /// Print a completion script for a shell.
    Completions {
        /// Shell to print it for.
        shell: clap_complete::Shell,
    },
}

/// Where packages come from.
#[derive(Debug, Args)]
pub struct Sources {
    /// Debian mirror to use instead of the machine's own apt sources (repeatable).
    #[arg(long, value_name = "URL")]
    pub mirror: Vec<String>,
    /// Keyring that may sign package indexes, instead of the machine's Debian archive keys.
    #[arg(long, value_name = "FILE")]
    pub keyring: Option<PathBuf>,
    /// Directory for downloaded packages; by default the user's cache directory.
    #[arg(long, value_name = "DIR", env = "LABSHIFT_CACHE")]
    pub cache: Option<PathBuf>,
}

/// `serve`.
#[derive(Debug, Args)]
pub struct Serve {
    /// Site file.
    #[arg(long, default_value = "site.toml", env = "LABSHIFT_SITE")]
    pub site: PathBuf,
    /// Image store.
    #[arg(short = 'o', long, default_value = "store", env = "LABSHIFT_STORE")]
    pub store: PathBuf,
    /// Directory for what the server learns by itself: registry, leases, saved guests, the admin's token.
    #[arg(long, default_value = "/var/lib/labshift", env = "LABSHIFT_STATE")]
    pub state: PathBuf,
    /// Network interface of the lab.
    #[arg(long)]
    pub interface: String,
    /// TCP port for firmware and nodes, on the server's address in the lab.
    #[arg(long, default_value_t = labshift_model::paths::HTTP_PORT)]
    pub http_port: u16,
    /// TCP port for HTTPS beside HTTP, on the server's address in the lab; needs a certificate and its key.
    #[arg(long, requires_all = ["tls_certificate", "tls_key"])]
    pub https_port: Option<u16>,
    /// Certificate chain for HTTPS (PEM), with an RSA key: iPXE from before the end of 2025 verifies no other.
    #[arg(long, value_name = "FILE", requires = "https_port")]
    pub tls_certificate: Option<PathBuf>,
    /// Private key of the certificate (PEM).
    #[arg(long, value_name = "FILE", requires = "https_port")]
    pub tls_key: Option<PathBuf>,
    /// Where the dashboard and the admin API listen; a socket handed over by systemd takes its place.
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:8088")]
    pub dashboard: std::net::SocketAddr,
    /// Directory with iPXE's undionly.kpxe and snponly.efi.
    #[arg(long, value_name = "DIR", default_value = labshift_pxe::DEBIAN_LOADERS)]
    pub loaders: PathBuf,
    /// Serve TFTP over IPv6 too, on all addresses of the interface (who boots over IPv6 gets its address elsewhere).
    #[arg(long)]
    pub tftp_ipv6: bool,
    /// Whether this server gives out addresses.
    #[arg(long, value_enum, default_value_t = DhcpMode::Authoritative)]
    pub dhcp: DhcpMode,
    /// `system`, or `manual:2026-11-23T07:40:00` for a clock that an admin moves (virtual labs).
    #[arg(long, default_value = "system")]
    pub clock: String,
}

/// `doctor`.
#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("source").required(true))]
pub struct Doctor {
    /// Capture to read (pcap or pcapng, as tcpdump and Wireshark write them).
    #[arg(group = "source", value_name = "CAPTURE")]
    pub capture: Option<PathBuf>,
    /// Network interface to watch; needs root or CAP_NET_RAW. The server's own, or one that a switch mirrors to.
    #[arg(long, group = "source")]
    pub interface: Option<String>,
    /// Stop watching after so many seconds; at Ctrl-C when absent.
    #[arg(long, requires = "interface")]
    pub seconds: Option<u64>,
}

/// DHCP modes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum DhcpMode {
    /// The only DHCP server of its network.
    Authoritative,
    /// Adds boot information beside another server.
    Proxy,
    /// Gives no answers; prints what the other server needs.
    Off,
}

/// DHCP servers that others run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Elsewhere {
    /// dnsmasq.
    Dnsmasq,
    /// ISC dhcpd.
    Isc,
    /// Kea.
    Kea,
    /// Windows Server.
    Windows,
}

/// Site commands.
#[derive(Debug, Subcommand)]
pub enum Site {
    /// Report every mistake of a site file.
    Check {
        /// Site file.
        #[arg(default_value = "site.toml")]
        file: PathBuf,
    },
    /// Print what another DHCP server needs so that machines boot from this site's server.
    Dhcp {
        /// Site file.
        #[arg(default_value = "site.toml")]
        file: PathBuf,
        /// The other server; all when absent.
        #[arg(long = "for", value_enum)]
        kind: Option<Elsewhere>,
        /// TCP port of this site's server.
        #[arg(long, default_value_t = labshift_model::paths::HTTP_PORT)]
        http_port: u16,
    },
    /// Print what each room does when, and why.
    Schedule {
        /// Site file.
        #[arg(default_value = "site.toml")]
        file: PathBuf,
        /// First moment, as local time of the site (2026-11-23T07:00); now when absent.
        #[arg(long)]
        from: Option<String>,
        /// Days to print.
        #[arg(long, default_value_t = 1)]
        days: u16,
    },
}

/// How to reach a running server.
#[derive(Debug, Clone, Args)]
pub struct Server {
    /// Server's address.
    #[arg(long, default_value = "http://127.0.0.1:8088", env = "LABSHIFT_SERVER")]
    pub server: String,
    /// File with the admin's token.
    #[arg(long, default_value = "/var/lib/labshift/admin.token", env = "LABSHIFT_TOKEN_FILE")]
    pub token_file: PathBuf,
}

/// Node commands.
#[derive(Debug, Subcommand)]
pub enum Node {
    /// List the nodes and what they do.
    List(Server),
    /// Say why a node is as it is and what comes next.
    Explain {
        /// Node name.
        node: String,
        /// Server.
        #[command(flatten)]
        server: Server,
    },
    /// Show a node's boots, stage by stage.
    Boots {
        /// Node name.
        node: String,
        /// Server.
        #[command(flatten)]
        server: Server,
    },
    /// Print what a node logged, from its kernel's start on: PID 1's stages and failures, and the output of its services.
    Log {
        /// Node name.
        node: String,
        /// Earlier boots, too, as far as the server keeps them (1 MiB of each node).
        #[arg(long)]
        all: bool,
        /// Server.
        #[command(flatten)]
        server: Server,
    },
    /// Wake a node now.
    Wake {
        /// Node name.
        node: String,
        /// Server.
        #[command(flatten)]
        server: Server,
    },
    /// Give a node a mode, whatever its schedule says.
    Mode {
        /// Node name.
        node: String,
        /// desktop, compute, maintenance or off; `schedule` takes the override back.
        mode: String,
        /// Server.
        #[command(flatten)]
        server: Server,
    },
    /// Say what a node boots from its next boot on, or only then.
    Boot {
        /// Node name.
        node: String,
        /// `IMAGE`, `IMAGE@GENERATION` (its beginning will do), `disk` for the machine's own disk, or `room` for its room's image again.
        target: String,
        /// For one boot only; with `disk` for ten minutes from its firmware's first request on.
        #[arg(long)]
        once: bool,
        /// Server.
        #[command(flatten)]
        server: Server,
    },
    /// List machines that nobody knows and that wait to be adopted, with their hardware.
    Strangers(Server),
    /// Make a machine known: it goes on to boot its room's image.
    Adopt {
        /// Hardware address, as the machine's screen, `labshift node strangers` and the dashboard show it.
        mac: labshift_model::MacAddr,
        /// Its host name from now on.
        name: String,
        /// The room it stands in.
        room: String,
        /// The address it always gets; the first free one outside the pool when absent.
        #[arg(long)]
        address: Option<std::net::Ipv4Addr>,
        /// Server.
        #[command(flatten)]
        server: Server,
    },
    /// Take an adoption back: the machine is not known any more.
    Forget {
        /// Node name.
        node: String,
        /// Server.
        #[command(flatten)]
        server: Server,
    },
    /// Reboot a node; its batch guests are saved first.
    Reboot {
        /// Node name.
        node: String,
        /// Start the kernel of its generation directly, without the firmware: saves the time that it needs, and nothing else. If the
        /// kernel can't be loaded, the node goes through the firmware.
        #[arg(long)]
        kexec: bool,
        /// Server.
        #[command(flatten)]
        server: Server,
    },
    /// Work out the code that opens the rescue shell of a machine whose boot has failed. Asks no server. Only for a machine in front of which
    /// you, or somebody you trust, stand.
    Rescue {
        /// The challenge that the machine shows; its serial line and its log at the server (`labshift node log`) have it, too.
        #[arg(required = true, num_args = 1..)]
        challenge: Vec<String>,
        /// Private key in OpenSSH's form, whose public half the recipe names (`[rescue] keys`) [default: ~/.ssh/id_ed25519].
        #[arg(long)]
        key: Option<PathBuf>,
    },
}

/// Virtual lab commands.
#[derive(Debug, Subcommand)]
pub enum Lab {
    /// Start a lab for a site file: server, switch, workstations that are off. Runs until Ctrl-C.
    Up(LabUp),
    /// Play one day of a small lab and print its timeline.
    Demo(LabScenario),
    /// Measure boots and mode changes, printed as figures.
    Bench(LabScenario),
    /// List a running lab's workstations.
    Status(Control),
    /// Press a workstation's power button.
    Press(Machine),
    /// Pull a workstation's plug.
    Unplug(Machine),
    /// Cut a workstation's network cable.
    Cut(Machine),
    /// Mend a workstation's network cable.
    Mend(Machine),
    /// Send a magic packet to a workstation from the server's port.
    Wake(Machine),
    /// Save a picture of a workstation's screen.
    Screenshot {
        /// Workstation.
        #[command(flatten)]
        machine: Machine,
        /// PNG file to write.
        file: PathBuf,
    },
    /// Press a key on a workstation's keyboard.
    Key {
        /// Workstation.
        #[command(flatten)]
        machine: Machine,
        /// QEMU's name of the key: a, ret, spc, ctrl.
        key: String,
    },
    /// Wait for something to happen to a workstation.
    Wait {
        /// Workstation.
        #[command(flatten)]
        machine: Machine,
        /// powered-on, powered-off, magic-packet-ignored, serial, reset, cable-cut, cable-mended.
        event: String,
        /// Text that it must hold (for serial: part of the line).
        #[arg(default_value = "")]
        detail: String,
        /// Only what happened after this event number.
        #[arg(long, default_value_t = 0)]
        since: usize,
        /// Give up after so many seconds.
        #[arg(long, default_value_t = 900)]
        guard: u64,
    },
    /// Stop a running lab.
    Stop(Control),
}

/// `lab up`.
#[derive(Debug, Args)]
pub struct LabUp {
    /// Site file; its machines become workstations.
    #[arg(long, default_value = "site.toml", env = "LABSHIFT_SITE")]
    pub site: PathBuf,
    /// Image store.
    #[arg(short = 'o', long, default_value = "store", env = "LABSHIFT_STORE")]
    pub store: PathBuf,
    /// Directory for the lab's state, logs and sockets.
    #[arg(long, default_value = "lab")]
    pub output: PathBuf,
    /// Firmware of a workstation: NAME=bios, NAME=uefi or NAME=secure-boot (it trusts the test key of Debian's ovmf package)
    /// (repeatable); bios when not said.
    #[arg(long, value_name = "NAME=FIRMWARE")]
    pub firmware: Vec<String>,
    /// Disk of a workstation's own: a disk image, or a directory that it sees as a FAT disk (repeatable). Firmware starts it when
    /// the network has nothing to boot.
    #[arg(long, value_name = "NAME=PATH")]
    pub disk: Vec<String>,
    /// Memory of each workstation in MiB.
    #[arg(long, default_value_t = 3072)]
    pub memory: u32,
    /// Address and port on this machine where the dashboard appears.
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:8088")]
    pub dashboard: std::net::SocketAddr,
    /// Megabits per second that the server's cable carries, each way; 0 is as fast as it goes.
    #[arg(long, value_name = "MBIT", default_value_t = 0)]
    pub server_mbit: u32,
    /// The server's clock: `system`, or `manual:TIME`.
    #[arg(long, default_value = "system")]
    pub clock: String,
    /// This process is the lab's first one.
    #[arg(long, hide = true)]
    pub inside: bool,

    /// The process that started this one and must outlive it: a demo that is killed takes its lab along.
    #[arg(long, hide = true)]
    pub end_with: Option<i32>,
}

/// `lab demo` and `lab bench`.
#[derive(Debug, Args)]
pub struct LabScenario {
    /// Directory with recipes lab.toml, guest-desktop.toml and guest-batch.toml.
    #[arg(long, default_value = "recipes")]
    pub recipes: PathBuf,
    /// Image store; images are built when they are missing or their recipes changed.
    #[arg(short = 'o', long, default_value = "store", env = "LABSHIFT_STORE")]
    pub store: PathBuf,
    /// Directory for screenshots, traces and logs.
    #[arg(long, default_value = "demo")]
    pub output: PathBuf,
    /// Address and port on this machine where the dashboard appears.
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:8088")]
    pub dashboard: std::net::SocketAddr,
    /// Package sources.
    #[command(flatten)]
    pub sources: Sources,
}

/// How to reach a running lab.
#[derive(Debug, Args)]
pub struct Control {
    /// The lab's directory (`lab up --output`).
    #[arg(long, default_value = "lab")]
    pub output: PathBuf,
}

/// One workstation of a running lab.
#[derive(Debug, Args)]
pub struct Machine {
    /// Workstation name.
    pub machine: String,
    /// Lab.
    #[command(flatten)]
    pub control: Control,
}
