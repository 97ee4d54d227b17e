//! Prints the label on the desktop guest's wallpaper, as an XPM picture.
//!
//! `cargo run --release -p labshift-runtime --example wallpaper-label > recipes/files/guest-desktop/label.xpm`
use labshift_runtime::kiosk::{
    picture::{Picture, mix},
    text::{self, Weight},
};

const BACKGROUND: u32 = 0x0f_4c_5c;
const INK: u32 = 0xe3_f2_f4;
const QUIET: u32 = 0x6f_a8_b4;
/// Shades of each ink; few, so that the file stays small.
const SHADES: u32 = 6;

fn main() {
    let (name, line) = ("labshift", "your desktop, on this machine for now");
    let (name_height, line_height) = (150, 26);
    let width =
        text::width(Weight::Bold, name_height, name).max(text::width(Weight::Regular, line_height, line));
    let mut picture = Picture::new(width, name_height + line_height + 8, 0);
    let mut palette = vec![BACKGROUND];
    for (ink, weight, height, y, words) in [
        (INK, Weight::Bold, name_height, 0, name),
        (QUIET, Weight::Regular, line_height, name_height + 8, line),
    ] {
        let first = palette.len() as u32;
        palette.extend((1..=SHADES).map(|s| mix(BACKGROUND, ink, (s * 255 / SHADES) as u8)));
        // Coverage first, in the blue channel; then each pixel becomes an index into the palette.
        let mut coverage = Picture::new(width, height, 0);
        let left = (width - text::width(weight, height, words)) / 2;
        text::draw(&mut coverage, (left, 0), weight, height, 0xff, words);
        for row in 0..height {
            for (index, covered) in picture.row_mut(y + row).iter_mut().zip(coverage.row(row)) {
                let shade = (covered * SHADES + 127) / 255;
                *index = if shade == 0 { 0 } else { first + shade - 1 };
            }
        }
    }
    let letters: Vec<char> = ".abcdefghijklmnopqrstuvwxyz".chars().collect();
    println!("/* XPM */\nstatic char *label[] = {{");
    println!("\"{} {} {} 1\",", picture.width(), picture.height(), palette.len());
    for (letter, colour) in letters.iter().zip(&palette) {
        println!("\"{letter} c #{colour:06x}\",");
    }
    for y in 0..picture.height() {
        let row: String = picture.row(y).iter().map(|i| letters[*i as usize]).collect();
        println!("\"{row}\"{}", if y + 1 < picture.height() { "," } else { "" });
    }
    println!("}};");
}
