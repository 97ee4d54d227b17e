//! A recipe's file, read: every key, and every mistake.

use toml::Spanned;

use super::{
    Recipe, Rescue, SecureBoot,
    entries::{file, group, service, user},
    words::{
        all, checked, day, is_argument, is_glob, is_module, is_name, is_package, is_password_hash,
        is_relative, is_url, text,
    },
};
use crate::{
    fault::{Section, Source},
    manifest::{ImageKind, LocalDisk},
    rescue::AdminKey,
};

pub(super) fn read(source: &Source<'_>) -> Recipe {
    let root = source.root();
    let name = root.string("name").and_then(|n| checked(source, n, "an image name", is_name));
    let kind = root.string("kind").and_then(|k| match *k.get_ref() {
        "host" => Some(ImageKind::Host),
        "guest" => Some(ImageKind::Guest),
        other => {
            source.fault(k.span(), format!("unknown kind \"{other}\""), "known kinds: host, guest");
            None
        }
    });
    let (mut kernel, mut arguments) = (None, vec![]);
    if let Some(section) = root.section("kernel") {
        kernel = section.string("package").and_then(|p| checked(source, p, "a package name", is_package));
        arguments = all(source, section.strings("arguments"), "one kernel argument", is_argument);
        section.close();
    }
    let (mut initrd_modules, mut root_modules, mut keep_modules) = (vec![], vec![], vec![]);
    if let Some(section) = root.section("modules") {
        initrd_modules = all(source, section.strings("initrd"), "a module name or glob", is_glob);
        root_modules = all(source, section.strings("root"), "a module name", is_module);
        keep_modules = all(source, section.strings("keep"), "a module name or glob", is_glob);
        section.close();
    }
    let secure_boot = root.section("secure_boot").and_then(|section| {
        let cert = section.required("cert", "the certificate (PEM or DER) that the machines' firmware knows");
        let key = text(section.string("key"));
        section.close();
        Some(SecureBoot { cert: (*cert?.get_ref()).to_owned(), key })
    });
    let disk = root.section("disk").map(|section| {
        let (span, disk) = (section.span(), disk(source, &section));
        section.close();
        if disk.partition.is_some() == disk.serial.is_some() {
            source.fault(
                span,
                "[disk] must say how the disk is recognised".to_owned(),
                "give exactly one of: partition = \"GPT NAME\", serial = \"NUMBER\"",
            );
        }
        disk
    });
    if disk.is_some() {
        initrd_modules.extend(DISK_MODULES.map(str::to_owned));
    }
    let rescue = root.section("rescue").and_then(|section| {
        let password = section.string("password").and_then(|p| {
            if is_password_hash(p.get_ref()) {
                return Some((*p.get_ref()).to_owned());
            }
            // The value is not repeated: it may be the password itself.
            source.fault(
                p.span(),
                "this is no password hash as in /etc/shadow".to_owned(),
                "known are yescrypt ($y$), SHA-512 ($6$) and SHA-256 ($5$): mkpasswd -m yescrypt prints one",
            );
            None
        });
        let is_key = |line: &str| !line.contains(char::is_control) && line.parse::<AdminKey>().is_ok();
        let keys = all(source, section.strings("keys"), "a public key (ssh-ed25519 AAAA...)", is_key);
        if section.string("password").is_none() && section.strings("keys").is_empty() {
            section.missing("keys", "lines of id_ed25519.pub; or give `password`, a hash");
        }
        section.close();
        (password.is_some() || !keys.is_empty()).then_some(Rescue { password, keys })
    });
    let recipe = Recipe {
        name,
        kind,
        extends: text(root.string("extends")),
        suite: root.string("suite").and_then(|s| checked(source, s, "a suite name", is_name)),
        components: all(source, root.strings("components"), "a component name", is_name),
        mirrors: all(source, root.strings("mirrors"), "a mirror's address", is_url),
        keyring: text(root.string("keyring")),
        packages: all(source, root.strings("packages"), "a package name", is_package),
        leave_out: all(source, root.strings("leave_out"), "a package name", is_package),
        strict: root.boolean("strict"),
        scripts: root.boolean("scripts"),
        kernel,
        arguments,
        initrd_modules,
        root_modules,
        keep_modules,
        files: root.sections("file").into_iter().filter_map(|s| file(source, s)).collect(),
        users: root.sections("user").into_iter().filter_map(|s| user(source, s)).collect(),
        groups: root.sections("group").into_iter().filter_map(|s| group(source, s)).collect(),
        services: root.sections("service").into_iter().filter_map(|s| service(source, s)).collect(),
        prune: all(source, root.strings("prune"), "a glob without a leading /", is_relative),
        ports: ports(source, &root),
        hostname: root.string("hostname").and_then(|h| checked(source, h, "a host name", is_name)),
        valid_days: root.integer("valid_days", 1..=36_500).and_then(|days| u32::try_from(days).ok()),
        minimum: root
            .string("minimum")
            .and_then(|m| checked(source, m, "a date like 2026-10-01", |m| day(m).is_some()))
            .and_then(|m| day(&m)),
        secure_boot,
        disk,
        rescue,
    };
    twice(source, &root);
    root.close();
    recipe
}

/// Names that may stand only once in one file.
fn twice(source: &Source<'_>, root: &Section<'_, '_>) {
    for (table, key) in [("file", "dest"), ("user", "name"), ("group", "name"), ("service", "name")] {
        let mut seen = vec![];
        for section in root.sections(table) {
            let Some(name) = section.string(key) else { continue };
            if seen.contains(name.get_ref()) {
                source.fault(
                    name.span(),
                    format!("[[{table}]] \"{}\" is here twice", name.get_ref()),
                    "remove one",
                );
            }
            seen.push(name.into_inner());
        }
    }
}

/// What reaches the disks of usual machines, and encrypts swap.
const DISK_MODULES: [&str; 8] = [
    "kernel/drivers/nvme/host/nvme.*",
    "kernel/drivers/ata/ahci.*",
    "kernel/drivers/scsi/sd_mod.*",
    "kernel/drivers/block/virtio_blk.*",
    "kernel/drivers/md/dm-crypt.*",
    "kernel/crypto/xts.*",
    "kernel/crypto/ecb.*",
    "kernel/arch/x86/crypto/aesni-intel.*",
];

fn disk(source: &Source<'_>, section: &Section<'_, '_>) -> LocalDisk {
    let named = |key: &str, value: Option<Spanned<&str>>| {
        let wanted = format!("a {key} of 1 to 64 printable characters");
        let plain = |text: &str| (1..=64).contains(&text.len()) && text.chars().all(|c| c.is_ascii_graphic());
        value.and_then(|value| checked(source, value, &wanted, plain))
    };
    LocalDisk {
        partition: named("partition name", section.string("partition")),
        serial: named("serial number", section.string("serial")),
    }
}

fn ports(source: &Source<'_>, root: &Section<'_, '_>) -> Vec<u16> {
    let ports = root.strings("ports");
    let parsed = ports.into_iter().filter_map(|port| match port.get_ref().parse::<u16>() {
        Ok(number) if number > 0 => Some(number),
        _ => {
            source.fault(
                port.span(),
                format!("\"{}\" is not a TCP port", port.get_ref()),
                "write ports as strings of numbers from 1 to 65535",
            );
            None
        }
    });
    parsed.collect()
}
