//! The workstation's screen through the kernel's mode setting (KMS): one dumb buffer on one monitor.
//!
//! No renderer, no compositor: rows of pixels are written to memory that the display reads, and the changed
//! rectangles are named to the kernel (virtio-gpu and USB displays copy only those; real cards need no telling).

use std::{
    fs::{File, OpenOptions},
    io,
    os::fd::{AsFd, BorrowedFd},
    path::{Path, PathBuf},
};

use drm::{
    Device as BasicDevice,
    buffer::{Buffer, DrmFourcc},
    control::{
        ClipRect, Device as ControlDevice, Mode, ModeTypeFlags, connector, crtc,
        dumbbuffer::{DumbBuffer, DumbMapping},
        framebuffer,
    },
};

use super::{picture::Picture, rect::Rect, sys, view::View};

/// Why there is no screen.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No graphics card, or its driver is not there.
    #[error("no graphics card under {}; its kernel module may be missing from the image", .0.display())]
    NoCard(PathBuf),
    /// A card without a monitor.
    #[error("no monitor is connected to {}", .0.display())]
    NoMonitor(PathBuf),
    /// The kernel said no.
    #[error("{doing} on {}", .card.display())]
    Kernel {
        /// What was tried.
        doing: &'static str,
        /// Device.
        card: PathBuf,
        /// Its answer.
        source: io::Error,
    },
}

/// An open `/dev/dri/cardN`.
#[derive(Debug)]
struct Card(File);

impl AsFd for Card {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
impl BasicDevice for Card {}
impl ControlDevice for Card {}

/// A monitor that shows our pixels. Dropping it gives the monitor back to the text console.
pub struct Screen {
    card: Card,
    path: PathBuf,
    connector: connector::Handle,
    mode: Mode,
    framebuffer: framebuffer::Handle,
    /// Its memory, mapped for as long as the process lives.
    memory: DumbMapping<'static>,
    buffer: DumbBuffer,
    pitch: usize,
    row: Vec<u32>,
    names_changes: bool,
}

impl Screen {
    /// Takes the first monitor that is connected, on any card below `directory` (`/dev/dri`).
    pub fn take(directory: &Path) -> Result<Self, Error> {
        let mut cards: Vec<PathBuf> = std::fs::read_dir(directory)
            .into_iter()
            .flatten()
            .filter_map(|entry| Some(entry.ok()?.path()))
            .filter(|p| p.file_name().is_some_and(|n| n.to_string_lossy().starts_with("card")))
            .collect();
        cards.sort();
        let mut failure = Error::NoCard(directory.to_owned());
        for path in cards {
            match Self::on_card(&path) {
                Ok(screen) => return Ok(screen),
                Err(error) => failure = error,
            }
        }
        Err(failure)
    }

    fn on_card(path: &Path) -> Result<Self, Error> {
        let failed = |doing| move |source| Error::Kernel { doing, card: path.to_owned(), source };
        // The first to open a card is its master; that is us, for nothing else on a node draws.
        let file =
            OpenOptions::new().read(true).write(true).open(path).map_err(failed("opening the card"))?;
        let card = Card(file);
        let resources = card.resource_handles().map_err(failed("listing the outputs"))?;
        let (connector, mode) = resources
            .connectors()
            .iter()
            .filter_map(|handle| card.get_connector(*handle, true).ok())
            .filter(|info| info.state() == connector::State::Connected)
            .find_map(|info| Some((info.clone(), best(info.modes())?)))
            .ok_or_else(|| Error::NoMonitor(path.to_owned()))?;
        let crtc =
            free_crtc(&card, &resources, &connector).ok_or_else(|| Error::NoMonitor(path.to_owned()))?;
        let (width, height) = mode.size();
        let size = (u32::from(width), u32::from(height));
        let buffer = card
            .create_dumb_buffer(size, DrmFourcc::Xrgb8888, 32)
            .map_err(failed("reserving memory for the picture"))?;
        let framebuffer = card.add_framebuffer(&buffer, 24, 32).map_err(failed("making a framebuffer"))?;
        // Mapped once for good: the mapping borrows its handle, which is a few bytes, and a screen is taken once a
        // boot, or when the monitor is changed.
        let memory = card
            .map_dumb_buffer(Box::leak(Box::new(buffer)))
            .map_err(failed("mapping the picture's memory"))?;
        card.set_crtc(crtc, Some(framebuffer), (0, 0), &[connector.handle()], Some(mode))
            .map_err(failed("switching the monitor on"))?;
        Ok(Self {
            card,
            path: path.to_owned(),
            connector: connector.handle(),
            mode,
            framebuffer,
            memory,
            pitch: buffer.pitch() as usize,
            buffer,
            row: Vec::new(),
            names_changes: true,
        })
    }

    /// Its device.
    pub fn card(&self) -> &Path {
        &self.path
    }

    /// Pixels across and down.
    pub fn size(&self) -> (u32, u32) {
        let (width, height) = self.mode.size();
        (width.into(), height.into())
    }

    /// The monitor is still there, as far as the kernel knows. It is not asked to probe: that costs time, and old
    /// monitors flicker.
    pub fn is_current(&self) -> bool {
        let info = self.card.get_connector(self.connector, false);
        info.is_ok_and(|info| info.state() == connector::State::Connected)
    }

    /// Draws these parts of the view.
    pub fn draw(&mut self, view: &View, guest: &Picture, parts: &[Rect]) -> Result<(), Error> {
        let (width, height) = self.size();
        let mut clips = Vec::with_capacity(parts.len());
        for part in parts.iter().filter_map(|p| p.intersection(Rect::of_size(width, height))) {
            self.row.resize(part.width as usize, 0);
            for y in part.y..part.bottom() {
                view.compose(guest, y, part.x, &mut self.row);
                let start = y as usize * self.pitch + part.x as usize * 4;
                let line = self.memory.get_mut(start..start + self.row.len() * 4).unwrap_or_default();
                for (bytes, pixel) in line.chunks_exact_mut(4).zip(&self.row) {
                    bytes.copy_from_slice(&pixel.to_le_bytes());
                }
            }
            let narrow = |v: u32| u16::try_from(v).unwrap_or(u16::MAX);
            clips.push(ClipRect::new(
                narrow(part.x),
                narrow(part.y),
                narrow(part.right()),
                narrow(part.bottom()),
            ));
        }
        if self.names_changes
            && !clips.is_empty()
            && let Err(source) = self.card.dirty_framebuffer(self.framebuffer, &clips)
        {
            if source.raw_os_error() != Some(libc::ENOSYS) {
                return Err(Error::Kernel { doing: "showing a change", card: self.path.clone(), source });
            }
            self.names_changes = false;
        }
        Ok(())
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        // Closing the card frees these too; and with its last user gone the kernel puts its console back.
        let _ = self.card.destroy_framebuffer(self.framebuffer);
        let _ = self.card.destroy_dumb_buffer(self.buffer);
    }
}

/// The monitor's own choice, else the first of its list.
fn best(modes: &[Mode]) -> Option<Mode> {
    modes.iter().find(|m| m.mode_type().contains(ModeTypeFlags::PREFERRED)).or(modes.first()).copied()
}

/// A scan-out engine that can feed this connector: the one that does now, else any that may.
fn free_crtc(
    card: &Card,
    resources: &drm::control::ResourceHandles,
    connector: &connector::Info,
) -> Option<crtc::Handle> {
    let current = connector.current_encoder().and_then(|e| card.get_encoder(e).ok()).and_then(|e| e.crtc());
    current.or_else(|| {
        connector
            .encoders()
            .iter()
            .filter_map(|handle| card.get_encoder(*handle).ok())
            .find_map(|encoder| resources.filter_crtcs(encoder.possible_crtcs()).first().copied())
    })
}

/// Keeps the kernel's text console from drawing over the picture, until dropped.
#[derive(Debug)]
pub struct QuietConsole(Option<File>);

impl QuietConsole {
    /// Of the terminal in front. Without one (a kernel without virtual terminals) there is nothing to keep quiet.
    pub fn take() -> io::Result<Self> {
        match OpenOptions::new().read(true).write(true).open("/dev/tty0") {
            Ok(terminal) => {
                sys::set_drawing(&terminal, sys::Drawing::Graphics)?;
                Ok(Self(Some(terminal)))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Self(None)),
            Err(error) => Err(error),
        }
    }
}

impl Drop for QuietConsole {
    fn drop(&mut self) {
        if let Some(terminal) = &self.0 {
            let _ = sys::set_drawing(terminal, sys::Drawing::Text);
        }
    }
}
