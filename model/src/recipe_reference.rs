//! The reference page of recipes: every key that [`crate::recipe`] reads, with what it means.
//!
//! `labshift image reference` prints it; `docs/recipes.md` is that output, and a test compares the two. Another test compares the
//! keys here with those that the parser asks for.

/// One key of a recipe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Key {
    /// Its name.
    pub name: &'static str,
    /// What its value is.
    pub kind: &'static str,
    /// What holds when it is absent; `required` when it may not be.
    pub absent: &'static str,
    /// What it means.
    pub means: &'static str,
}

/// A table of a recipe and its keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Table {
    /// As written in the file; empty for the top.
    pub heading: &'static str,
    /// What it is for.
    pub about: &'static str,
    /// Its keys.
    pub keys: &'static [Key],
}

const fn key(name: &'static str, kind: &'static str, absent: &'static str, means: &'static str) -> Key {
    Key { name, kind, absent, means }
}

/// All tables, in the order of the page.
pub const TABLES: &[Table] = &[
    Table {
        heading: "",
        about: "The top of the file, before any table.",
        keys: &[
            key("name", "name", "a base for others, which can't be built", "The image's name."),
            key(
                "kind",
                "`host` or `guest`",
                "the base's",
                "A host boots over the network on a workstation, a guest as a virtual machine on one.",
            ),
            key(
                "extends",
                "path",
                "no base",
                "Recipe that this one adds to, relative to this file. Lists follow the base's; single values and entries of the same name win over them.",
            ),
            key(
                "suite",
                "name",
                "`trixie`",
                "Debian suite. Its updates and security suites are used where a mirror has them.",
            ),
            key(
                "components",
                "list of names",
                "`main`",
                "Components of the archive, such as `non-free-firmware`.",
            ),
            key(
                "mirrors",
                "list of addresses",
                "the machine's apt sources",
                "Mirrors, `http://` or `https://`; the first that answers is used. The security archive is looked for beside each, at `ADDRESS-security`.",
            ),
            key(
                "keyring",
                "path",
                "Debian's keys on this machine",
                "OpenPGP keys that must have signed the mirror's lists, relative to this file.",
            ),
            key(
                "packages",
                "list of packages",
                "none",
                "What to install, with all that it depends on. Recommendations are not followed.",
            ),
            key(
                "leave_out",
                "list of packages",
                "none",
                "Packages that stay out although something depends on them.",
            ),
            key(
                "strict",
                "true or false",
                "false",
                "A maintainer script that nobody has reviewed is an error instead of a warning.",
            ),
            key(
                "scripts",
                "true or false",
                "false: no script is ever run",
                "Maintainer scripts are run, in an isolated root without network (needs bubblewrap, and root or Debian's uidmap with a range of ids in `/etc/subuid`). Debian's essential packages and what `leave_out` names are there while they run, and stay out of the image. What ran and what it changed is in `scripts.json`; that two builds are the same is then only as true as the scripts are.",
            ),
            key(
                "prune",
                "list of globs",
                "none",
                "Paths that are left out, without a leading `/`. `*` and `?` stay within a directory, `**` goes through; a directory takes along what is below it. Documentation, translations and systemd's units are always left out.",
            ),
            key("ports", "list of strings", "none", "TCP ports that the node may listen on."),
            key("hostname", "name", "the image's name", "Host name until the server gives one."),
            key(
                "valid_days",
                "1 to 36500",
                "for ever",
                "Days for which one signature of the image is good. Building or publishing it again signs it anew.",
            ),
            key(
                "minimum",
                "date, such as `2026-10-01`",
                "none",
                "Machines that boot this image refuse images that were signed before this day (UTC): write it after a hole was closed.",
            ),
        ],
    },
    Table {
        heading: "[kernel]",
        about: "The kernel.",
        keys: &[
            key("package", "package", "the base's", "Package that is, or depends on, the kernel's image."),
            key("arguments", "list of strings", "none", "Kernel arguments, in order."),
        ],
    },
    Table {
        heading: "[modules]",
        about: "Modules: names, or globs over their paths such as `kernel/drivers/net/ethernet/**`. What they depend on comes along; firmware that modules of the initramfs name comes into it, when a package brings it.",
        keys: &[
            key(
                "initrd",
                "list of names and globs",
                "none",
                "What is needed to reach the network and the root.",
            ),
            key(
                "root",
                "list of names",
                "none",
                "What init loads for the services, in order, from the root; what `initrd` names too loads while the root is fetched.",
            ),
            key(
                "keep",
                "list of names and globs",
                "none",
                "What lies in the root for hardware that may be there.",
            ),
        ],
    },
    Table {
        heading: "[secure_boot]",
        about: "Who signs the kernel image (`uki.efi`) for UEFI's Secure Boot. Without this table it is not signed.",
        keys: &[
            key(
                "cert",
                "path",
                "required",
                "Certificate (PEM or DER, RSA) that the machines' firmware knows, relative to this file.",
            ),
            key(
                "key",
                "path",
                "somebody signs later: `labshift image sign`",
                "Its key (PEM, without a passphrase), relative to this file. No trace of it comes into the image.",
            ),
        ],
    },
    Table {
        heading: "[disk]",
        about: "A local disk or partition that machines may use; all that is on it is lost. It holds encrypted swap under a key that dies with the boot, and, with the kernel argument `labshift.policy=disk`, blocks of the image for the next boot. Exactly one of the two keys. Drivers for NVMe, SATA and virtio disks come into the initramfs.",
        keys: &[
            key("partition", "string", "", "Name of the GPT partition (`sgdisk -c 1:NAME`)."),
            key("serial", "string", "", "Serial number of the whole disk, which must have no partitions."),
        ],
    },
    Table {
        heading: "[rescue]",
        about: "Who may open a shell on a machine whose boot has failed. Without this table nobody is asked, and no shell is in the initramfs.",
        keys: &[
            key(
                "keys",
                "list of lines of `id_ed25519.pub`",
                "none",
                "Admins' public keys. The machine shows a challenge; `labshift node rescue CHALLENGE` on the admin's PC works out the eight letters that open the shell, once. Nothing in the initramfs can be guessed at.",
            ),
            key(
                "password",
                "hash as in `/etc/shadow`",
                "none",
                "Hash of a password that opens it, too: yescrypt, SHA-512 or SHA-256, as `mkpasswd -m yescrypt` prints it. Whoever can fetch the initramfs can read it, and guess at it: take a long password.",
            ),
        ],
    },
    Table {
        heading: "[[file]]",
        about: "A file, link or directory of the recipe's own. Exactly one of `source`, `text`, `link` and `directory`.",
        keys: &[
            key("dest", "absolute path", "required", "Where it is in the image."),
            key(
                "source",
                "path, or `@program`",
                "",
                "Content: a file relative to the recipe, or a program of labshift.",
            ),
            key("text", "string", "", "Content, given here."),
            key("link", "string", "", "Target of a symbolic link."),
            key("directory", "true", "", "A directory."),
            key("mode", "octal string", "`0644`; `0755` for programs and directories", "Permission bits."),
            key("owner", "`user` or `user:group`", "`root:root`", "Owner, by name."),
        ],
    },
    Table {
        heading: "[[user]]",
        about: "A user. Packages' own users need no entry. Nobody has a password.",
        keys: &[
            key("name", "name", "required", "Login name."),
            key("uid", "1 to 65533", "required", "User id; fixed, so that two builds are the same."),
            key("group", "name", "a group of the user's name and id", "Primary group."),
            key("groups", "list of names", "none", "Further groups."),
            key("home", "path", "`/nonexistent`", "Home directory; below `/home` it is made."),
            key("shell", "path", "`/usr/sbin/nologin`", "Login shell."),
        ],
    },
    Table {
        heading: "[[group]]",
        about: "A group.",
        keys: &[
            key("name", "name", "required", "Its name."),
            key("gid", "1 to 65533", "required", "Group id."),
        ],
    },
    Table {
        heading: "[[service]]",
        about: "A program that PID 1 starts and supervises.",
        keys: &[
            key("name", "name", "required", "Its name."),
            key(
                "exec",
                "list of strings",
                "required",
                "Absolute path of the program, then its arguments. No shell is involved.",
            ),
            key("after", "list of names", "none", "Services that must be ready before."),
            key("restart", "`always`, `on-failure` or `never`", "`always`", "What happens when it ends."),
            key("environment", "list of `NAME=value`", "none", "Its environment."),
            key("user", "name", "root", "Who it runs as."),
            key("ready", "absolute path", "ready at once", "It is ready when this path exists."),
            key(
                "listen",
                "absolute path, at most 107 bytes",
                "starts by itself",
                "Unix socket that PID 1 opens, for root only. The service is ready from then on; the first connection starts the program, \
                 which gets it as descriptor 3 with the name `NAME.socket` (socket activation as in sd_listen_fds(3)). The program is to \
                 take all who connect; when it ends, the socket stays. After an end with success the next connection starts it again. \
                 When it failed, or left somebody waiting, it starts again after a pause, as soon as somebody waits. Not with `ready`, \
                 `tty` or `restart = \"never\"`.",
            ),
            key("tty", "absolute path", "none", "Terminal that becomes its own."),
            key(
                "memory_mib",
                "4 to 16777216",
                "no limit",
                "MiB of memory for it and all that it starts; above that the kernel ends them together, and the log says so.",
            ),
            key(
                "cpu_weight",
                "1 to 10000",
                "100",
                "Its share of the processors while others want them, too; guests have 100 each.",
            ),
            key(
                "processes",
                "1 to 1000000",
                "no limit",
                "Processes and threads that it may have at one time.",
            ),
        ],
    },
];

/// The page, in Markdown.
pub fn page() -> String {
    let mut text = "# Recipes\n\nA recipe says what an image is made of. Mistakes are reported all at once, each with line and column. This page is the \
                    output of `labshift image reference`.\n"
        .to_owned();
    for table in TABLES {
        let heading =
            if table.heading.is_empty() { "The file".to_owned() } else { format!("`{}`", table.heading) };
        text += &format!(
            "\n## {heading}\n\n{}\n\n| key | value | when absent | meaning |\n|---|---|---|---|\n",
            table.about
        );
        for key in table.keys {
            text += &format!("| `{}` | {} | {} | {} |\n", key.name, key.kind, key.absent, key.means);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// Which keys the parser asks for, read off its source: `section.string("home")` and the like.
    #[test]
    fn has_every_key_that_the_parser_reads() {
        let source = concat!(include_str!("recipe/reading.rs"), include_str!("recipe/entries.rs"));
        let mut asked = BTreeSet::new();
        for method in [
            ".string(\"",
            ".strings(\"",
            ".required(\"",
            ".integer(\"",
            ".boolean(\"",
            ".section(\"",
            ".sections(\"",
            " number(\"",
        ] {
            let found =
                source.match_indices(method).filter_map(|(i, m)| source[i + m.len()..].split('"').next());
            asked.extend(found.map(str::to_owned));
        }
        let mut told: BTreeSet<String> =
            TABLES.iter().flat_map(|t| t.keys).map(|k| k.name.to_owned()).collect();
        told.extend(
            TABLES.iter().map(|t| t.heading.trim_matches(['[', ']']).to_owned()).filter(|h| !h.is_empty()),
        );
        assert_eq!(asked, told);
    }

    /// `labshift image reference > docs/recipes.md` renews it.
    #[test]
    fn the_page_is_current() {
        assert!(
            include_str!("../../docs/recipes.md") == page(),
            "docs/recipes.md is old: labshift image reference > docs/recipes.md"
        );
    }
}
