//! A root's bytes: EROFS of what packages bring, the recipe's own part laid over it, and the hash tree behind.
//!
//! mkfs.erofs goes on with a finished file system (`--incremental=data`): inodes of the upper tree are added at its end, and
//! directories that have changed are written anew. The result is one file system, as init expects it, and what packages
//! bring need not be compressed again when a file of the recipe changes.
//!
//! There are no fragments (an inode that the ends of files share): one thread alone would look for them and pack them, the
//! longest part of a build, to make an image smaller by 4 %.

use std::{
    fs,
    io::{BufWriter, Seek, SeekFrom, Write},
    path::Path,
};

use labshift_model::manifest::Root;

use crate::{
    error::{At, BuildError},
    tools::Tools,
    tree::Tree,
    verity,
};

const MAKER: &str = "usr/bin/mkfs.erofs";

/// Options that both parts share. The threads do not show in the result, as long as there is at least one.
fn options(identity: &str) -> Vec<String> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(8);
    let uuid = format!(
        "{}-{}-4{}-8{}-{}",
        &identity[..8],
        &identity[8..12],
        &identity[13..16],
        &identity[17..20],
        &identity[20..32]
    );
    // Extents of at most 128 KiB: mkfs.erofs looks for how much fits into a cluster by trying, and this bounds the tries. It
    // packs in a third of the time, into 5 % more; a node that reads one page unpacks less.
    let fixed = ["--quiet", "-zzstd,3", "-C65536", "--max-extent-bytes=131072", "-T0", "--tar=f"];
    fixed
        .map(str::to_owned)
        .into_iter()
        .chain([format!("--workers={threads}"), format!("-U{uuid}")])
        .collect()
}

/// Packs a tree into a new file. `identity` is a hash in hex; the file system's UUID is made of it. `look` sees the path and
/// content of each file.
pub fn base(
    tools: &Tools,
    tree: &Tree,
    identity: &str,
    file: &Path,
    look: &mut (dyn FnMut(&str, &[u8]) + Send),
) -> Result<(), BuildError> {
    let mut arguments = options(identity);
    arguments.push(file.display().to_string());
    tools.run(MAKER, &arguments, place(file), |pipe| tree.write_tar(buffered(pipe), look))
}

/// Lays what `tree` has other than `below` over a copy of the packed `below`.
pub fn over(
    tools: &Tools,
    (packed, below): (&Path, &Tree),
    tree: &Tree,
    identity: &str,
    file: &Path,
) -> Result<(), BuildError> {
    fs::copy(packed, file).at("writing", file)?;
    let mut arguments = options(identity);
    arguments.extend(["--incremental=data".to_owned(), file.display().to_string()]);
    tools.run(MAKER, &arguments, place(file), |pipe| {
        tree.write_tar_over(Some(below), buffered(pipe), &mut |_, _| ())
    })
}

/// Headers are gathered; contents are written as they are.
fn buffered(pipe: &mut dyn Write) -> BufWriter<&mut dyn Write> {
    BufWriter::with_capacity(64 << 10, pipe)
}

fn place(file: &Path) -> &Path {
    file.parent().unwrap_or(Path::new("."))
}

/// Appends the hash tree.
pub fn seal(path: &Path, salt: &[u8]) -> Result<Root, BuildError> {
    let mut file = fs::OpenOptions::new().read(true).write(true).open(path).at("opening", path)?;
    let size = file.metadata().at("reading", path)?.len().next_multiple_of(verity::BLOCK as u64);
    file.set_len(size).at("writing", path)?;
    let sealed = verity::seal(std::io::BufReader::with_capacity(1 << 20, &file), salt).at("hashing", path)?;
    file.seek(SeekFrom::End(0)).and_then(|_| file.write_all(&sealed.tree)).at("writing", path)?;
    Ok(Root {
        root_hash: hex::encode(sealed.root_hash),
        salt: hex::encode(salt),
        data_size: size,
        block_size: verity::BLOCK as u32,
    })
}
