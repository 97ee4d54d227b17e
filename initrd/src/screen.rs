//! The machine's own screen, for the page of a failed boot: the framebuffer where the kernel has one (UEFI, or a graphics driver),
//! else the text screen.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::Path,
};

use crate::page::{self, PAPER, Page};

/// What the kernel says of its first framebuffer (`/sys/class/graphics/fb0`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Shape {
    width: usize,
    height: usize,
    /// Bytes from one row to the next.
    stride: usize,
    /// Bytes of one pixel: 2 (5-6-5), 3 or 4 (blue first).
    pixel: usize,
}

fn shape(sysroot: &Path) -> Option<Shape> {
    let read = |file: &str| {
        fs::read_to_string(sysroot.join("sys/class/graphics/fb0").join(file))
            .map(|t| t.trim().to_owned())
            .ok()
    };
    // `U:1280x800p-60` is what is shown; the virtual size may hold several screens.
    let modes = read("modes").unwrap_or_default();
    let shown = modes.lines().next().and_then(|m| m.split_once(':')).map(|(_, m)| m.to_owned());
    let virtual_size = read("virtual_size")?.replace(',', "x");
    let (width, height) = shown.as_deref().and_then(size).or_else(|| size(&virtual_size))?;
    let (stride, bits): (usize, usize) =
        (read("stride")?.parse().ok()?, read("bits_per_pixel")?.parse().ok()?);
    let shape = Shape { width, height, stride, pixel: bits / 8 };
    let sound = (1..=16384).contains(&width)
        && (1..=16384).contains(&height)
        && (2..=4).contains(&shape.pixel)
        && stride >= width * shape.pixel
        && stride <= 16 * 16384;
    sound.then_some(shape)
}

/// `1280x800` with anything after it.
fn size(text: &str) -> Option<(usize, usize)> {
    let (width, rest) = text.split_once('x')?;
    let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
    Some((width.parse().ok()?, digits.parse().ok()?))
}

impl Shape {
    fn put(self, bytes: &mut [u8], x: usize, y: usize, [red, green, blue]: [u8; 3]) {
        let at = y * self.stride + x * self.pixel;
        let Some(target) = bytes.get_mut(at..at + self.pixel) else { return };
        match target {
            [low, high] => {
                let (r, g, b) = (u16::from(red) >> 3, u16::from(green) >> 2, u16::from(blue) >> 3);
                [*low, *high] = (r << 11 | g << 5 | b).to_le_bytes();
            }
            [b, g, r, ..] => [*b, *g, *r] = [blue, green, red],
            _ => {}
        }
    }

    /// The whole screen's bytes with this page on it.
    fn picture(self, page: &Page) -> Vec<u8> {
        let mut bytes = vec![0; self.stride * self.height];
        for y in 0..self.height {
            for x in 0..self.width {
                self.put(&mut bytes, x, y, PAPER);
            }
        }
        let placed = page.layout(self.width, self.height);
        page::paint(&placed, self.width, self.height, |x, y, colour| self.put(&mut bytes, x, y, colour));
        bytes
    }
}

/// Paints a page onto the framebuffer. `Ok(false)`: there is none, or none whose pixels we know.
pub fn paint(sysroot: &Path, page: &Page) -> io::Result<bool> {
    let Some(shape) = shape(sysroot) else { return Ok(false) };
    fill(sysroot, &shape.picture(page))?;
    Ok(true)
}

/// Makes the framebuffer black: what the kernel's text does not cover would stay.
pub fn clear(sysroot: &Path) -> io::Result<()> {
    match shape(sysroot) {
        Some(shape) => fill(sysroot, &vec![0; shape.stride * shape.height]),
        None => Ok(()),
    }
}

fn fill(sysroot: &Path, bytes: &[u8]) -> io::Result<()> {
    File::options().write(true).open(sysroot.join("dev/fb0"))?.write_all(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sysroot(name: &str, files: &[(&str, &str)]) -> std::path::PathBuf {
        let dir = std::env::temp_dir().join(format!("labshift-screen-{name}-{}", std::process::id()));
        fs::create_dir_all(dir.join("sys/class/graphics/fb0")).unwrap();
        fs::create_dir_all(dir.join("dev")).unwrap();
        fs::write(dir.join("dev/fb0"), "").unwrap();
        for (file, text) in files {
            fs::write(dir.join("sys/class/graphics/fb0").join(file), text).unwrap();
        }
        dir
    }

    fn sample() -> Page {
        Page {
            title: "BOOT FAILED",
            code: "NO-LINK".into(),
            stage: "link",
            sentence: "no port has a link".into(),
            hint: "Check the cable.".into(),
            node: "not known yet".into(),
            mac: "52:54:00:01:02:03".into(),
            next: "Trying again.".into(),
        }
    }

    #[test]
    fn a_page_is_painted_in_the_screens_own_pixels() {
        let files = [
            ("virtual_size", "1280,1600\n"),
            ("modes", "U:1280x800p-60\n"),
            ("stride", "5184\n"),
            ("bits_per_pixel", "32\n"),
        ];
        let dir = sysroot("wide", &files);
        assert_eq!(shape(&dir), Some(Shape { width: 1280, height: 800, stride: 5184, pixel: 4 }));
        assert!(paint(&dir, &sample()).unwrap());
        let bytes = fs::read(dir.join("dev/fb0")).unwrap();
        assert_eq!(bytes.len(), 5184 * 800);
        assert_eq!(bytes[..3], [PAPER[2], PAPER[1], PAPER[0]]);
        let white = bytes.chunks_exact(4).filter(|p| p[..3] == [255; 3]).count();
        assert!(white > 5_000, "{white} white pixels");
        assert!(
            bytes.chunks_exact(5184).all(|row| row[5120..].iter().all(|&b| b == 0)),
            "the margin is not ours"
        );
        clear(&dir).unwrap();
        assert!(fs::read(dir.join("dev/fb0")).unwrap().iter().all(|&b| b == 0));
        fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn sixteen_bits_and_no_framebuffer() {
        let dir = sysroot(
            "small",
            &[("virtual_size", "800,600\n"), ("stride", "1600\n"), ("bits_per_pixel", "16\n")],
        );
        assert!(paint(&dir, &sample()).unwrap());
        let bytes = fs::read(dir.join("dev/fb0")).unwrap();
        let paper =
            (u16::from(PAPER[0]) >> 3) << 11 | (u16::from(PAPER[1]) >> 2) << 5 | u16::from(PAPER[2]) >> 3;
        assert_eq!(bytes[..2], paper.to_le_bytes());
        fs::write(dir.join("sys/class/graphics/fb0/bits_per_pixel"), "8\n").unwrap();
        assert!(!paint(&dir, &sample()).unwrap());
        fs::remove_dir_all(&dir).unwrap();
        assert!(!paint(&dir, &sample()).unwrap());
    }
}
