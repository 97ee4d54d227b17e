//! What a picture of a workstation's screen shows, in numbers.

use std::{collections::HashMap, fs::File, io::BufReader, path::Path};

/// A picture, 8 bits red, green, blue per pixel.
pub struct Picture {
    /// Pixels across.
    pub width: usize,
    /// Pixels down.
    pub height: usize,
    rgb: Vec<u8>,
}

/// A file is not a picture that we can read.
#[derive(Debug, thiserror::Error)]
pub enum PictureError {
    /// The file.
    #[error("reading the picture")]
    Io(#[from] std::io::Error),
    /// Its content.
    #[error("decoding the picture")]
    Png(#[from] png::DecodingError),
    /// A kind of PNG that QEMU does not write.
    #[error("the picture has {0:?} pixels, not 8-bit colour")]
    Kind(png::ColorType),
}

impl Picture {
    /// Reads a PNG file.
    pub fn read(path: &Path) -> Result<Self, PictureError> {
        let mut reader = png::Decoder::new(BufReader::new(File::open(path)?)).read_info()?;
        let mut bytes = vec![0; reader.output_buffer_size().unwrap_or_default()];
        let frame = reader.next_frame(&mut bytes)?;
        bytes.truncate(frame.buffer_size());
        let rgb = match frame.color_type {
            png::ColorType::Rgb => bytes,
            png::ColorType::Rgba => bytes.chunks_exact(4).flat_map(|p| [p[0], p[1], p[2]]).collect(),
            other => return Err(PictureError::Kind(other)),
        };
        Ok(Picture { width: frame.width as usize, height: frame.height as usize, rgb })
    }

    /// Share of the pixels (0 to 1) whose channels are each within `tolerance` of a colour.
    pub fn share_of(&self, colour: [u8; 3], tolerance: u8) -> f64 {
        let near = |p: &&[u8]| p.iter().zip(colour).all(|(a, b)| a.abs_diff(b) <= tolerance);
        self.rgb.chunks_exact(3).filter(near).count() as f64 / self.pixels()
    }

    /// Share of the pixels (0 to 1) that differ visibly; 1 when the sizes differ.
    pub fn difference(&self, other: &Picture) -> f64 {
        if (self.width, self.height) != (other.width, other.height) {
            return 1.0;
        }
        let pairs = self.rgb.chunks_exact(3).zip(other.rgb.chunks_exact(3));
        let differ = pairs.filter(|(a, b)| a.iter().zip(*b).any(|(x, y)| x.abs_diff(*y) > 24));
        differ.count() as f64 / self.pixels()
    }

    /// Finds a text that stands on the picture in these letters, at any place and in whole-number magnification, in one colour on one
    /// other. Exact: a single wrong pixel is no match.
    pub fn find(&self, text: &str, letters: &Letters) -> Option<Spot> {
        let shapes: Option<Vec<&Vec<u8>>> = text.chars().map(|c| letters.shapes.get(&c)).collect();
        let shapes = shapes.filter(|s| !s.is_empty())?;
        let wide = letters.advance * shapes.len();
        let ink = |x: usize, y: usize| shapes[x / letters.advance][y * letters.advance + x % letters.advance];
        // The order in which pixels are compared: a few spread ones first, which refuse almost every place.
        let all = (0..letters.height).flat_map(|y| (0..wide).map(move |x| (x, y)));
        let mut order: Vec<(usize, usize)> = all.collect();
        order.sort_by_key(|&(x, y)| (x * 7 + y * 13) % 31);
        let full = *order.iter().max_by_key(|&&(x, y)| ink(x, y))?;
        let none = *order.iter().min_by_key(|&&(x, y)| ink(x, y))?;
        for scale in (1..=16).rev().filter(|s| wide * s <= self.width && letters.height * s <= self.height) {
            for y in 0..=self.height - letters.height * scale {
                for x in 0..=self.width - wide * scale {
                    let at = |(px, py): (usize, usize)| self.pixel(x + px * scale, y + py * scale);
                    let (front, back) = (at(full), at(none));
                    // Without contrast everything would fit.
                    if front.iter().zip(back).all(|(a, b)| a.abs_diff(b) < 64) {
                        continue;
                    }
                    let fits = |&(px, py): &(usize, usize)| {
                        let wanted = mixed(back, front, ink(px, py));
                        let near = |p: [u8; 3]| p.iter().zip(wanted).all(|(a, b)| a.abs_diff(b) <= 9);
                        (0..scale).all(|dy| {
                            (0..scale).all(|dx| near(self.pixel(x + px * scale + dx, y + py * scale + dy)))
                        })
                    };
                    if order.iter().all(fits) {
                        return Some(Spot { x, y, scale });
                    }
                }
            }
        }
        None
    }

    fn pixel(&self, x: usize, y: usize) -> [u8; 3] {
        let at = (y * self.width + x) * 3;
        self.rgb.get(at..at + 3).and_then(|p| p.try_into().ok()).unwrap_or_default()
    }

    fn pixels(&self) -> f64 {
        (self.width * self.height).max(1) as f64
    }
}

fn mixed(back: [u8; 3], front: [u8; 3], ink: u8) -> [u8; 3] {
    let ink = u16::from(ink);
    std::array::from_fn(|i| ((u16::from(back[i]) * (255 - ink) + u16::from(front[i]) * ink) / 255) as u8)
}

/// Where a text was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Spot {
    /// Left edge in pixels.
    pub x: usize,
    /// Upper edge in pixels.
    pub y: usize,
    /// Pixels of the screen for one of the letters'.
    pub scale: usize,
}

/// A font, as shapes of one size.
pub struct Letters {
    /// Pixels from one letter to the next.
    advance: usize,
    height: usize,
    /// How much ink (0 to 255) each pixel has, row by row.
    shapes: HashMap<char, Vec<u8>>,
}

/// The smiling face that is letter 1 of every VGA font; the font begins one letter before it.
const FACE: [u8; 16] = [0, 0, 0x7e, 0x81, 0xa5, 0x81, 0x81, 0xbd, 0x99, 0x81, 0x81, 0x7e, 0, 0, 0, 0];

impl Letters {
    /// A font whose shapes are asked for one by one, each `advance` times `height` amounts of ink.
    pub fn new(advance: usize, height: usize, shape: impl Fn(char) -> Vec<u8>) -> Letters {
        Letters { advance, height, shapes: (' '..='~').map(|c| (c, shape(c))).collect() }
    }

    /// The font of the text screen, from the display card's own firmware: 8 by 16, shown 9 wide with the last column empty.
    pub fn of_vga_bios(rom: &[u8]) -> Option<Letters> {
        let start = rom.windows(16).position(|w| w == FACE)?.checked_sub(16)?;
        let font = rom.get(start..start + 256 * 16)?;
        let shape = |c: char| {
            let rows = &font[c as usize * 16..][..16];
            rows.iter()
                .flat_map(|row| (0..9).map(move |x| if x < 8 && row >> (7 - x) & 1 == 1 { 255 } else { 0 }))
                .collect()
        };
        Some(Letters::new(9, 16, shape))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_found_at_its_place_and_size_only() {
        // A font of three by two pixels: every letter differs.
        let letters = Letters::new(3, 4, |c| {
            (0..12).map(|i| if i < 7 && c as u32 >> i & 1 == 1 { 255 } else { 0 }).collect()
        });
        let (width, height) = (60, 30);
        let mut rgb = [10, 20, 60].repeat(width * height);
        for (nth, c) in "ROOT-HASH".chars().enumerate() {
            for (i, _) in letters.shapes[&c].iter().enumerate().filter(|(_, ink)| **ink > 0) {
                for (dx, dy) in [(0, 0), (1, 0), (0, 1), (1, 1)] {
                    let (x, y) = (4 + (nth * 3 + i % 3) * 2 + dx, 5 + i / 3 * 2 + dy);
                    rgb[(y * width + x) * 3..][..3].copy_from_slice(&[255; 3]);
                }
            }
        }
        let mut picture = Picture { width, height, rgb };
        assert_eq!(picture.find("ROOT-HASH", &letters), Some(Spot { x: 4, y: 5, scale: 2 }));
        assert_eq!(picture.find("HASH", &letters), Some(Spot { x: 4 + 5 * 6, y: 5, scale: 2 }));
        assert_eq!(picture.find("ROOT-HUSH", &letters), None);
        assert_eq!(picture.find("", &letters), None);
        // A surface of one colour, and one that hardly varies, show nothing.
        let faint: Vec<u8> = (0..width * height * 3).map(|i| 90 + (i % 5) as u8).collect();
        assert_eq!(Picture { width, height, rgb: faint }.find("ROOT-HASH", &letters), None);
        // One flipped pixel under the H.
        picture.rgb[(11 * width + 34) * 3] ^= 0xff;
        assert_eq!(picture.find("ROOT-HASH", &letters), None);
    }

    #[test]
    fn the_text_screens_font_is_found_in_the_firmware() {
        let mut rom = vec![0xAA; 1000];
        rom.extend([0; 16]);
        rom.extend(FACE);
        rom.extend((2u16..256).flat_map(|c| [c as u8; 16]));
        let letters = Letters::of_vga_bios(&rom).expect("a font");
        assert_eq!(letters.shapes[&'A'][..9], [0, 255, 0, 0, 0, 0, 0, 255, 0]);
        assert!(Letters::of_vga_bios(&rom[..2000]).is_none() && Letters::of_vga_bios(&[]).is_none());
    }

    fn picture(pixels: &[[u8; 3]]) -> Picture {
        Picture { width: pixels.len(), height: 1, rgb: pixels.concat() }
    }

    #[test]
    fn shares_are_of_all_pixels() {
        let a = picture(&[[10, 20, 30], [12, 20, 30], [200, 0, 0], [0, 0, 0]]);
        assert_eq!(a.share_of([10, 20, 30], 3), 0.5);
        let b = picture(&[[10, 20, 30], [12, 20, 30], [0, 0, 0], [0, 0, 0]]);
        assert_eq!(a.difference(&b), 0.25);
        assert_eq!(a.difference(&picture(&[[0, 0, 0]])), 1.0);
    }
}
