//! What a picture of a workstation's screen shows, in numbers.

use std::{fs::File, io::BufReader, path::Path};

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

    fn pixels(&self) -> f64 {
        (self.width * self.height).max(1) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
