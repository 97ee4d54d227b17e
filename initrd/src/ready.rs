//! When a service is ready: the path that it names appears. The kernel tells (inotify); nothing is looked at again and again.

use std::{
    io,
    os::fd::AsFd,
    path::{Path, PathBuf},
};

use nix::{
    errno::Errno,
    sys::inotify::{AddWatchFlags, InitFlags, Inotify},
};
use tokio::net::unix::pipe;

/// Waits until `path` exists. Directories on the way to it may still be missing, and may come and go meanwhile.
pub async fn appears(path: &Path) -> io::Result<()> {
    loop {
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
        let nearest = nearest_directory(path);
        let flags = AddWatchFlags::IN_CREATE
            | AddWatchFlags::IN_MOVED_TO
            | AddWatchFlags::IN_DELETE_SELF
            | AddWatchFlags::IN_MOVE_SELF;
        match inotify.add_watch(&nearest, flags) {
            // It went away this moment: its parent is the nearest now.
            Err(Errno::ENOENT | Errno::ENOTDIR) => continue,
            other => other?,
        };
        // Looked at once the watch is set, so that nothing falls in between.
        if path.symlink_metadata().is_ok() {
            return Ok(());
        }
        if nearest_directory(path) != nearest {
            continue;
        }
        let events = inotify.as_fd().try_clone_to_owned()?;
        // An inotify descriptor reads like a pipe: all that is wanted here is the moment when there is something to read.
        pipe::Receiver::from_owned_fd_unchecked(events)?.readable().await?;
    }
}

/// The deepest directory above `path` that exists.
fn nearest_directory(path: &Path) -> PathBuf {
    let above = path.ancestors().skip(1).find(|a| a.is_dir());
    above.unwrap_or(Path::new("/")).to_owned()
}

#[cfg(test)]
mod tests {
    use std::{fs, time::Duration};

    use super::*;

    #[tokio::test]
    async fn paths_are_seen_when_they_appear_wherever_they_were_missing() {
        let dir = std::env::temp_dir().join(format!("labshift-ready-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let path = dir.join("run/daemon/socket");
        let waiting = tokio::spawn({
            let path = path.clone();
            async move { appears(&path).await }
        });
        // Each step gives the waiter the chance to run; what it sees does not depend on how far it came.
        tokio::task::yield_now().await;
        fs::create_dir(dir.join("run")).unwrap();
        tokio::task::yield_now().await;
        fs::create_dir(dir.join("run/daemon")).unwrap();
        fs::write(dir.join("run/daemon/other"), "").unwrap();
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        fs::write(dir.join("run/daemon/half"), "").unwrap();
        fs::rename(dir.join("run/daemon/half"), &path).unwrap();
        tokio::time::timeout(Duration::from_secs(60), waiting).await.unwrap().unwrap().unwrap();
        appears(&path).await.unwrap();
        fs::remove_dir_all(&dir).unwrap();
    }
}
