//! Services that start when somebody connects (socket activation). PID 1 opens the socket and keeps it for life: clients may come before
//! the program runs, and while it starts again, and none is refused. The program takes the connections (sd_listen_fds(3)); PID 1 takes
//! none.

use std::{
    fs, io,
    os::{
        fd::{AsFd, BorrowedFd},
        unix::{fs::PermissionsExt, net::UnixListener},
    },
    path::Path,
};

use anyhow::{Context, Result};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tokio::net::unix::pipe;

use crate::journal::JOURNAL;

/// Opens the socket at `path`, mode 0600, with the directories above it. What an earlier owner left there goes away.
pub fn open(path: &Path) -> Result<UnixListener> {
    let shown = path.display();
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory).with_context(|| format!("making {}", directory.display()))?;
    }
    let _ = fs::remove_file(path);
    let listener = UnixListener::bind(path).with_context(|| format!("opening {shown}"))?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))
        .with_context(|| format!("closing {shown} to others"))?;
    Ok(listener)
}

/// Waits until somebody has connected; who connected before counts. When that can't be known, now is the time: a program that runs
/// for nobody is better than one that never does.
pub async fn connected(listener: &UnixListener) {
    if let Err(why) = readable(listener).await {
        JOURNAL.say("service", &format!("can't wait for a connection: {why}"));
    }
}

async fn readable(listener: &UnixListener) -> io::Result<()> {
    while !wanted(listener.as_fd()) {
        // A listening socket becomes readable like a pipe: all that is wanted here is the moment.
        let watched = listener.as_fd().try_clone_to_owned()?;
        pipe::Receiver::from_owned_fd_unchecked(watched)?.readable().await?;
    }
    Ok(())
}

/// Whether somebody has connected and was not taken yet.
pub fn wanted(listener: BorrowedFd<'_>) -> bool {
    poll(&mut [PollFd::new(listener, PollFlags::POLLIN)], PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
}
