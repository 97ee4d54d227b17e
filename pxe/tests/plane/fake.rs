//! A directory and a journal in memory, and images in a temporary store.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv4Addr, SocketAddrV4},
    path::Path,
};

use dhcproto::{
    Decodable, Decoder, Encodable,
    v4::{Flags, HType, Message, MessageType, OptionCode},
};
use ed25519_dalek::SigningKey;
use jiff::Timestamp;
use labshift_model::{
    MacAddr,
    boot::{
        BootAnswer, BootChoice, BootPlaneEvent, Directory, Journal, Machine, MachineKind, NoAnswer,
        SignedAnswer,
    },
    manifest::{FileEntry, ImageKind, Manifest, Root, SCHEMA, generation_of, sign},
};
use labshift_pxe::{
    Config, Mode,
    dhcp::{
        answer::{Answer, Port, answer},
        lease::Leases,
    },
};
use tokio::sync::watch;

pub const SERVER: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
pub const NOW: Timestamp = Timestamp::UNIX_EPOCH;

/// A workstation with a fixed address.
pub const FIXED: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);
pub const FIXED_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 11);
/// A workstation without one.
pub const POOLED: MacAddr = MacAddr([2, 0, 0, 0, 0, 2]);
/// A virtual machine.
pub const GUEST: MacAddr = MacAddr([2, 0, 0, 0, 0, 3]);
/// Known, but must not boot.
pub const REFUSED: MacAddr = MacAddr([2, 0, 0, 0, 0, 4]);
/// Boots from its disk.
pub const DISK: MacAddr = MacAddr([2, 0, 0, 0, 0, 5]);
/// Not in the directory, but there is an image for it.
pub const NEW: MacAddr = MacAddr([2, 0, 0, 0, 0, 98]);
/// Not in the directory.
pub const STRANGER: MacAddr = MacAddr([2, 0, 0, 0, 0, 99]);

#[derive(Default)]
pub struct Site {
    /// Generation of image `lab`.
    pub generation: String,
    /// Kernel arguments of the schedule.
    pub arguments: String,
}

impl Directory for Site {
    fn machine(&self, mac: MacAddr) -> Option<Machine> {
        let names = HashMap::from([
            (FIXED, "lab-01"),
            (POOLED, "lab-02"),
            (GUEST, "vm-01"),
            (REFUSED, "lab-04"),
            (DISK, "lab-05"),
        ]);
        let kind = if mac == GUEST { MachineKind::Guest } else { MachineKind::Node };
        let address = (mac == FIXED).then_some(FIXED_ADDRESS);
        names.get(&mac).map(|name| Machine { name: (*name).to_owned(), address, kind })
    }

    fn boot(&self, mac: MacAddr) -> BootChoice {
        match mac {
            REFUSED => BootChoice::Refuse("the room is closed".to_owned()),
            DISK => BootChoice::LocalDisk,
            FIXED | POOLED | NEW => BootChoice::Image {
                name: "lab".to_owned(),
                generation: self.generation.clone(),
                arguments: self.arguments.clone(),
            },
            _ => BootChoice::Ignore,
        }
    }

    fn answer(&self, mac: MacAddr, nonce: &str, _: IpAddr) -> Result<SignedAnswer, NoAnswer> {
        if mac != FIXED {
            return Err(match mac {
                NEW => NoAnswer::Unknown(format!("{mac} is no machine of this site")),
                _ => NoAnswer::Refused(format!("{mac} may not boot: the room is closed")),
            });
        }
        let key = SigningKey::from_bytes(&[7; 32]);
        let answer = BootAnswer {
            node: "lab-01".to_owned(),
            room: "101".to_owned(),
            image: "lab".to_owned(),
            generation: self.generation.clone(),
            manifest: "{}".to_owned(),
            signature: sign(b"{}", &key, NOW, None),
            attempt: 3,
            token: "secret".to_owned(),
            now: NOW,
            nonce: nonce.to_owned(),
            peers: vec![],
        };
        Ok(SignedAnswer::sign(&answer, &key))
    }
}

#[derive(Clone)]
pub struct Notes(watch::Sender<Vec<BootPlaneEvent>>);

impl Default for Notes {
    fn default() -> Self {
        Notes(watch::Sender::new(vec![]))
    }
}

impl Journal for Notes {
    fn record(&self, event: BootPlaneEvent) {
        self.0.send_modify(|events| events.push(event));
    }
}

impl Notes {
    /// Waits until an event fits.
    pub async fn wait_for(&self, fits: impl Fn(&BootPlaneEvent) -> bool) -> BootPlaneEvent {
        let mut notes = self.0.subscribe();
        let events = notes.wait_for(|events| events.iter().any(&fits)).await.expect("the journal");
        events.iter().find(|event| fits(event)).cloned().expect("it is there")
    }

    /// Waits until so many events fit, and gives everything that was noted.
    pub async fn wait_for_count(
        &self,
        count: usize,
        fits: impl Fn(&BootPlaneEvent) -> bool,
    ) -> Vec<BootPlaneEvent> {
        let mut notes = self.0.subscribe();
        let enough = |events: &Vec<BootPlaneEvent>| events.iter().filter(|e| fits(e)).count() >= count;
        let guarded = tokio::time::timeout(std::time::Duration::from_secs(60), notes.wait_for(enough)).await;
        guarded.expect("no hang").expect("the journal").clone()
    }

    pub fn all(&self) -> Vec<BootPlaneEvent> {
        self.0.borrow().clone()
    }
}

pub fn config() -> Config {
    Config::new("lab0", SERVER, 24, "/nowhere".into(), "/nowhere".into())
}

/// Publishes image `lab` with these files and gives its generation.
pub fn publish(store: &Path, files: &[(&str, &[u8])]) -> String {
    let entry = |bytes: &[u8]| FileEntry { size: bytes.len() as u64, sha256: generation_of(bytes) };
    let manifest = Manifest {
        schema: SCHEMA,
        name: "lab".to_owned(),
        kind: ImageKind::Host,
        architecture: "amd64".to_owned(),
        kernel_release: "6.12".to_owned(),
        kernel_arguments: "quiet".to_owned(),
        root: Root { root_hash: "ab".repeat(32), salt: "00".into(), data_size: 4096, block_size: 4096 },
        files: files.iter().map(|(name, bytes)| ((*name).to_owned(), entry(bytes))).collect(),
        lock: "22".to_owned(),
        services: vec![],
        modules: vec![],
        ports: vec![],
        valid_days: None,
        disk: None,
    };
    let bytes = manifest.to_bytes();
    let generation = generation_of(&bytes);
    let directory = store.join("images/lab").join(&generation);
    std::fs::create_dir_all(&directory).expect("making the generation");
    let signature =
        serde_json::to_vec(&sign(&bytes, &SigningKey::from_bytes(&[7; 32]), Timestamp::UNIX_EPOCH, None))
            .expect("signing");
    for (name, content) in
        files.iter().copied().chain([("manifest.json", &bytes[..]), ("manifest.sig", &signature)])
    {
        std::fs::write(directory.join(name), content).expect("writing");
    }
    generation
}

/// A DHCP server without a network.
pub struct Bench {
    pub config: Config,
    pub site: Site,
    pub leases: Leases,
    pub now: Timestamp,
}

impl Bench {
    pub fn new() -> Self {
        let site = Site { generation: "ab".repeat(32), arguments: String::new() };
        Bench { config: config(), site, leases: Leases::default(), now: NOW }
    }

    pub fn proxy() -> Self {
        let mut bench = Bench::new();
        bench.config.mode = Mode::Proxy;
        bench
    }

    pub fn feed(&mut self, packet: &[u8], source: &str, port: Port) -> Answer {
        let source: SocketAddrV4 = source.parse().expect("an address");
        answer(packet, source, port, &self.config, &mut self.leases, &self.site, self.now)
    }

    /// Sends to port 67 as a client without address does.
    pub fn send(&mut self, request: &Ask) -> Answer {
        self.feed(&request.bytes(), "0.0.0.0:68", Port::Dhcp)
    }

    /// The one reply to a request.
    pub fn reply(&mut self, request: &Ask) -> Message {
        let answer = self.send(request);
        assert_eq!(answer.replies.len(), 1, "{:?}", request.options);
        read(&answer.replies[0].bytes)
    }

    /// DISCOVER and REQUEST: the address that the machine has then.
    pub fn boot(&mut self, mac: MacAddr) -> Ipv4Addr {
        let offer = self.reply(&Ask::discover(mac));
        let ack = self.reply(&Ask::request(mac, offer.yiaddr()));
        assert_eq!(kind(&ack), MessageType::Ack);
        assert_eq!(ack.yiaddr(), offer.yiaddr());
        ack.yiaddr()
    }
}

/// A request under construction.
#[derive(Clone)]
pub struct Ask {
    pub mac: MacAddr,
    pub broadcast: bool,
    pub ciaddr: Ipv4Addr,
    pub giaddr: Ipv4Addr,
    pub options: Vec<(u8, Vec<u8>)>,
}

impl Ask {
    pub fn of(kind: u8, mac: MacAddr) -> Self {
        let zero = Ipv4Addr::UNSPECIFIED;
        Ask { mac, broadcast: false, ciaddr: zero, giaddr: zero, options: vec![(53, vec![kind])] }
    }

    pub fn discover(mac: MacAddr) -> Self {
        Ask::of(1, mac)
    }

    /// A REQUEST that takes our offer.
    pub fn request(mac: MacAddr, address: Ipv4Addr) -> Self {
        Ask::of(3, mac).with(50, &address.octets()).with(54, &SERVER.octets())
    }

    pub fn with(mut self, code: u8, value: &[u8]) -> Self {
        self.options.retain(|(c, _)| *c != code);
        self.options.push((code, value.to_vec()));
        self
    }

    /// As network boot firmware of this architecture.
    pub fn firmware(self, architecture: u16) -> Self {
        let class = if architecture == 16 { "HTTPClient" } else { "PXEClient" };
        let class = format!("{class}:Arch:{architecture:05}:UNDI:003016");
        self.with(60, class.as_bytes()).with(93, &architecture.to_be_bytes()).with(97, &[7; 17])
    }

    pub fn ipxe(self) -> Self {
        self.firmware(0).with(77, b"iPXE").with(175, &[0xb1, 1, 1])
    }

    pub fn init(self) -> Self {
        self.with(60, b"labshift-init")
    }

    pub fn bytes(&self) -> Vec<u8> {
        let zero = Ipv4Addr::UNSPECIFIED;
        let mut message =
            Message::new_with_id(0x1234_5678, self.ciaddr, zero, zero, self.giaddr, &self.mac.0);
        message.set_htype(HType::Eth);
        if self.broadcast {
            message.set_flags(Flags::default().set_broadcast());
        }
        let mut bytes = message.to_vec().expect("encoding");
        for (code, value) in &self.options {
            bytes.extend([*code, value.len() as u8]);
            bytes.extend(value);
        }
        bytes.push(255);
        bytes
    }
}

pub fn read(bytes: &[u8]) -> Message {
    assert!(bytes.len() >= 300, "shorter than BOOTP allows");
    Message::decode(&mut Decoder::new(bytes)).expect("decoding")
}

pub fn kind(message: &Message) -> MessageType {
    message.opts().msg_type().expect("a message type")
}

/// An option as it stood on the wire.
pub fn raw(message: &Message, code: u8) -> Option<Vec<u8>> {
    let bytes = message.opts().get(OptionCode::from(code))?.to_vec().expect("encoding");
    Some(bytes.get(2..).unwrap_or_default().to_vec())
}

/// The boot file, which `file` and option 67 must agree on.
pub fn boot_file(message: &Message) -> Option<String> {
    let option = raw(message, 67).map(|value| String::from_utf8(value).expect("text"));
    let option = option.map(|text| text.trim_end_matches('\0').to_owned());
    let field = message.fname_str().map(|text| text.expect("text").trim_end_matches('\0').to_owned());
    let field = field.filter(|name| !name.is_empty());
    if let (Some(option), Some(field)) = (&option, &field) {
        assert_eq!(option, field);
    }
    option
}
