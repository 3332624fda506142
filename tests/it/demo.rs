//! Makes the demo's video with the carried trained checkpoint, and measures it against the drawn
//! truth of its person.

use std::fs;
use std::path::{Path, PathBuf};

use engines::error_kind::ErrorKind;
use image::RgbImage;
use serde_json::Value;
use tests::files::copy_folder;
use tests::golden::{cached, demo_ckpt, demo_models, workspace};
use tests::program::{Finished, Program};

use crate::frames::frames;

/// Words of the prompt that `scripts/demo` gives.
const PROMPT: &str = "A friendly cartoon character speaks to the camera, smiling, in warm light.";

/// Flags that `scripts/demo` gives beside.
const FLAGS: [&str; 2] = ["--ring-blocks=2", "--preset=veryfast"];

/// Opening of the mouth, from pixels, as `faces.openness` of `scripts/demo_model` reads it.
struct Mouth {
    truth: Vec<f64>,
    /// Top, bottom, left and right of the column where the mouth opens, as parts of the picture.
    column: [f64; 4],
    skin: [f64; 3],
}

impl Mouth {
    /// Reads what is known of the demo's person.
    fn carried() -> Self {
        let text = fs::read_to_string(workspace().join("tests/demo/truth.json")).unwrap();
        let known: Value = serde_json::from_str(&text).unwrap();
        let numbers = |v: &Value| -> Vec<f64> {
            let all = v.as_array().unwrap().iter();
            all.map(|v| v.as_f64().unwrap()).collect()
        };
        let column = &known["column"];
        Self {
            truth: numbers(&known["opening"]),
            column: ["top", "bottom", "left", "right"].map(|k| column[k].as_f64().unwrap()),
            skin: numbers(&known["skin"]).try_into().unwrap(),
        }
    }

    /// Returns the rows of a column, and how much of each is no skin, from 0 to 1.
    fn rows(&self, frame: &RgbImage, left: f64, right: f64) -> Vec<(f64, f64)> {
        let size = f64::from(frame.height());
        let [top, bottom, ..] = self.column;
        let [top, bottom, left, right] = [top, bottom, left, right].map(|v| (v * size) as u32);
        let row = |y: u32| {
            let off = |x: u32| {
                let pixel = frame.get_pixel(x, y).0;
                let parts = pixel.iter().zip(self.skin);
                let square = parts.map(|(&p, s)| (f64::from(p) / 255.0 - s).powi(2));
                ((square.sum::<f64>().sqrt() - 0.12) / 0.2).clamp(0.0, 1.0)
            };
            let part = (left..=right).map(off).sum::<f64>() / f64::from(right - left + 1);
            (f64::from(y), part)
        };
        (top..bottom).map(row).collect()
    }

    /// Returns the height of what is no skin in the column, as a part of the picture.
    fn opening(&self, frame: &RgbImage) -> f64 {
        let [.., left, right] = self.column;
        let parts = self.rows(frame, left, right).into_iter().map(|(_, p)| p);
        parts.sum::<f64>() / f64::from(frame.height())
    }

    /// Returns by how many pixels the corners of the mouth are above its middle.
    fn corners(&self, frame: &RgbImage) -> f64 {
        let [.., left, right] = self.column;
        // The column has a fifth of the mouth on either side of its middle.
        let (centre, half) = ((left + right) / 2.0, (right - left) / 0.4);
        let height = |from: f64, to: f64| {
            let rows = self.rows(frame, centre + from * half, centre + to * half);
            let sum = rows.iter().map(|(y, p)| y * p).sum::<f64>();
            sum / rows.iter().map(|(_, p)| p).sum::<f64>().max(1e-6)
        };
        height(-0.1, 0.1) - (height(-0.95, -0.85) + height(0.85, 0.95)) / 2.0
    }
}

fn mean(values: impl IntoIterator<Item = f64>) -> f64 {
    let (sum, count) = values
        .into_iter()
        .fold((0.0, 0.0), |(s, n), v| (s + v, n + 1.0));
    sum / count
}

fn correlation(a: &[f64], b: &[f64]) -> f64 {
    let (ma, mb) = (mean(a.iter().copied()), mean(b.iter().copied()));
    let product = |x: &[f64], mx: f64, y: &[f64], my: f64| {
        x.iter()
            .zip(y)
            .map(|(x, y)| (x - mx) * (y - my))
            .sum::<f64>()
    };
    product(a, ma, b, mb) / (product(a, ma, a, ma) * product(b, mb, b, mb)).sqrt()
}

/// Correlation of what is `late` frames late with what is on time.
fn correlation_at(read: &[f64], truth: &[f64], late: isize) -> f64 {
    let (ahead, behind) = (late.max(0) as usize, (-late).max(0) as usize);
    let length = read.len() - ahead - behind;
    correlation(&read[ahead..][..length], &truth[behind..][..length])
}

/// Makes a video of the demo's speech, with more flags.
fn generate(image: &Path, prompt: &str, out: &Path, more: &[&str]) -> Finished {
    let mut command = Program::Run.command();
    command.args([
        "generate",
        "--size=256*256",
        "--base_seed=420",
        "--threads=2",
    ]);
    command.arg("--models").arg(demo_models());
    command.arg("--image").arg(image);
    command
        .arg("--audio")
        .arg(workspace().join("assets/speech.wav"));
    command
        .args(["--prompt", prompt])
        .arg("--out")
        .arg(out)
        .args(more);
    Finished::from(command.output().unwrap())
}

fn face() -> PathBuf {
    workspace().join("assets/demo/face.png")
}

/// The demo's video, made once for all tests.
pub(crate) fn video() -> PathBuf {
    let folder = cached("demo-video", |out| {
        fs::create_dir(out).unwrap();
        generate(&face(), PROMPT, &out.join("demo.mp4"), &FLAGS).ok();
    });
    folder.join("demo.mp4")
}

#[test]
fn the_mouth_follows_the_speech() {
    let mouth = Mouth::carried();
    let read: Vec<f64> = frames(&video()).iter().map(|f| mouth.opening(f)).collect();
    assert_eq!(read.len(), mouth.truth.len());
    let late = (-4..=4)
        .max_by(|a, b| {
            let at = |late: &isize| correlation_at(&read, &mouth.truth, *late);
            at(a).total_cmp(&at(b))
        })
        .unwrap();
    assert!(late.abs() <= 1, "the mouth is {late} frames late");
    let found = correlation(&read, &mouth.truth);
    assert!(found >= 0.85, "correlation with the truth is {found:.3}");
    // The control: the same mouth beside other words.
    let mut other = mouth.truth.clone();
    other.rotate_left(read.len() / 3);
    let found = correlation(&read, &other);
    assert!(
        found.abs() < 0.3,
        "correlation with other words is {found:.3}"
    );
}

#[test]
fn the_mouth_is_closed_in_silence() {
    let mouth = Mouth::carried();
    let read: Vec<f64> = frames(&video()).iter().map(|f| mouth.opening(f)).collect();
    let shut = mouth.truth.iter().copied().fold(f64::MAX, f64::min);
    let within = |i: usize, far: f64| (mouth.truth[i] - shut).abs() < far;
    let still = |i: &usize| i.saturating_sub(2)..=(i + 2).min(read.len() - 1);
    let quiet: Vec<usize> = (0..read.len())
        .filter(|i| still(i).all(|j| within(j, 0.004)))
        .collect();
    assert!(quiet.len() >= 10, "{} quiet frames", quiet.len());
    // One pixel of 256 is 0.0039; an open mouth has about ten more than a closed one.
    let more = mean(quiet.iter().map(|&i| read[i] - mouth.truth[i]));
    assert!(more.abs() * 256.0 < 1.5, "{:.2} pixels open", more * 256.0);
}

#[test]
fn the_prompt_makes_it_smile() {
    let dir = tempfile::tempdir().unwrap();
    let mouth = Mouth::carried();
    let lift = |words: &str| {
        let out = dir.path().join(format!("{words}.mp4"));
        let prompt = format!("A cartoon character speaks to the camera, {words}.");
        generate(&face(), &prompt, &out, &["--num_clip=1"]).ok();
        mean(frames(&out).iter().map(|f| mouth.corners(f)))
    };
    let (smiling, serious) = (lift("smiling"), lift("with a serious face"));
    // In pixels of 256.
    assert!(
        smiling - serious > 1.5,
        "{smiling:.2}, {serious:.2} pixels up"
    );
}

#[test]
fn the_prompt_makes_night_fall() {
    let dir = tempfile::tempdir().unwrap();
    // Brightness of the wall in both upper corners, from 0 to 1.
    let wall = |words: &str| {
        let out = dir.path().join(format!("{words}.mp4"));
        let prompt = format!("A cartoon character speaks to the camera, {words}.");
        generate(&face(), &prompt, &out, &["--num_clip=1"]).ok();
        mean(frames(&out).iter().map(|frame| {
            let corners = (0..40)
                .chain(216..256)
                .flat_map(|x| (0..40).map(move |y| (x, y)));
            mean(corners.map(|(x, y)| {
                let pixel = frame.get_pixel(x, y).0;
                pixel.iter().map(|&p| f64::from(p)).sum::<f64>() / 3.0 / 255.0
            }))
        }))
    };
    let (day, night) = (wall("by day"), wall("at night"));
    assert!(day - night > 0.2 && night < 0.35, "{day:.2}, {night:.2}");
}

#[test]
fn a_picture_that_it_does_not_know_is_no_error() {
    let dir = tempfile::tempdir().unwrap();
    let noise = RgbImage::from_fn(200, 320, |x, y| {
        let mixed = (x.wrapping_mul(2_654_435_761) ^ y.wrapping_mul(40_503)).wrapping_mul(97);
        image::Rgb([(mixed >> 8) as u8, (mixed >> 16) as u8, (mixed >> 24) as u8])
    });
    let path = dir.path().join("noise.png");
    noise.save(&path).unwrap();
    for (name, picture) in [
        ("noise", path),
        ("other", workspace().join("assets/face.png")),
    ] {
        let out = dir.path().join(format!("{name}.mp4"));
        generate(
            &picture,
            PROMPT,
            &out,
            &["--num_clip=1", "--infer_frames=12"],
        )
        .ok();
        assert_eq!(frames(&out).len(), 9);
    }
}

/// Exports a copy of the demo's checkpoint after a change, and returns the error.
fn refused(change: impl FnOnce(&Path)) -> String {
    let dir = tempfile::tempdir().unwrap();
    let ckpt = dir.path().join("ckpt");
    copy_folder(&demo_ckpt(), &ckpt);
    change(&ckpt);
    let mut command = Program::Export.command();
    command
        .arg("onnx")
        .arg("--ckpt_dir")
        .arg(ckpt.join("Wan2.2-S2V-14B"));
    command
        .arg("--lora")
        .arg(ckpt.join("LiveAvatar/liveavatar.safetensors"));
    command.arg("--out").arg(dir.path().join("models"));
    let message = Finished::from(command.output().unwrap()).error(ErrorKind::Model);
    assert!(!dir.path().join("models").exists());
    message
}

#[test]
fn a_damaged_checkpoint_is_refused() {
    let files = [
        "Wan2.2-S2V-14B/Wan2.1_VAE.pth",
        "Wan2.2-S2V-14B/diffusion_pytorch_model-00002-of-00002.safetensors",
        "Wan2.2-S2V-14B/google/umt5-xxl/tokenizer.json",
        "LiveAvatar/liveavatar.safetensors",
    ];
    for name in files {
        let message = refused(|ckpt| fs::remove_file(ckpt.join(name)).unwrap());
        assert!(message.contains(name), "{name}: {message}");
        let message = refused(|ckpt| {
            let path = ckpt.join(name);
            let mut bytes = fs::read(&path).unwrap();
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
            fs::write(path, bytes).unwrap();
        });
        assert!(message.contains(name), "{name}: {message}");
        assert!(message.contains("SHA256SUMS"), "{name}: {message}");
    }
}
