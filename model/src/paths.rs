//! URL paths and file names on which two rooms must agree.

/// HTTP port of the server when nothing else is said.
pub const HTTP_PORT: u16 = 8080;

/// `GET ?mac=..&nonce=..` → [`crate::boot::SignedAnswer`].
pub const BOOT_ANSWER: &str = "/v1/boot/answer";
/// `POST` a [`crate::boot::BootReport`]. When HTTP fails, init sends a short one as a single datagram to the same port of UDP.
pub const BOOT_REPORT: &str = "/v1/boot/report";
/// `GET ?mac=..` → the iPXE script of one machine.
pub const IPXE_SCRIPT: &str = "/boot/script.ipxe";
/// What UEFI HTTP boot of a machine that boots its own disk is pointed at. Nothing is there: firmware goes on at once.
pub const OWN_DISK: &str = "/boot/own-disk";
/// Prefix of published images: `/images/NAME/GENERATION/FILE`.
pub const IMAGES: &str = "/images";
/// WebSocket that a node opens; `Authorization: Bearer` carries the token of its boot answer.
pub const NODE_CHANNEL: &str = "/v1/node/channel";
/// Saved guests: `/v1/saved/GUEST/REVISION/{memory,disk}`, `GET` and `PUT` with the node's token.
pub const SAVED: &str = "/v1/saved";
/// `POST /v1/guests/NAME/report`: a guest tells what it computed (JSON object), with its own token.
pub const GUESTS: &str = "/v1/guests";

/// Port at which a node gives blocks of its root to the machines that the server named, where the site allows it.
pub const PEER_PORT: u16 = 8098;
/// `GET /root/HASH` with a range of whole chunks, at a node's [`PEER_PORT`]; `HASH` is the root hash in hex.
pub const PEER_ROOT: &str = "/root";
/// `GET /root/HASH/held/ADDRESS` → a bit for each chunk that the node holds; `ADDRESS` is the asker's own.
pub const PEER_HELD: &str = "/held";
/// Most machines that a boot answer names as peers.
pub const MOST_PEERS: usize = 62;

/// Manifest of a generation, inside its directory.
pub const MANIFEST: &str = "manifest.json";
/// Detached [`crate::manifest::Signature`] (JSON) beside the manifest.
pub const SIGNATURE: &str = "manifest.sig";
/// Kernel of a generation.
pub const KERNEL: &str = "vmlinuz";
/// initramfs of a generation.
pub const INITRD: &str = "initrd.img";
/// Unified kernel image for UEFI.
pub const UKI: &str = "uki.efi";
/// Root file system (EROFS, then its verity tree).
pub const ROOT: &str = "root.erofs";

/// Where init looks for the public keys that may sign a manifest: one `ed25519` key in hex per line.
pub const TRUSTED_KEYS: &str = "/etc/labshift/trusted-keys";
/// Where init looks for the public keys that may sign a boot answer: those of the servers.
pub const SERVER_KEYS: &str = "/etc/labshift/server-keys";
/// The time, as text, before which no manifest may be signed that init boots.
pub const MINIMUM: &str = "/etc/labshift/minimum";
/// Who may open the rescue shell, a line each: a password's hash as in `/etc/shadow`, or a public key (`ssh-ed25519 AAAA...`). Absent: nobody.
pub const RESCUE: &str = "/etc/labshift/rescue";
/// The rescue shell in the initramfs: a static busybox.
pub const RESCUE_SHELL: &str = "/bin/busybox";
/// Key of the servers inside a store, a seed in hex; made by the builder or by a server, whoever comes first.
pub const SERVER_KEY: &str = "keys/server.key";
/// [`crate::context::NodeContext`] as JSON, written by init for the runtime.
pub const NODE_CONTEXT: &str = "/run/labshift/node.json";
/// Unix socket on which init takes requests ([`crate::context::InitRequest`], one JSON line each).
pub const INIT_SOCKET: &str = "/run/labshift/init.sock";
/// The runtime makes this file when libvirt has answered it; recipes wait for it.
pub const RUNTIME_READY: &str = "/run/labshift/runtime.ready";
/// Unix socket of the remote-CUDA server on a node.
pub const RCUDA_SOCKET: &str = "/run/labshift/rcuda.sock";
/// vsock port of the remote-CUDA server, for the node's guests (host CID 2).
pub const RCUDA_VSOCK_PORT: u32 = 9700;
/// Guests' disks and memory on a node, one directory each. Volatile.
pub const DOMAINS: &str = "/var/lib/labshift/domains";
/// Guest images on a node, by generation. Volatile.
pub const NODE_IMAGES: &str = "/var/lib/labshift/images";
