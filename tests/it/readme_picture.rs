//! Makes the README's moving picture from the demo's video, and compares it with the carried one.
//!
//! `UPDATE_README_PICTURE=1 cargo test -p tests --test it readme_picture` writes a new one.

use std::fs;
use std::io::{BufReader, Cursor};
use std::path::PathBuf;

use image::codecs::webp::WebPDecoder;
use image::{AnimationDecoder, RgbImage};
use tests::golden::workspace;

use crate::demo::video;
use crate::frames::{frames, write_webp};

/// Every second frame of the first seconds.
const FRAMES: usize = 50;
const RATE: i32 = 25 / 2;
const QUALITY: u32 = 80;

/// The README states that the picture has less than 1 MB.
const MOST_BYTES: usize = 1_000_000;

fn carried() -> PathBuf {
    workspace().join("assets/demo/talk.webp")
}

fn pictures(webp: &[u8]) -> Vec<RgbImage> {
    let decoder = WebPDecoder::new(BufReader::new(Cursor::new(webp))).unwrap();
    let frames = decoder.into_frames().collect_frames().unwrap();
    let rgb = |f: image::Frame| image::DynamicImage::from(f.into_buffer()).to_rgb8();
    frames.into_iter().map(rgb).collect()
}

/// Peak signal-to-noise ratio in dB.
fn psnr(a: &RgbImage, b: &RgbImage) -> f64 {
    let pairs = a.as_raw().iter().zip(b.as_raw());
    let square = pairs.map(|(&a, &b)| (f64::from(a) - f64::from(b)).powi(2));
    10.0 * (255.0_f64.powi(2) / (square.sum::<f64>() / a.as_raw().len() as f64)).log10()
}

#[test]
fn the_moving_picture_is_what_the_demo_makes() {
    let dir = tempfile::tempdir().unwrap();
    let made = dir.path().join("talk.webp");
    let shown: Vec<RgbImage> = frames(&video())
        .into_iter()
        .step_by(2)
        .take(FRAMES)
        .collect();
    write_webp(&made, &shown, RATE, QUALITY);
    if std::env::var_os("UPDATE_README_PICTURE").is_some() {
        fs::copy(&made, carried()).unwrap();
    }
    let kept = fs::read(carried()).unwrap();
    assert!(kept.len() < MOST_BYTES, "{} bytes", kept.len());
    let (kept, made) = (pictures(&kept), pictures(&fs::read(made).unwrap()));
    assert_eq!((kept.len(), made.len()), (FRAMES, FRAMES));
    for (i, (kept, made)) in kept.iter().zip(&made).enumerate() {
        // Processors round in their own ways; the next frame has 27 to 37 dB.
        let found = psnr(kept, made);
        assert!(found > 38.0, "frame {i}: {found:.1} dB");
    }
}
