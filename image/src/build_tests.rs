//! Whole builds in a small world: locked ones, and ones that were killed.

use std::{
    fs,
    os::fd::AsFd,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::inotify::{AddWatchFlags, InitFlags, Inotify},
};

use labshift_model::boot_order::BootOrder;

use super::*;
use crate::{
    channel::STABLE,
    inspect::inspect,
    progress::Silent,
    world::{RECIPE, World, options, packages},
};

fn write_lock(world: &World) -> PathBuf {
    let lock = lock(&world.path("tiny.toml"), &world.sources(), &Silent).unwrap();
    let path = world.path("tiny.lock");
    fs::write(&path, lock.to_bytes()).unwrap();
    path
}

#[test]
fn a_lock_and_a_warm_cache_need_no_mirror() {
    let world = World::new();
    let path = write_lock(&world);
    let built = build(&BuildOptions { locked: Some(path.clone()), ..world.options() }, &Silent).unwrap();
    assert_eq!(built.published, Published::New);
    let lock = Lock::from_bytes(&fs::read(&path).unwrap()).unwrap();
    let names: Vec<_> = lock.packages.iter().map(|p| p.name.as_str()).collect();
    assert_eq!(names, ["base-passwd", "libfoo", "linux-image-test", "tool"]);
    assert!(lock.packages.iter().all(|p| p.size > 0 && lock.archives[p.archive].suite == "trixie"));

    // The mirror moved on, and is not even asked.
    let mut newer = packages();
    newer.iter_mut().find(|p| p.0 == "tool").unwrap().1 = "3.0";
    world.publish(&newer);
    world.asked.lock().unwrap().clear();
    let again = build(&BuildOptions { locked: Some(path.clone()), ..world.options() }, &Silent).unwrap();
    assert_eq!((again.published, &again.generation), (Published::AlreadyThere, &built.generation));
    assert_eq!(*world.asked.lock().unwrap(), [""; 0]);
    let unlocked = build(&world.options(), &Silent).unwrap();
    assert_ne!(unlocked.generation, built.generation);

    world.recipe(&RECIPE.replace("\"tool\"]", "\"tool\", \"libbar\"]"));
    let error =
        build(&BuildOptions { locked: Some(path), ..world.options() }, &Silent).unwrap_err().to_string();
    assert!(error.contains("lacks package libbar"), "{error}");
}

/// The rescue shell and its password's hash are in the initramfs of a recipe that wants them, and in no other. The shell is no package
/// of the image.
#[test]
fn a_rescue_shell_is_in_the_initramfs_of_a_recipe_that_wants_it() {
    let hash = format!("$5$labshift${}", "a".repeat(43));
    let mut with_shell = packages();
    with_shell.push((
        "busybox-static",
        "1.37",
        "",
        vec![("./usr/bin/busybox", tar::EntryType::Regular, "static shell")],
    ));
    let world = World::with(&with_shell);
    let initramfs = |generation: &str| {
        let path = world.path(&format!("store/images/tiny/{generation}/{}", paths::INITRD));
        String::from_utf8_lossy(&zstd::decode_all(&*fs::read(path).unwrap()).unwrap()).into_owned()
    };
    let without = write_lock(&world);
    let plain = initramfs(&build(&world.options(), &Silent).unwrap().generation);
    assert!(!plain.contains("bin/busybox") && !plain.contains("rescue"));

    world.recipe(&format!("{RECIPE}[rescue]\npassword = \"{hash}\"\n"));
    let built = build(&world.options(), &Silent).unwrap();
    let rescue = initramfs(&built.generation);
    assert!(
        ["bin/busybox", "static shell", "etc/labshift/rescue", &hash]
            .iter()
            .all(|text| rescue.contains(text))
    );
    let lock = lock(&world.path("tiny.toml"), &world.sources(), &Silent).unwrap();
    assert!(lock.tools.iter().any(|t| t.name == "busybox-static"));
    assert!(lock.packages.iter().all(|p| p.name != "busybox-static"));

    let error =
        build(&BuildOptions { locked: Some(without), ..world.options() }, &Silent).unwrap_err().to_string();
    assert!(error.contains("does not name busybox-static"), "{error}");
}

/// A recorded boot order is signed beside the manifest: the generation stays, and whoever signs anew keeps it.
#[test]
fn a_boot_order_stays_with_its_generation() {
    let world = World::new();
    let built = build(&world.options(), &Silent).unwrap();
    let store = Store::open(&world.path("store")).unwrap();
    let order = BootOrder::parse("0+32,7").unwrap();
    let signature = || {
        let image = inspect(&store, "tiny", Some(&built.generation)).unwrap();
        let bytes = fs::read(image.directory.join(paths::MANIFEST)).unwrap();
        let trusted = [store.signing_key().unwrap().verifying_key()];
        Manifest::verify(&bytes, &image.signature, &trusted, Some(&built.generation)).unwrap();
        image.signature
    };
    assert_eq!(signature().boot_order, "");
    let later = Timestamp::now();
    let before = store.set_boot_order(("tiny", &built.generation), &order, later).unwrap();
    assert_eq!(before, Some(BootOrder::default()));
    assert_eq!(signature().boot_order, "0+32,7");
    let again = build(&world.options(), &Silent).unwrap();
    assert_eq!((again.published, &again.generation), (Published::AlreadyThere, &built.generation));
    assert_eq!(signature().boot_order, "0+32,7");
}

/// A build that changes nothing signs anew; the image's bytes stay what they are.
#[test]
fn a_signature_ends_and_a_later_build_signs_anew() {
    let world = World::new();
    let day = jiff::SignedDuration::from_hours(24);
    world.recipe(
        &RECIPE.replace("name = \"tiny\"", "name = \"tiny\"\nvalid_days = 10\nminimum = \"2026-10-01\""),
    );
    let options = world.options();
    let sources = Sources { now: options.sources.now + day, ..world.options().sources };
    let first = build(&options, &Silent).unwrap();
    let store = Store::open(&options.store).unwrap();
    let before = inspect(&store, "tiny", None).unwrap().signature;
    assert_eq!(before.expires, Some(before.signed + day * 10));
    let again = build(&BuildOptions { sources, ..options }, &Silent).unwrap();
    assert_eq!((again.generation, again.published), (first.generation, Published::AlreadyThere));
    let after = inspect(&store, "tiny", None).unwrap().signature;
    assert_eq!(after.signed, before.signed + day);

    let initrd = fs::read(first.directory.join(paths::INITRD)).unwrap();
    let initrd = zstd::decode_all(&initrd[..]).unwrap();
    let holds = |text: &str| initrd.windows(text.len()).any(|w| w == text.as_bytes());
    assert!(holds("etc/labshift/minimum") && holds("2026-10-01T00:00:00Z\n"));
    assert!(holds(&manifest::public(&store.server_key().unwrap())));
}

/// Builds in the world whose directory the environment names; otherwise it is not a test at all.
#[test]
#[allow(clippy::disallowed_methods, reason = "how a test hands its child the place to work in")]
fn child() {
    let Some(directory) = std::env::var_os("LABSHIFT_TEST_WORLD") else { return };
    let directory = PathBuf::from(directory);
    if let Err(error) = build(&options(&directory, &[], Some(directory.join("tiny.lock"))), &Silent) {
        panic!("{error}");
    }
}

fn start_child(directory: &Path) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "build::tests::child", "--nocapture"])
        .env("LABSHIFT_TEST_WORLD", directory)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

/// Lets a build go on until something below `directory` has changed `changes` times, and kills it then. False when
/// it ended before.
fn killed_after(directory: &Path, changes: usize) -> bool {
    let inotify = Inotify::init(InitFlags::IN_CLOEXEC).unwrap();
    let flags = AddWatchFlags::IN_CREATE
        | AddWatchFlags::IN_MOVED_TO
        | AddWatchFlags::IN_MODIFY
        | AddWatchFlags::IN_DELETE
        | AddWatchFlags::IN_CLOSE_WRITE;
    let mut watched = std::collections::HashMap::new();
    let watch = |path: &Path, watched: &mut std::collections::HashMap<_, PathBuf>| {
        if let Ok(descriptor) = inotify.add_watch(path, flags) {
            watched.insert(descriptor, path.to_owned());
        }
    };
    for part in ["store", "store/tmp", "store/images", "store/images/tiny", "store/channels", "store/keys"] {
        fs::create_dir_all(directory.join(part)).unwrap();
        watch(&directory.join(part), &mut watched);
    }
    watch(&directory.join("cache/tmp"), &mut watched);
    let mut child = start_child(directory);
    let output = child.stdout.take().unwrap();
    let mut seen = 0;
    let killed = loop {
        let mut wait = [
            PollFd::new(inotify.as_fd(), PollFlags::POLLIN),
            PollFd::new(output.as_fd(), PollFlags::empty()),
        ];
        poll(&mut wait, PollTimeout::NONE).unwrap();
        let ended = wait[1].any().unwrap_or(false);
        if wait[0].any().unwrap_or(false) {
            for event in inotify.read_events().unwrap() {
                if let (Some(parent), Some(name)) = (watched.get(&event.wd).cloned(), &event.name) {
                    watch(&parent.join(name), &mut watched);
                }
                seen += 1;
            }
        }
        if seen >= changes {
            break true;
        }
        if ended {
            break false;
        }
    };
    child.kill().unwrap();
    child.wait().unwrap();
    killed
}

/// Killed wherever it was: what is published stays whole, and the next build succeeds.
#[test]
fn a_build_may_be_killed_at_any_point() {
    let world = World::new();
    write_lock(&world);
    let directory = world.directory.path();
    // Fills the cache; its store is thrown away, so that the first of the killed ones makes the key.
    build(&options(directory, std::slice::from_ref(&world.mirror), Some(world.path("tiny.lock"))), &Silent)
        .unwrap();
    fs::remove_dir_all(world.path("store")).unwrap();
    let (mut kills, mut changes) = (0, 1);
    loop {
        // Each one would be a generation of its own.
        world.recipe(&RECIPE.replace("hello", &format!("hello {changes}")));
        let killed = killed_after(directory, changes);
        let store = Store::open(&world.path("store")).unwrap();
        for generation in store.generations("tiny") {
            inspect(&store, "tiny", Some(&generation)).unwrap();
        }
        if let Ok(generation) = store.channel("tiny", STABLE) {
            inspect(&store, "tiny", Some(&generation)).unwrap();
        }
        if !killed {
            break;
        }
        (kills, changes) = (kills + 1, changes + 1);
    }
    assert!(kills > 20, "only {kills}");
    world.recipe(RECIPE);
    let built = build(&world.options(), &Silent).unwrap();
    let store = Store::open(&world.path("store")).unwrap();
    assert_eq!(inspect(&store, "tiny", None).unwrap().generation, built.generation);
    assert_eq!(fs::read_dir(world.path("store/tmp")).unwrap().count(), 0);
    assert_eq!(fs::read_dir(world.path("cache/tmp")).unwrap().count(), 0);
}

/// A disk that is full at any point of a build: store, cache, or both. One message, and nothing of it stays in the store.
#[test]
fn a_full_disk_is_named_and_leaves_nothing() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("skipped: small disks need root");
        return;
    }
    let world = World::new();
    write_lock(&world);
    let directory = world.directory.path();
    build(&options(directory, std::slice::from_ref(&world.mirror), Some(world.path("tiny.lock"))), &Silent)
        .unwrap();
    for (place, gone) in [("store", "store"), ("cache", "cache/layers")] {
        let (mut full, mut size) = (0, 8);
        loop {
            // The next build must have to do it all again.
            for old in [gone, "store"] {
                let _ = fs::remove_dir_all(world.path(old));
            }
            fs::create_dir(world.path("store")).unwrap();
            // The disk lives as long as the shell, which says what is left on it. Pages are the unit of its size.
            let script = format!(
                "cd '{}' && mkdir full && mount -t tmpfs -o size={size}k none full && cp -a {place}/. full/ && \
                 mount --bind full {place} || exit 9; \"$0\" --exact build::tests::child --nocapture 2>&1; echo \"status $?\"; \
                 find store/images store/tmp store/channels cache/tmp -mindepth 1 | sed s/^/left:/",
                directory.display()
            );
            let mut shell = Command::new("unshare");
            shell.args(["--mount", "--propagation", "private", "sh", "-c", &script]);
            let output =
                shell.arg(std::env::current_exe().unwrap()).env("LABSHIFT_TEST_WORLD", directory).output();
            let said = String::from_utf8(output.unwrap().stdout).unwrap();
            fs::remove_dir(world.path("full")).unwrap();
            if said.contains("status 0") {
                break;
            }
            if said.contains("status ") {
                assert!(said.contains("no space is left on this disk; free some"), "{size} KiB: {said}");
                assert!(!said.contains("left:"), "{size} KiB: {said}");
                full += 1;
            }
            size += 8;
        }
        assert!(full > 3, "{place}: full {full} times up to {size} KiB");
    }
}

/// One message each, which names what is wrong and where, and a store without anything new in it.
#[test]
fn bad_input_is_named_and_the_store_stays_as_it_was() {
    let fail = |world: &World, options: &BuildOptions| {
        let error = build(options, &Silent).unwrap_err().to_string();
        let images = fs::read_dir(world.path("store/images")).map_or(0, Iterator::count);
        let left = fs::read_dir(world.path("store/tmp")).map_or(0, Iterator::count);
        assert_eq!((images, left), (0, 0), "{error}");
        error
    };
    const DEB: &str = "/debian/pool/tool_2.0.deb";
    type Served = BTreeMap<String, Vec<u8>>;
    let broken = |change: fn(&mut Served)| {
        let world = World::new();
        change(&mut world.served.lock().unwrap());
        fail(&world, &world.options())
    };
    let error = broken(|served| served.get_mut(DEB).unwrap()[70] ^= 1);
    assert!(error.contains("pool/tool_2.0.deb") && error.contains("expected SHA-256"), "{error}");
    let error = broken(|served| served.get_mut(DEB).unwrap().truncate(100));
    assert!(error.contains("pool/tool_2.0.deb") && error.contains("ended after 100 of"), "{error}");
    let error = broken(|served| drop(served.remove(DEB)));
    assert!(error.contains("pool/tool_2.0.deb") && error.contains("status 404"), "{error}");
    let error = broken(|served| served.get_mut("/debian/dists/trixie/InRelease").unwrap()[200] ^= 1);
    assert!(error.contains("InRelease") || error.contains("dists/trixie"), "{error}");

    for (path, kind, says) in [
        ("./../up", tar::EntryType::Regular, "leads out of the root"),
        ("/etc/passwd", tar::EntryType::Regular, "leads out of the root"),
        ("./dev/sda", tar::EntryType::Block, "only files, directories and links"),
    ] {
        let mut hostile = packages();
        hostile.iter_mut().find(|p| p.0 == "tool").unwrap().3.push((path, kind, ""));
        let world = World::with(&hostile);
        let error = fail(&world, &world.options());
        assert!(error.contains("package tool 2.0") && error.contains(says), "{error}");
    }

    let world = World::new();
    world.recipe(&RECIPE.replace("\"tool\"]", "\"tol\"]"));
    let error = fail(&world, &world.options());
    assert!(error.contains("tol") && error.contains("tool"), "{error}");
    let mut unmet = packages();
    unmet.iter_mut().find(|p| p.0 == "tool").unwrap().2 = "Depends: libfoo (>= 9)";
    let world = World::with(&unmet);
    let error = fail(&world, &world.options());
    assert!(error.contains("tool") && error.contains("libfoo (>= 9)"), "{error}");

    // A store where none can be: below a file.
    let error = fail(&world, &BuildOptions { store: world.path("tiny.toml").join("x"), ..world.options() });
    assert!(error.contains("tiny.toml/x"), "{error}");
    let full = BuildError::Io {
        doing: "writing",
        path: "store".into(),
        why: std::io::ErrorKind::StorageFull.into(),
    };
    assert!(full.to_string().contains("store: no space is left on this disk; free some"));
}
