//! A small Debian of this crate's tests: packages, a signed mirror on the loopback, recipes, and a file system maker
//! that only copies. Everything else in such a build is the real thing.

use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead, BufReader, Write},
    net::TcpListener,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use jiff::Timestamp;
use pgp::composed::{CleartextSignedMessage, KeyType, SecretKeyParamsBuilder};
use sha2::{Digest, Sha256};
use tar::EntryType::{Regular, Symlink};

use crate::{BuildOptions, Sources, deb::tests::executable_package, uki};

/// Takes the place of the dynamic loader that starts mkfs.erofs: the image is the tar stream, in whole blocks.
const MAKER: &str = "#!/bin/sh\nfor out; do :; done\n\
    case \"$*\" in *--incremental*) cat >> \"$out\";; *) cat > \"$out\";; esac\ntruncate -s %4096 \"$out\"\n";

const CONFIG: &str = "CONFIG_RD_ZSTD=y\nCONFIG_EROFS_FS_ZIP_ZSTD=y\nCONFIG_DEVTMPFS=y\nCONFIG_EROFS_FS=m\n\
    CONFIG_DM_VERITY=m\nCONFIG_OVERLAY_FS=m\nCONFIG_BLK_DEV_LOOP=m\n";

/// A recipe of this world.
pub const RECIPE: &str = r#"name = "tiny"
kind = "host"
suite = "trixie"
packages = ["base-passwd", "tool"]
[kernel]
package = "linux-image-test"
[[file]]
dest = "/etc/motd"
text = "hello"
[[service]]
name = "tool"
exec = ["/usr/bin/tool"]
"#;

/// A mirror, a directory with recipe, programs, cache and store.
pub struct World {
    /// Everything lies here.
    pub directory: tempfile::TempDir,
    /// The mirror's address.
    pub mirror: String,
    /// What the mirror serves, by path.
    pub served: Arc<Mutex<BTreeMap<String, Vec<u8>>>>,
    /// What was asked of the mirror.
    pub asked: Arc<Mutex<Vec<String>>>,
}

/// A package of the mirror: name, version, further fields, files. A path below `DEBIAN/` is a maintainer script; the text `HOST:PATH`
/// stands for a file of this machine.
pub type Fake<'a> = (&'a str, &'a str, &'a str, Vec<(&'a str, tar::EntryType, &'a str)>);

/// The packages of this world.
pub fn packages() -> Vec<Fake<'static>> {
    // The stub's bytes are no text, so it comes as its own escape: see `World::new`.
    vec![
        (
            "base-passwd",
            "3.6",
            "Depends: libfoo",
            vec![
                ("./usr/share/base-passwd/passwd.master", Regular, "root:*:0:0:root:/root:/bin/bash\n"),
                ("./usr/share/base-passwd/group.master", Regular, "root:*:0:\n"),
            ],
        ),
        (
            "libfoo",
            "1.2-3",
            "",
            vec![("./usr/lib/libfoo.so.1", Regular, "foo"), ("./usr/lib/libfoo.so", Symlink, "libfoo.so.1")],
        ),
        ("tool", "2.0", "Depends: libfoo (>= 1.0)", vec![("./usr/bin/tool", Regular, "#!/bin/sh\n")]),
        (
            "linux-image-test",
            "6.12.1-1",
            "",
            vec![
                ("./boot/vmlinuz-6.12", Regular, "kernel"),
                ("./boot/config-6.12", Regular, CONFIG),
                ("./usr/lib/modules/6.12/kernel/a.ko", Regular, "module"),
            ],
        ),
        ("erofs-utils", "1.8", "", vec![("./usr/lib64/ld-linux-x86-64.so.2", Regular, MAKER)]),
        (
            "systemd-boot-efi",
            "257",
            "",
            vec![("./usr/lib/systemd/boot/efi/linuxx64.efi.stub", Regular, "STUB")],
        ),
    ]
}

impl World {
    /// A world with [`packages`] and [`RECIPE`].
    pub fn new() -> World {
        World::with(&packages())
    }

    /// A world with other packages.
    pub fn with(packages: &[Fake<'_>]) -> World {
        let directory = tempfile::tempdir().unwrap();
        let (served, asked) =
            (Arc::<Mutex<BTreeMap<String, Vec<u8>>>>::default(), Arc::<Mutex<Vec<String>>>::default());
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mirror = format!("http://{}/debian", listener.local_addr().unwrap());
        let (serve, note) = (served.clone(), asked.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(mut stream) = stream else { break };
                let mut line = String::new();
                let mut reader = BufReader::new(&stream);
                reader.read_line(&mut line).unwrap_or_default();
                let mut rest = String::new();
                while reader.read_line(&mut rest).is_ok_and(|n| n > 2) {
                    rest.clear();
                }
                let path = line.split(' ').nth(1).unwrap_or_default().to_owned();
                let body = serve.lock().unwrap().get(&path).cloned();
                note.lock().unwrap().push(path);
                let status = if body.is_some() { "200 OK" } else { "404 Not Found" };
                let body = body.unwrap_or_default();
                let head = format!(
                    "HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
                    body.len()
                );
                let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&body));
            }
        });
        let world = World { directory, mirror, served, asked };
        world.publish(packages);
        fs::create_dir(world.path("programs")).unwrap();
        fs::write(world.path("programs/init"), "init").unwrap();
        world.recipe(RECIPE);
        world
    }

    /// Puts packages on the mirror, in place of what was there.
    pub fn publish(&self, packages: &[Fake<'_>]) {
        let mut served = self.served.lock().unwrap();
        served.clear();
        let mut list = String::new();
        for (name, version, fields, files) in packages {
            let stub = uki::tests::stub();
            let content = |text: &str| match text.strip_prefix("HOST:") {
                Some(path) => fs::read(path).unwrap(),
                None if text == "STUB" => stub.clone(),
                None => text.as_bytes().to_vec(),
            };
            let more = if fields.is_empty() { String::new() } else { format!("{fields}\n") };
            let described = format!(
                "Package: {name}\nVersion: {version}\nArchitecture: amd64\nMaintainer: nobody\nDescription: test\n{more}"
            );
            let of = |control: bool| {
                let fits = move |path: &str| path.strip_prefix("DEBIAN/").is_some() == control;
                files.iter().filter(move |(path, ..)| fits(path))
            };
            let mut control = vec![("./control", Regular, described.as_str())];
            control.extend(of(true).map(|(path, kind, text)| (&path["DEBIAN/".len()..], *kind, *text)));
            let data: Vec<_> = of(false).copied().collect();
            let deb = executable_package(&control, &data, &content);
            list += &format!(
                "Package: {name}\nVersion: {version}\nArchitecture: amd64\nFilename: pool/{name}_{version}.deb\nSize: {}\nSHA256: {}\n",
                deb.len(),
                hex::encode(Sha256::digest(&deb))
            );
            if !fields.is_empty() {
                list += &format!("{fields}\n");
            }
            list += "\n";
            served.insert(format!("/debian/pool/{name}_{version}.deb"), deb);
        }
        let mut packed = liblzma::write::XzEncoder::new(vec![], 1);
        packed.write_all(list.as_bytes()).unwrap();
        let packed = packed.finish().unwrap();
        let release = format!(
            "Origin: Debian\nSuite: stable\nCodename: trixie\nDate: Sat, 21 Nov 2026 00:00:00 UTC\nSHA256:\n {} {} main/binary-amd64/Packages.xz\n",
            hex::encode(Sha256::digest(&packed)),
            packed.len()
        );
        served.insert("/debian/dists/trixie/main/binary-amd64/Packages.xz".into(), packed);
        let mut rng = rand08::thread_rng();
        let key = SecretKeyParamsBuilder::default()
            .key_type(KeyType::Ed25519Legacy)
            .can_certify(true)
            .can_sign(true)
            .primary_user_id("archive".into())
            .build()
            .unwrap()
            .generate(&mut rng)
            .unwrap();
        let signed = CleartextSignedMessage::sign(&mut rng, &release, &*key, &"".into()).unwrap();
        served.insert(
            "/debian/dists/trixie/InRelease".into(),
            signed.to_armored_string(None.into()).unwrap().into_bytes(),
        );
        let ring = key.to_public_key().to_armored_string(None.into()).unwrap();
        fs::write(self.path("ring.asc"), ring).unwrap();
    }

    /// A path in this world's directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Writes the recipe.
    pub fn recipe(&self, text: &str) {
        fs::write(self.path("tiny.toml"), text).unwrap();
    }

    /// How to reach the packages.
    pub fn sources(&self) -> Sources {
        sources(self.directory.path(), std::slice::from_ref(&self.mirror))
    }

    /// How to build the recipe.
    pub fn options(&self) -> BuildOptions {
        options(self.directory.path(), std::slice::from_ref(&self.mirror), None)
    }
}

fn sources(directory: &Path, mirrors: &[String]) -> Sources {
    Sources {
        mirrors: mirrors.to_vec(),
        keyring: Some(directory.join("ring.asc")),
        cache: directory.join("cache"),
        apt: directory.join("no-apt"),
        now: Timestamp::now(),
    }
}

/// How to build in a world's directory, from another process too.
pub fn options(directory: &Path, mirrors: &[String], locked: Option<PathBuf>) -> BuildOptions {
    BuildOptions {
        recipe: directory.join("tiny.toml"),
        store: directory.join("store"),
        programs: directory.join("programs"),
        locked,
        channel: crate::channel::STABLE.to_owned(),
        sources: sources(directory, mirrors),
    }
}
