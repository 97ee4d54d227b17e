//! iPXE scripts, one for each machine. A script never drops to a prompt: what fails is said on the screen, and the
//! server is asked again.

use labshift_model::{
    MacAddr,
    manifest::{Manifest, short},
    paths,
};

use crate::dhcp::boot::script_url;

/// Seconds until a machine that must not boot, or could not, asks again.
const AGAIN: u32 = 10;

/// What a machine's script does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Script<'a> {
    /// Boots an image.
    Boot {
        /// Its manifest.
        manifest: &'a Manifest,
        /// Its generation.
        generation: &'a str,
        /// Kernel arguments beyond the image's own.
        arguments: &'a str,
    },
    /// Shows a sentence and asks again.
    Wait(&'a str),
    /// Leaves to the firmware, or the disk.
    LocalDisk,
}

/// The script as text. `base` is the server's URL, `name` the machine's.
pub fn script(base: &str, mac: MacAddr, name: &str, what: &Script<'_>) -> String {
    let (name, again) = (plain(name), format!("chain --replace --autofree {}", script_url(base, mac)));
    match what {
        Script::LocalDisk => format!(
            "#!ipxe\necho labshift: {name} boots from its disk\niseq ${{platform}} efi && exit ||\n\
             sanboot --no-describe --drive 0x80 || exit\n"
        ),
        Script::Wait(sentence) => format!(
            "#!ipxe\n:again\necho\necho labshift: {name} does not boot now: {}\n\
             echo labshift: asking again in {AGAIN} s\nsleep {AGAIN}\n{again} || goto again\n",
            plain(sentence)
        ),
        Script::Boot { manifest, generation, arguments } => {
            let arguments = [&manifest.kernel_arguments, *arguments].map(str::trim).join(" ");
            if let Some(bad) = arguments.chars().find(|c| !is_argument(*c)) {
                let sentence = format!(
                    "kernel arguments of image {} contain the character U+{:04X}, which iPXE would not pass on",
                    manifest.name,
                    u32::from(bad)
                );
                return script(base, mac, name.as_str(), &Script::Wait(&sentence));
            }
            let files = format!("{base}{}/{}/{generation}", paths::IMAGES, manifest.name);
            let (kernel, initrd) = (paths::KERNEL, paths::INITRD);
            format!(
                "#!ipxe\n\
                 echo labshift: {name} boots {} {}\n\
                 imgfree\n\
                 kernel {files}/{kernel} initrd={initrd} {} labshift.server={base} labshift.mac={mac} labshift.roothash={} || goto failed\n\
                 initrd --name {initrd} {files}/{initrd} || goto failed\n\
                 boot || goto failed\n\
                 :failed\n\
                 echo\n\
                 echo labshift: {name} could not fetch {} {} from {base}\n\
                 echo labshift: asking again in {AGAIN} s\n\
                 sleep {AGAIN}\n\
                 {again} || goto failed\n",
                plain(&manifest.name),
                short(generation),
                arguments.trim(),
                manifest.root.root_hash,
                plain(&manifest.name),
                short(generation),
            )
        }
    }
}

/// What iPXE for UEFI looks for beside itself: asks by DHCP only, on the one card it has, and so skips the prompt and
/// the wait for IPv6 routers.
pub fn autoexec(base: &str) -> String {
    format!(
        "#!ipxe\n:again\nifconf -c dhcp net0 || goto again\n\
         chain --replace --autofree {base}{}?mac=${{net0/mac}} || goto again\n",
        paths::IPXE_SCRIPT
    )
}

/// For an iPXE that was sent here without its card's address, as by another DHCP server: it asks again with it.
pub fn introduction(base: &str) -> String {
    format!("#!ipxe\nchain --replace --autofree {base}{}?mac=${{netX/mac}}\n", paths::IPXE_SCRIPT)
}

/// Text that iPXE prints as it is: one line, nothing that it expands or takes for an operator.
fn plain(text: &str) -> String {
    text.chars()
        .map(|c| match c {
            '$' | '|' | '&' | '\\' | '"' | '\'' | '#' => ' ',
            ' '..='~' => c,
            c if c.is_control() => ' ',
            _ => '?',
        })
        .collect()
}

/// Characters of a kernel argument that iPXE passes on unchanged.
fn is_argument(c: char) -> bool {
    c.is_ascii_alphanumeric() || " =.,:;_/@+%-~!*?()[]<>^".contains(c)
}

#[cfg(test)]
mod tests {
    use super::*;

    const BASE: &str = "http://10.77.0.1:8080";
    const MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);

    fn manifest(arguments: &str) -> Manifest {
        let store = tempfile::tempdir().expect("a directory");
        let generation = crate::store::tests::publish(store.path(), "lab", arguments, &[]);
        crate::store::manifest(store.path(), "lab", &generation).expect("a manifest")
    }

    #[test]
    fn a_machine_boots_its_image_and_retries() {
        let (manifest, generation) = (manifest("quiet console=ttyS0"), "cd".repeat(32));
        let boot = Script::Boot { manifest: &manifest, generation: &generation, arguments: "panic=10" };
        let text = script(BASE, MAC, "lab-01", &boot);
        let kernel = text.lines().find(|l| l.starts_with("kernel ")).expect("a kernel line");
        assert_eq!(
            kernel,
            format!(
                "kernel {BASE}/images/lab/{generation}/vmlinuz initrd=initrd.img quiet console=ttyS0 panic=10 \
                 labshift.server={BASE} labshift.mac={MAC} labshift.roothash={} || goto failed",
                "ab".repeat(32)
            )
        );
        assert!(text.starts_with("#!ipxe\n") && text.ends_with("|| goto failed\n"), "{text}");
    }

    #[test]
    fn nothing_a_person_wrote_becomes_a_command() {
        let evil = "closed\nshell && reboot || ${net0/mac} \u{1f600}";
        let text = script(BASE, MAC, "lab-01", &Script::Wait(evil));
        assert!(
            text.contains("lab-01 does not boot now: closed shell    reboot     {net0/mac} ?\n"),
            "{text}"
        );
        for arguments in ["quiet\nshell", "a || shell", "a=${b}", "a=\"b\""] {
            let manifest = manifest(arguments);
            let boot = Script::Boot { manifest: &manifest, generation: "cd", arguments: "" };
            let text = script(BASE, MAC, "lab-01", &boot);
            assert!(text.contains("iPXE would not pass on") && !text.contains("\nkernel"), "{text}");
        }
    }

    #[test]
    fn the_disk_and_the_loader() {
        assert!(script(BASE, MAC, "lab-01", &Script::LocalDisk).contains("sanboot"));
        assert!(autoexec(BASE).contains("ifconf -c dhcp net0"));
        let wanted =
            "#!ipxe\nchain --replace --autofree http://10.77.0.1:8080/boot/script.ipxe?mac=${netX/mac}\n";
        assert_eq!(introduction(BASE), wanted);
    }
}
