//! A guest's libvirt domain: a pure function from specification and verified image to XML.
//!
//! Paths, UUID and hardware address follow from the guest's name and image alone, so a saved guest finds the
//! same files on every node. Devices sit on the root bus: each PCIe port in front of one would cost the guest's
//! kernel a part of a second. Format: <https://libvirt.org/formatdomain.html>.

use std::{
    fmt::{self, Write},
    path::Path,
};

use labshift_model::{
    guest::{GuestSpec, Role},
    manifest::Manifest,
    paths,
};
use sha2::{Digest, Sha256};

/// Bridge that carries the physical port and the guests.
pub const BRIDGE: &str = "br0";
/// The guest's writable disk, in its directory.
pub const DISK: &str = "disk.qcow2";
/// What the guest prints on its serial line, in its directory.
pub const CONSOLE: &str = "console.log";

/// What the XML is made from.
#[derive(Debug, Clone, Copy)]
pub struct Source<'a> {
    /// The guest.
    pub spec: &'a GuestSpec,
    /// Its verified image.
    pub manifest: &'a Manifest,
    /// Where the image's files are.
    pub image: &'a Path,
    /// The guest's own directory.
    pub directory: &'a Path,
    /// `http://ADDRESS:PORT` of the server.
    pub server: &'a str,
    /// The node has vhost-vsock.
    pub vsock: bool,
}

/// The guest's kernel command line.
pub fn command_line(source: &Source<'_>) -> String {
    let Source { spec, manifest, server, .. } = source;
    let root = &manifest.root;
    // The last console is the one that PID 1 writes to.
    let consoles = match spec.role {
        Role::Desktop => "console=ttyS0 console=tty0",
        Role::Batch => "console=tty0 console=ttyS0",
    };
    let mut line = format!(
        "{consoles} labshift.root=disk labshift.roothash={} labshift.datasize={} labshift.salt={} \
         labshift.guest={name} labshift.report={server}{}/{name}/report labshift.token={}",
        root.root_hash,
        root.data_size,
        root.salt,
        paths::GUESTS,
        spec.token,
        name = spec.name,
    );
    if !manifest.kernel_arguments.is_empty() {
        line.push(' ');
        line.push_str(&manifest.kernel_arguments);
    }
    line
}

/// The domain XML.
pub fn xml(source: &Source<'_>) -> String {
    let Source { spec, image, directory, vsock, .. } = source;
    let file = |directory: &Path, name: &str| Text(directory.join(name).display().to_string());
    let mut devices = String::new();
    let mut add = |part: fmt::Arguments<'_>| {
        // Writing to a string does not fail.
        let _ = devices.write_fmt(part);
    };
    add(format_args!(
        "    <controller type='usb' model='none'/>
    <disk type='file' device='disk'>
      <driver name='qemu' type='raw'/>
      <source file='{}'/>
      <target dev='vda' bus='virtio'/>
      <readonly/>
      <shareable/>
      <address type='pci' bus='0x00' slot='0x03'/>
    </disk>
",
        file(image, paths::ROOT)
    ));
    if spec.disk_mib > 0 {
        add(format_args!(
            "    <disk type='file' device='disk'>
      <driver name='qemu' type='qcow2' discard='unmap'/>
      <source file='{}'/>
      <target dev='vdb' bus='virtio'/>
      <address type='pci' bus='0x00' slot='0x04'/>
    </disk>
",
            file(directory, DISK)
        ));
    }
    add(format_args!(
        "    <interface type='bridge'>
      <source bridge='{BRIDGE}'/>
      <mac address='{}'/>
      <model type='virtio'/>
      <address type='pci' bus='0x00' slot='0x02'/>
    </interface>
    <serial type='file'>
      <source path='{}' append='off'/>
      <target port='0'/>
    </serial>
    <rng model='virtio'>
      <backend model='random'>/dev/urandom</backend>
      <address type='pci' bus='0x00' slot='0x05'/>
    </rng>
    <memballoon model='none'/>
",
        spec.mac,
        file(directory, CONSOLE)
    ));
    if *vsock {
        add(format_args!(
            "    <vsock model='virtio'>
      <cid auto='no' address='{}'/>
      <address type='pci' bus='0x00' slot='0x06'/>
    </vsock>
",
            spec.cid
        ));
    }
    add(format_args!(
        "{}",
        match spec.role {
            // No port is opened: the kiosk gets a socket from libvirt.
            Role::Desktop =>
                "    <input type='tablet' bus='virtio'>
      <address type='pci' bus='0x00' slot='0x07'/>
    </input>
    <graphics type='vnc'>
      <listen type='none'/>
    </graphics>
    <video>
      <model type='virtio' heads='1' primary='yes'>
        <resolution x='1280' y='800'/>
      </model>
      <address type='pci' bus='0x00' slot='0x01'/>
    </video>
",
            Role::Batch =>
                "    <video>
      <model type='none'/>
    </video>
",
        }
    ));
    format!(
        "<domain type='kvm'>
  <name>{}</name>
  <uuid>{}</uuid>
  <memory unit='MiB'>{}</memory>
  <vcpu>{}</vcpu>
  <os>
    <type arch='x86_64' machine='q35'>hvm</type>
    <kernel>{}</kernel>
    <initrd>{}</initrd>
    <cmdline>{}</cmdline>
  </os>
  <features>
    <acpi/>
  </features>
  <cpu mode='host-passthrough' migratable='on'/>
  <on_poweroff>destroy</on_poweroff>
  <on_reboot>restart</on_reboot>
  <on_crash>destroy</on_crash>
  <devices>
{devices}  </devices>
</domain>
",
        Text(spec.name.clone()),
        uuid(&spec.name),
        spec.memory_mib,
        spec.vcpus,
        file(image, paths::KERNEL),
        file(image, paths::INITRD),
        Text(command_line(source)),
    )
}

/// The domain's UUID, the same on every node: from the name, in the form of version 8 (RFC 9562).
pub fn uuid(name: &str) -> String {
    let hash = Sha256::digest(format!("labshift guest {name}").as_bytes());
    let mut bytes = [0u8; 16];
    bytes.copy_from_slice(&hash[..16]);
    bytes[6] = bytes[6] & 0x0f | 0x80;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let hex = hex::encode(bytes);
    format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}

/// Text inside XML, in an element or a quoted attribute.
struct Text(String);

impl fmt::Display for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for c in self.0.chars() {
            match c {
                '&' => f.write_str("&amp;")?,
                '<' => f.write_str("&lt;")?,
                '>' => f.write_str("&gt;")?,
                '\'' => f.write_str("&apos;")?,
                '"' => f.write_str("&quot;")?,
                // XML 1.0 has no form for other control characters; libvirt would refuse the document.
                c if c.is_control() => f.write_char(' ')?,
                c => f.write_char(c)?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use labshift_model::{
        MacAddr,
        manifest::{ImageKind, Root, SCHEMA},
    };

    use super::*;

    fn manifest() -> Manifest {
        Manifest {
            schema: SCHEMA,
            name: "work".into(),
            kind: ImageKind::Guest,
            architecture: "amd64".into(),
            kernel_release: "6.12".into(),
            kernel_arguments: "quiet".into(),
            root: Root { root_hash: "ab".into(), salt: "cd".into(), data_size: 4096, block_size: 4096 },
            files: BTreeMap::new(),
            lock: "ef".into(),
            services: vec![],
            modules: vec![],
            ports: vec![],
            valid_days: None,
            disk: None,
        }
    }

    fn spec(role: Role, disk_mib: u32) -> GuestSpec {
        GuestSpec {
            name: "guest-1".into(),
            role,
            image: "work".into(),
            generation: "0123".into(),
            memory_mib: 512,
            vcpus: 2,
            disk_mib,
            mac: MacAddr::for_guest("guest-1"),
            cid: 1001,
            token: "s3cret".into(),
            restore: None,
        }
    }

    fn made(spec: &GuestSpec, vsock: bool) -> String {
        xml(&Source {
            spec,
            manifest: &manifest(),
            image: Path::new("/var/lib/labshift/images/0123"),
            directory: Path::new("/var/lib/labshift/domains/guest-1"),
            server: "http://10.77.0.1:8080",
            vsock,
        })
    }

    /// `LABSHIFT_REGENERATE=1 cargo test -p labshift-runtime domain` writes the golden files anew.
    fn assert_golden(name: &str, expected: &str, made: &str) {
        if std::env::var_os("LABSHIFT_REGENERATE").is_some() {
            let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/domain").join(name);
            std::fs::write(&path, made).expect("writing the golden file");
        } else {
            assert_eq!(made, expected, "{name}");
        }
    }

    #[test]
    fn a_batch_guest_and_a_desktop_look_like_the_golden_files() {
        let batch = made(&spec(Role::Batch, 1024), true);
        assert_golden("batch.xml", include_str!("domain/batch.xml"), &batch);
        let desktop = made(&spec(Role::Desktop, 0), false);
        assert_golden("desktop.xml", include_str!("domain/desktop.xml"), &desktop);
    }

    #[test]
    fn text_from_outside_stays_text() {
        let mut hostile = spec(Role::Batch, 0);
        hostile.token = "x</cmdline><on_crash>'\"&\u{7}".into();
        let made = made(&hostile, true);
        assert!(
            made.contains("labshift.token=x&lt;/cmdline&gt;&lt;on_crash&gt;&apos;&quot;&amp;  quiet"),
            "{made}"
        );
    }

    #[test]
    fn a_uuid_belongs_to_a_name() {
        assert_eq!(uuid("a").len(), 36);
        assert_eq!(uuid("a"), uuid("a"));
        assert_ne!(uuid("a"), uuid("b"));
        assert_eq!(&uuid("a")[14..15], "8");
    }
}
