//! Draws text of any size from one raster of Noto Sans Mono.

use noto_sans_mono_bitmap::{FontWeight, RasterHeight, get_raster, get_raster_width};

use super::picture::Picture;

/// Thickness of the strokes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Weight {
    /// For running text.
    Regular,
    /// For what is seen first.
    Bold,
}

const RASTER: RasterHeight = RasterHeight::Size32;
const RASTER_PIXELS: u32 = 32;

impl Weight {
    fn of_font(self) -> FontWeight {
        match self {
            Weight::Regular => FontWeight::Regular,
            Weight::Bold => FontWeight::Bold,
        }
    }
}

/// Width of one character at a line height, in pixels.
pub fn advance(weight: Weight, height: u32) -> u32 {
    (get_raster_width(weight.of_font(), RASTER) as u32 * height).div_ceil(RASTER_PIXELS)
}

/// Width of a text at a line height, in pixels.
pub fn width(weight: Weight, height: u32, text: &str) -> u32 {
    advance(weight, height).saturating_mul(text.chars().count() as u32)
}

/// The largest line height, at most `height`, at which the text is no wider than `room`.
pub fn fitting(weight: Weight, height: u32, text: &str, room: u32) -> u32 {
    let mut height = height;
    while height > 8 && width(weight, height, text) > room {
        height -= 1;
    }
    height
}

/// Draws a text with its left top at (`x`, `y`). Characters that the font lacks become `?`.
pub fn draw(picture: &mut Picture, (x, y): (u32, u32), weight: Weight, height: u32, colour: u32, text: &str) {
    let step = advance(weight, height);
    for (i, character) in text.chars().enumerate() {
        let glyph = get_raster(character, weight.of_font(), RASTER)
            .or_else(|| get_raster('?', weight.of_font(), RASTER));
        let Some(glyph) = glyph else { continue };
        let raster: Vec<&[u8]> = glyph.rows().collect();
        let left = x + i as u32 * step;
        for row in 0..height {
            for column in 0..step {
                let alpha = coverage(&raster, (column, row), height);
                if alpha > 0 {
                    picture.blend(left + column, y + row, colour, alpha);
                }
            }
        }
    }
}

/// How much of a target pixel the glyph covers. The raster is sampled between its pixels and the edge then made as
/// steep as the enlargement and the smoothing ask, so that large letters stay crisp instead of showing the raster's own soft edge.
fn coverage(raster: &[&[u8]], (column, row): (u32, u32), height: u32) -> u8 {
    let scale = RASTER_PIXELS as f32 / height as f32;
    let at = |x: i32, y: i32| -> f32 {
        let pixel = usize::try_from(y).ok().and_then(|y| raster.get(y)).zip(usize::try_from(x).ok());
        pixel.and_then(|(row, x)| row.get(x)).map_or(0.0, |v| f32::from(*v) / 255.0)
    };
    let sample = |fx: f32, fy: f32| -> f32 {
        let (x0, y0) = (fx.floor(), fy.floor());
        let weights = if scale >= 0.99 { linear } else { spline };
        let (across, down) = (weights(fx - x0), weights(fy - y0));
        let row = |y: i32| (0..4).map(|i| at(x0 as i32 + i - 1, y) * across[i as usize]).sum::<f32>();
        (0..4).map(|i| row(y0 as i32 + i - 1) * down[i as usize]).sum()
    };
    let centre = |v: u32, shift: f32| (v as f32 + 0.5 + shift) * scale - 0.5;
    let value = if scale >= 0.99 {
        // Not enlarged: the mean of four places under the pixel.
        [(-0.25, -0.25), (0.25, -0.25), (-0.25, 0.25), (0.25, 0.25)]
            .iter()
            .map(|(sx, sy)| sample(centre(column, *sx), centre(row, *sy)))
            .sum::<f32>()
            / 4.0
    } else {
        let steep = (1.6 / scale).min(6.0);
        ((sample(centre(column, 0.0), centre(row, 0.0)) - 0.5) * steep + 0.5).clamp(0.0, 1.0)
    };
    (value * 255.0) as u8
}

/// Weights of four neighbours, of which the middle two count.
fn linear(t: f32) -> [f32; 4] {
    [0.0, 1.0 - t, t, 0.0]
}

/// Weights of four neighbours in a cubic B-spline: smooth, so that enlarged curves do not show the raster's steps.
fn spline(t: f32) -> [f32; 4] {
    let (t2, t3) = (t * t, t * t * t);
    [
        (1.0 - 3.0 * t + 3.0 * t2 - t3) / 6.0,
        (4.0 - 6.0 * t2 + 3.0 * t3) / 6.0,
        (1.0 + 3.0 * t + 3.0 * t2 - 3.0 * t3) / 6.0,
        t3 / 6.0,
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_takes_the_room_it_says() {
        let mut picture = Picture::new(400, 100, 0);
        let wide = width(Weight::Bold, 64, "Wg?");
        draw(&mut picture, (10, 10), Weight::Bold, 64, 0xffffff, "Wg\u{fffd}");
        let lit = |x: u32| (0..100).any(|y| picture.pixel(x, y) > 0);
        assert!((10..10 + wide).any(lit));
        assert!(!(0..10).any(lit) && !(10 + wide..400).any(lit));
    }

    #[test]
    fn long_text_gets_smaller() {
        let height = fitting(Weight::Regular, 64, "a very long line of text", 300);
        assert!(height < 64 && width(Weight::Regular, height, "a very long line of text") <= 300);
    }
}
