//! What a path on the TFTP server stands for. There is no directory behind it: a path is a loader, the loader's script,
//! or a published file of an image.

use crate::dhcp::boot::{BIOS_LOADER, UEFI_LOADER};

/// What iPXE for UEFI asks for, in the directory that it came from.
pub const AUTOEXEC: &str = "autoexec.ipxe";

/// A file that we serve.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// A loader of the `ipxe` package, by its file name.
    Loader(&'static str),
    /// The script that the loader runs.
    Autoexec,
    /// A file of an image.
    Image {
        /// Image name.
        name: String,
        /// Full generation.
        generation: String,
        /// File name.
        file: String,
    },
}

/// Reads a path. Some UEFI ROMs separate its parts by `\`; most put a separator in front.
pub fn target(path: &str) -> Option<Target> {
    let parts: Vec<&str> = path.split(['/', '\\']).filter(|part| !part.is_empty()).collect();
    if parts.iter().any(|part| matches!(*part, "." | "..")) {
        return None;
    }
    match parts[..] {
        [BIOS_LOADER] => Some(Target::Loader(BIOS_LOADER)),
        [UEFI_LOADER] => Some(Target::Loader(UEFI_LOADER)),
        [.., AUTOEXEC] => Some(Target::Autoexec),
        ["images", name, generation, file] => Some(Target::Image {
            name: name.to_owned(),
            generation: generation.to_owned(),
            file: file.to_owned(),
        }),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn case_21_paths_mean_one_thing_or_nothing() {
        let uki = Target::Image { name: "lab".into(), generation: "ab".into(), file: "uki.efi".into() };
        for path in [
            "images/lab/ab/uki.efi",
            "/images/lab/ab/uki.efi",
            "\\images\\lab\\ab\\uki.efi",
            "//images/lab//ab/uki.efi",
        ] {
            assert_eq!(target(path), Some(uki.clone()), "{path}");
        }
        assert_eq!(target("/undionly.kpxe"), Some(Target::Loader("undionly.kpxe")));
        assert_eq!(target("images/lab/ab/autoexec.ipxe"), Some(Target::Autoexec));
        for path in [
            "",
            "/",
            "..",
            "../undionly.kpxe",
            "images/../undionly.kpxe",
            "..\\..\\images\\lab\\ab\\uki.efi",
            "/etc/passwd",
            "images/lab/ab/../ab/uki.efi",
            "images/lab/ab/sub/uki.efi",
            "images/lab/uki.efi",
            "undionly.kpxe/x",
        ] {
            assert_eq!(target(path), None, "{path}");
        }
    }
}
