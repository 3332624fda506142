//! `merge` joins videos: the frames of all, at even times, with the sound in step.

use std::fs;
use std::path::{Path, PathBuf};

use engines::error_kind::ErrorKind;
use ffmpeg_next as ffmpeg;
use runtime::media::probe;
use tests::files::listing;
use tests::golden::Golden;
use tests::program::{Finished, Program};

use crate::formats::{lag, sound};
use crate::frames::frames;
use crate::stream::{Run, line};

/// Makes a video of `clips` clips of one block, which has 12 * clips - 3 frames.
fn video(out: &Path, clips: usize, more: &[&str]) {
    let audio = Golden::carried().input("speech_16k_mono.wav");
    let clips = format!("--num_clip={clips}");
    let flags = [
        &clips,
        "--infer_frames=12",
        "--sample_steps=1",
        "--size=64*64",
        "--crf=30",
    ];
    let made = line(out, &audio, 1, &[&flags[..], more].concat()).output();
    made.map(Finished::from).unwrap().ok();
}

fn merged(inputs: &[&PathBuf], out: &Path, more: &[&str]) -> Finished {
    let mut command = Program::Run.command();
    command.arg("merge").args(inputs).arg("--out").arg(out);
    command.args(more).output().map(Finished::from).unwrap()
}

/// The times of all frames of a file, in tenths of a millisecond.
fn times(path: &Path) -> Vec<i64> {
    ffmpeg::init().unwrap();
    let mut file = ffmpeg::format::input(path).unwrap();
    let stream = file.streams().best(ffmpeg::media::Type::Video).unwrap();
    let (index, unit) = (stream.index(), f64::from(stream.time_base()));
    let packets = file.packets().filter(|(stream, _)| stream.index() == index);
    let time = |packet: ffmpeg::Packet| packet.pts().unwrap() as f64 * unit * 1e4;
    packets
        .map(|(_, packet)| time(packet).round() as i64)
        .collect()
}

#[test]
fn a_join_has_all_frames_at_even_times_and_the_sound_in_step() {
    let run = Run::new();
    for (ending, unit) in [("mp4", 0), ("mkv", 10)] {
        let [a, b, out] = ["a", "b", "c"].map(|name| run.path(&format!("{name}.{ending}")));
        // 21 frames are 39.4 packets of AAC, and 33 are 61.9.
        video(&a, 2, &["--base_seed=1"]);
        video(&b, 3, &["--base_seed=2"]);
        let told = merged(&[&a, &b, &a], &out, &[]).ok().stdout;
        assert!(told.contains("75 frames (3.00 s) of 3 videos"), "{told}");
        let pieces = [frames(&a), frames(&b), frames(&a)].concat();
        assert!(frames(&out) == pieces, "{ending}");
        let times = times(&out);
        let even = times.iter().enumerate();
        let off = even.map(|(i, time)| (time - times[0] - 400 * i as i64).abs());
        assert!(off.max().unwrap() <= unit, "{times:?}");
        // The same piece of sound stands at the beginning and behind the second join.
        let (heard, first) = (sound(&out), sound(&a));
        let starts = [0, 21, 54].map(|frame| frame * 1920);
        for (start, piece) in starts.into_iter().zip([&first, &sound(&b), &first]) {
            let late = lag(piece, &heard[start..]);
            println!("{ending}: {late} samples at {start}");
            assert!(late.abs() <= 48, "{ending}: {late} samples late at {start}");
        }
        let facts = probe(&out).unwrap();
        let sound = facts.audio.as_ref().unwrap();
        assert!((sound.seconds - 3.0).abs() < 0.03, "{facts}");
    }
}

#[test]
fn a_join_of_segments_is_the_long_run_of_their_frames_without_a_seam() {
    let run = Run::new();
    let names: Vec<PathBuf> = (0..6).map(|i| run.path(&format!("{i}.mp4"))).collect();
    video(&names[0], 2, &[]);
    names[1..]
        .iter()
        .for_each(|name| assert!(fs::copy(&names[0], name).is_ok()));
    let out = run.path("all.mp4");
    merged(&names.iter().collect::<Vec<_>>(), &out, &["--json"]).ok();
    let facts = probe(&out).unwrap();
    assert_eq!((facts.frames, facts.av_offset_ms), (126, 0.0), "{facts}");
    // Nothing adds up over the joins.
    let (heard, piece) = (sound(&out), sound(&names[0]));
    let late = lag(&piece, &heard[105 * 1920..]);
    println!("{late} samples behind five joins");
    assert!(late.abs() <= 2, "{late}");
}

#[test]
fn videos_that_do_not_fit_are_refused_by_their_first_difference() {
    let run = Run::new();
    let at = |name: &str| run.path(name);
    video(&at("a.mp4"), 1, &[]);
    video(&at("wide.mp4"), 1, &["--vf=scale=96:64"]);
    video(&at("fast.mp4"), 1, &["--fps=50"]);
    video(&at("hevc.mp4"), 1, &["--vcodec=libx265"]);
    video(&at("slow.mp4"), 1, &["--preset=slow"]);
    video(&at("b.webm"), 1, &[]);
    fs::write(at("text.mp4"), "no video").unwrap();
    let (input, usage) = (ErrorKind::Input, ErrorKind::Usage);
    for (second, out, kind, says) in [
        ("wide.mp4", "o.mp4", input, "the size of"),
        ("wide.mp4", "o.mp4", input, "a.mp4: 64*64, got 96*64"),
        ("fast.mp4", "o.mp4", input, "a.mp4: 25/1, got 50/1"),
        ("hevc.mp4", "o.mp4", input, "the video codec of"),
        ("b.webm", "o.mp4", input, "a.mp4: h264, got vp9"),
        ("slow.mp4", "o.mp4", input, "the header of the encoder of"),
        ("text.mp4", "o.mp4", input, "text.mp4: wants a media file"),
        ("none.mp4", "o.mp4", input, "none.mp4: cannot open"),
        ("a.mp4", "a.mp4", input, "would overwrite a video to join"),
        ("a.mp4", "slow.mp4", input, "slow.mp4 exists already"),
        ("a.mp4", "o.avi", usage, "ends in .mp4"),
        ("a.mp4", "o.rgb", usage, "ends in .mp4, .mkv or .webm"),
        ("a.mp4", "-", usage, "ends in .mp4, .mkv or .webm"),
        (
            "a.mp4",
            "o.webm",
            ErrorKind::Resources,
            "o.partial.webm: cannot continue",
        ),
    ] {
        let failed = merged(&[&at("a.mp4"), &at(second)], &at(out), &[]);
        let message = match out {
            "-" => merged(&[&at("a.mp4"), &at(second)], Path::new("-"), &[]).error(kind),
            _ => failed.error(kind),
        };
        assert!(message.contains(says), "{second} {out}: {message}");
    }
    let alone = merged(&[&at("a.mp4")], &at("o.mp4"), &[]);
    assert!(alone.error(usage).contains("<V.mp4>"));
    let left = listing(run.path("").as_path());
    assert!(
        left.iter()
            .all(|name| !name.to_string_lossy().contains("o.")),
        "{left:?}"
    );
}
