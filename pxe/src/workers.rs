//! Threads for transfers, each with a runtime of its own: a transfer stays on one thread, so that an acknowledgement and the
//! block it asks for cost one wake-up and not three. They also keep a slow disk away from DHCP.

use std::{
    io,
    sync::atomic::{AtomicUsize, Ordering},
};

use tokio::{runtime::Handle, sync::oneshot};

/// More threads than this gain nothing: the card is full.
const MOST: usize = 8;

/// The threads; they end with this, and their transfers with them.
pub(crate) struct Workers {
    threads: Vec<(Handle, oneshot::Sender<()>)>,
    next: AtomicUsize,
}

impl Workers {
    /// Starts one for each processor.
    pub fn start(name: &str) -> io::Result<Self> {
        let count = std::thread::available_parallelism().map_or(2, usize::from).clamp(1, MOST);
        let threads = (0..count).map(|_| thread(name)).collect::<io::Result<_>>()?;
        Ok(Workers { threads, next: AtomicUsize::new(0) })
    }

    /// Where the next transfer goes.
    pub fn next(&self) -> &Handle {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        &self.threads[number % self.threads.len()].0
    }
}

fn thread(name: &str) -> io::Result<(Handle, oneshot::Sender<()>)> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let handle = runtime.handle().clone();
    let (stop, stopped) = oneshot::channel();
    std::thread::Builder::new().name(name.to_owned()).spawn(move || {
        // Ends when the sender is dropped.
        let _ = runtime.block_on(stopped);
        // A file that is being read must not hold up the end.
        runtime.shutdown_background();
    })?;
    Ok((handle, stop))
}
