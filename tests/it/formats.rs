//! Outputs in every format: the same frames and sound everywhere, and the rules of files for all.

use std::fs;
use std::io::Read;
use std::net::UdpSocket;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Duration;

use engines::error_kind::ErrorKind;
use ffmpeg::codec::context::Context;
use ffmpeg::format::sample::Type as Layout;
use ffmpeg::format::{Sample, context::Input};
use ffmpeg::media::Type;
use ffmpeg::util::frame::{Audio, Video};
use ffmpeg_next as ffmpeg;
use image::RgbImage;
use runtime::media::probe;
use tests::files::listing;
use tests::golden::Golden;
use tests::program::{Finished, started_by};

use crate::frames::frames;
use crate::outputs::speech;
use crate::signals::{Live, signal};
use crate::stream::{Run, line};

/// Flags of a video of two blocks.
const TWO_BLOCKS: [&str; 6] = [
    "--num_clip=2",
    "--infer_frames=12",
    "--sample_steps=1",
    "--crf=12",
    "--base_seed=7",
    "--size=64*64",
];
const FRAMES: usize = 21;
const RATE: usize = 48_000;

fn command(out: &Path, more: &[&str]) -> Command {
    let audio = Golden::carried().input("speech_16k_mono.wav");
    line(out, &audio, 1, &[&TWO_BLOCKS[..], more].concat())
}

fn made(out: &Path, more: &[&str]) -> Finished {
    command(out, more).output().map(Finished::from).unwrap()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// The pictures of a file of raw frames.
fn raw(bytes: &[u8]) -> Vec<RgbImage> {
    let frames = bytes.chunks(3 * 64 * 64);
    frames
        .map(|rgb| RgbImage::from_raw(64, 64, rgb.to_vec()).unwrap())
        .collect()
}

/// The mean difference of two videos, in levels.
fn difference(a: &[RgbImage], b: &[RgbImage]) -> f64 {
    assert_eq!(a.len(), b.len());
    let levels = |frames: &[RgbImage]| -> Vec<u8> {
        frames.iter().flat_map(|f| f.as_raw().clone()).collect()
    };
    let (a, b) = (levels(a), levels(b));
    assert_eq!(a.len(), b.len());
    let sum: u64 = a
        .iter()
        .zip(&b)
        .map(|(x, y)| u64::from(x.abs_diff(*y)))
        .sum();
    sum as f64 / a.len() as f64
}

/// Decodes the sound of a file to mono at 48 kHz. Time 0 is the first frame of the video.
pub(crate) fn sound(path: &Path) -> Vec<f32> {
    ffmpeg::init().unwrap();
    let mut file = ffmpeg::format::input(path).unwrap();
    let first = first_frame(&mut ffmpeg::format::input(path).unwrap());
    let stream = file.streams().best(Type::Audio).unwrap();
    let (index, unit) = (stream.index(), f64::from(stream.time_base()));
    let mut decoder = Context::from_parameters(stream.parameters())
        .unwrap()
        .decoder();
    decoder.set_packet_time_base(stream.time_base());
    let mut decoder = decoder.audio().unwrap();
    assert_eq!(decoder.rate() as usize, RATE);
    // Samples follow each other without a gap; the first time says where they begin.
    let (mut heard, mut begin) = (Vec::new(), None);
    let mut take = |decoder: &mut ffmpeg::decoder::Audio| {
        let mut frame = Audio::empty();
        while decoder.receive_frame(&mut frame).is_ok() {
            let seconds = frame.pts().unwrap() as f64 * unit - first;
            let at = (seconds * RATE as f64).round() as i64;
            let begin = *begin.get_or_insert(at);
            let gap = at - begin - heard.len() as i64;
            assert!(gap.abs() <= 48, "a gap of {gap} samples at {seconds} s");
            assert!(matches!(frame.format(), Sample::F32(Layout::Planar)));
            heard.extend(frame.plane::<f32>(0));
        }
    };
    for (stream, packet) in file.packets() {
        if stream.index() == index {
            decoder.send_packet(&packet).unwrap();
            take(&mut decoder);
        }
    }
    decoder.send_eof().unwrap();
    take(&mut decoder);
    match begin.unwrap_or(0) {
        late @ 0.. => [vec![0.0; late as usize], heard].concat(),
        early => heard.split_off(early.unsigned_abs() as usize),
    }
}

/// The time of the first frame, in seconds.
fn first_frame(file: &mut Input) -> f64 {
    let stream = file.streams().best(Type::Video).unwrap();
    let (index, unit) = (stream.index(), f64::from(stream.time_base()));
    let mut packets = file.packets();
    let packet = packets
        .find(|(stream, _)| stream.index() == index)
        .unwrap()
        .1;
    packet.pts().unwrap() as f64 * unit
}

/// How many samples `b` is later than `a`: the shift at which they differ least.
pub(crate) fn lag(a: &[f32], b: &[f32]) -> i64 {
    const MOST: i64 = 2500;
    let off = |lag: i64| -> f64 {
        let from = MOST as usize..a.len().min(b.len()) - MOST as usize;
        let pairs = from
            .step_by(5)
            .map(|i| (a[i], b[(i as i64 + lag) as usize]));
        pairs.map(|(x, y)| f64::from(x - y).powi(2)).sum()
    };
    let mut lags = -MOST..=MOST;
    let first = lags.next().map(|lag| (lag, off(lag))).unwrap();
    let nearer = |best: (i64, f64), lag| {
        let off = off(lag);
        if off < best.1 { (lag, off) } else { best }
    };
    lags.fold(first, nearer).0
}

#[test]
fn every_format_has_the_same_frames_and_sound() {
    let run = Run::new();
    let names = ["v.mp4", "v.mkv", "v.webm", "v.rgb", "v.y4m", "frames/"];
    let outs: Vec<PathBuf> = names.iter().map(|name| run.path(name)).collect();
    let more: Vec<&str> = outs[1..]
        .iter()
        .flat_map(|out| ["--out", text(out)])
        .collect();
    let told = made(&outs[0], &more).ok().stderr;
    for silent in ["v.rgb: the format raw", "v.y4m: the format y4m"] {
        assert!(told.contains(silent), "{told}");
    }
    // One output alone is the same file.
    let alone = run.path("alone.mp4");
    made(&alone, &[]).ok();
    assert!(fs::read(&alone).unwrap() == fs::read(&outs[0]).unwrap());
    let exact = raw(&fs::read(&outs[3]).unwrap());
    assert_eq!(exact.len(), FRAMES);
    let number = |i: usize| run.path(&format!("frames/{i:06}.png"));
    let read = |i: usize| image::open(number(i)).unwrap().to_rgb8();
    assert!((1..=FRAMES).map(read).collect::<Vec<_>>() == exact);
    assert_eq!(
        fs::read_dir(run.path("frames")).unwrap().count(),
        FRAMES + 1
    );
    for out in [&outs[0], &outs[1], &outs[2], &outs[4]] {
        let off = difference(&frames(out), &exact);
        // The frames of a tiny model are noise, of which 4:2:0 loses much.
        assert!(off < 12.0, "{}: {off}", out.display());
    }
    assert!(difference(&frames(&outs[0]), &frames(&outs[1])) < 0.01);
    assert!(difference(&exact[1..], &exact[..FRAMES - 1]) > 16.0);
    let wav = fs::read(run.path("frames/sound.wav")).unwrap();
    let samples = wav[44..].as_chunks::<2>().0;
    let wav: Vec<f32> = samples
        .iter()
        .map(|&s| f32::from(i16::from_le_bytes(s)) / 32_768.0)
        .collect();
    assert_eq!(wav.len(), FRAMES * RATE / 25);
    for (out, codecs) in outs
        .iter()
        .zip([("h264", "aac"), ("h264", "aac"), ("vp9", "opus")])
    {
        let facts = probe(out).unwrap();
        let codec = facts.audio.as_ref().unwrap().codec;
        assert_eq!((facts.video_codec, codec), codecs);
        assert_eq!((facts.frames, facts.fps), (FRAMES, 25.0), "{facts}");
        // Matroska has times of a millisecond, 48 samples.
        let late = lag(&wav, &sound(out));
        println!("{}: {late} samples", out.display());
        assert!(late.abs() <= 48, "{}: {late} samples", out.display());
    }
}

#[test]
fn standard_output_takes_one_stream_and_text_goes_elsewhere() {
    let run = Run::new();
    let file = run.path("v.rgb");
    made(&file, &[]).ok();
    let piped = |more: &[&str]| {
        let out = command(Path::new("-"), more).output().unwrap();
        let told = String::from_utf8(out.stderr).unwrap();
        assert_eq!(out.status.code(), Some(0), "{told}");
        (out.stdout, told)
    };
    assert!(piped(&["--format=raw"]).0 == fs::read(&file).unwrap());
    for (format, flags) in [
        ("mp4", &[][..]),
        ("mkv", &["--format=mkv"]),
        ("y4m", &["--format=y4m"]),
    ] {
        let (bytes, told) = piped(&[flags, &["--json"]].concat());
        let path = run.path(&format!("piped.{format}"));
        fs::write(&path, bytes).unwrap();
        assert_eq!(frames(&path).len(), FRAMES, "{format}");
        let mut events = told
            .lines()
            .map(|l| serde_json::from_str::<serde_json::Value>(l).unwrap());
        assert_eq!(events.next_back().unwrap()["event"], "finished", "{told}");
    }
    // A reader that leaves early ends the run.
    let mut child = command(Path::new("-"), &["--format=raw"]).spawn().unwrap();
    let mut first = [0; 100];
    child.stdout.take().unwrap().read_exact(&mut first).unwrap();
    let left = Finished::from(child.wait_with_output().unwrap());
    let message = left.error(ErrorKind::Resources);
    assert!(
        message.starts_with("standard output: cannot continue"),
        "{message}"
    );
}

#[test]
fn filters_and_rate_reach_the_encoder_and_the_length_stays() {
    let run = Run::new();
    let plain = run.path("plain.mp4");
    made(&plain, &[]).ok();
    let out = run.path("v.mp4");
    // The articles' post-processing, at a size that a test can afford.
    let filters = "hqdn3d=1.5:1.5:6:6,scale=192:128:flags=lanczos";
    let told = made(&out, &["--vf", filters, "--fps=50"]).ok().stderr;
    assert!(
        told.contains("note: --fps 50: the model makes 25 frames"),
        "{told}"
    );
    let facts = probe(&out).unwrap();
    assert_eq!((facts.width, facts.height), (192, 128));
    assert_eq!((facts.fps, facts.frames), (50.0, 2 * FRAMES), "{facts}");
    let length = facts.video_seconds;
    assert!((length - FRAMES as f64 / 25.0).abs() < 1e-6, "{facts}");
    // Every frame stands twice.
    let doubled = frames(&out);
    let halves =
        |rest: usize| -> Vec<RgbImage> { doubled.iter().skip(rest).step_by(2).cloned().collect() };
    assert!(difference(&halves(0), &halves(1)) < 1.0);
    // Colours come back from filters in RGB as they were.
    let rgb = run.path("rgb.mp4");
    made(&rgb, &["--vf", "format=gbrp"]).ok();
    let off = difference(&frames(&rgb), &frames(&plain));
    assert!(off < 3.0, "{off}");
    // Raw frames pass the same filters.
    let small = run.path("small.rgb");
    made(&small, &["--vf", "scale=32:32", "--fps=5"]).ok();
    assert_eq!(fs::metadata(&small).unwrap().len() % (3 * 32 * 32), 0);
    assert_eq!(fs::metadata(&small).unwrap().len() / (3 * 32 * 32), 4);
}

#[test]
fn encoders_and_bit_rates_are_honoured() {
    let run = Run::new();
    let size = |name: &str, more: &[&str]| {
        let out = run.path(name);
        let flags = TWO_BLOCKS.iter().filter(|f| !f.starts_with("--crf"));
        let flags: Vec<&str> = flags.chain(more).copied().collect();
        let audio = Golden::carried().input("speech_16k_mono.wav");
        line(&out, &audio, 1, &flags)
            .output()
            .map(Finished::from)
            .unwrap()
            .ok();
        (
            probe(&out).unwrap().video_codec,
            fs::metadata(&out).unwrap().len(),
        )
    };
    let noise = ["--vf", "noise=alls=60:allf=t:all_seed=1"];
    let rate = |name, bits| size(name, &[&noise[..], &["--bitrate", bits]].concat()).1;
    let (low, high) = (rate("low.mp4", "100k"), rate("high.mp4", "2M"));
    assert!(3 * low < high, "{low} {high}");
    assert_eq!(size("hevc.mp4", &["--vcodec=libx265"]).0, "hevc");
    assert_eq!(size("vp8.webm", &["--vcodec=libvpx"]).0, "vp8");
    assert_eq!(
        size("part2.mp4", &["--vcodec=mpeg4", "--bitrate=1M"]).0,
        "mpeg4"
    );
}

#[test]
fn outputs_that_cannot_be_made_are_refused_before_anything_is_loaded() {
    let run = Run::new();
    let mine = run.path("mine");
    fs::create_dir(&mine).unwrap();
    fs::write(mine.join("letter.txt"), "keep me").unwrap();
    let full = run.path("full");
    fs::create_dir(&full).unwrap();
    fs::write(full.join("000001.png"), "a frame").unwrap();
    let (usage, input, resources) = (ErrorKind::Usage, ErrorKind::Input, ErrorKind::Resources);
    let at = |name: &str| run.path(name);
    for (out, more, kind, says) in [
        (
            at("v.mp4"),
            &["--vf", "nosuch=1"][..],
            usage,
            "--vf nosuch=1: FFmpeg refuses",
        ),
        (
            at("v.mp4"),
            &["--vf", "nosuch=1"],
            usage,
            "No such filter: 'nosuch'",
        ),
        (
            at("v.mp4"),
            &["--vf", "scale=33:33"],
            usage,
            "wants even sides, the filters make 33*33",
        ),
        (at("v.rgb"), &["--vf", "scale=x"], usage, "--vf scale=x"),
        (at("v.mp4"), &["--fps=0"], usage, "0 is not in 1..=240"),
        (
            at("v.mp4"),
            &["--vcodec=x264"],
            usage,
            "no video encoder of this name",
        ),
        (
            at("v.mp4"),
            &["--vcodec=aac"],
            usage,
            "no video encoder of this name",
        ),
        (
            at("v.webm"),
            &["--vcodec=libx264"],
            usage,
            "the format webm cannot hold its video",
        ),
        (at("v.mp4"), &["--vcodec=mpeg4"], usage, "give --bitrate"),
        (
            at("v.webm"),
            &["--preset=slow"],
            usage,
            "libvpx-vp9 has no presets",
        ),
        (
            at("v.mp4"),
            &["--vcodec=h264_vaapi"],
            usage,
            "this one takes vaapi",
        ),
        (
            at("v.rgb"),
            &["--vcodec=libx264"],
            usage,
            "--vcodec has no effect on --format raw",
        ),
        (
            at("v.mp4"),
            &["--format=mkv"],
            usage,
            "the name says mp4, --format says mkv",
        ),
        (at("v"), &["--format=webm"], usage, "ends in .webm"),
        (at("v.avi"), &[], usage, "ends in .mp4, .mkv"),
        (
            at("v.mp4"),
            &["--out=-", "--out=-"],
            usage,
            "--out - can be given once",
        ),
        (
            at("v.mp4"),
            &["--out=http://h/v"],
            usage,
            "one of rtmp, rtmps, srt, udp, tcp",
        ),
        (
            mine.clone(),
            &["--format=frames"],
            input,
            "new, empty or holds frames alone",
        ),
        (
            mine.clone(),
            &["--format=frames", "--overwrite"],
            input,
            "holds frames alone",
        ),
        (
            full.clone(),
            &["--format=frames"],
            input,
            "full exists already; --overwrite",
        ),
        (mine.clone(), &[], input, "got a folder"),
    ] {
        let failed = made(&out, &[more, &["--models=nowhere"]].concat());
        let message = failed.error(kind);
        assert!(message.contains(says), "{more:?}: {message}");
    }
    // Without a card and its driver, the reason is FFmpeg's.
    let failed = made(&at("v.mp4"), &["--vcodec=h264_nvenc", "--models=nowhere"]);
    if failed.code != Some(i32::from(ErrorKind::Model.code())) {
        let message = failed.error(resources);
        assert!(
            message.contains("no usable encoder h264_nvenc: "),
            "{message}"
        );
    }
    let twice = at("v.mkv");
    let message = made(&twice, &["--out", text(&twice)]).error(input);
    assert!(message.contains("would write the same file"), "{message}");
    let kept = ["full/000001.png", "mine/letter.txt"].map(PathBuf::from);
    assert_eq!(listing(run.path("").as_path()), kept);
    made(&full, &["--format=frames", "--overwrite"]).ok();
    assert_eq!(fs::read_dir(&full).unwrap().count(), FRAMES + 1);
}

#[test]
fn what_a_stopped_run_wrote_plays_in_every_format() {
    let run = Run::new();
    let audio = speech(&run, 60.0);
    let begin = |more: &[&str]| {
        let names = ["v.webm", "v.y4m", "v.rgb", "frames/"].map(|name| run.path(name));
        let outs = names.iter().flat_map(|out| ["--out", text(out)]);
        let flags: Vec<&str> = ["--json", "--crf=40"].into_iter().chain(outs).collect();
        let mkv = run.path("v.mkv");
        let mut live = Live::start(&mut line(&mkv, &audio, 1, &[&flags[..], more].concat()));
        live.until(|e| e["event"] == "block" && e["block"] == 1);
        live
    };
    let live = begin(&[]);
    signal(live.id(), "INT");
    let message = live.end().0.error(ErrorKind::Interrupted);
    assert!(message.contains("what is there plays: "), "{message}");
    assert!(message.ends_with("v.partial.mkv"), "{message}");
    let check = |at_least: usize, dash: &str| {
        let file = |name: &str| run.path(&name.replace("partial", &format!("partial{dash}")));
        let count = frames(&file("v.partial.mkv")).len();
        assert!(
            count >= at_least && (count - 9).is_multiple_of(12),
            "{count}"
        );
        let (webm, y4m) = (file("v.partial.webm"), file("v.partial.y4m"));
        assert!(frames(&webm).len() >= at_least && frames(&y4m).len() >= at_least);
        let folder = match dash {
            "" => run.path("frames.partial"),
            number => run.path(&format!("frames{number}.partial")),
        };
        let wav = fs::metadata(folder.join("sound.wav")).unwrap().len();
        assert!(wav as usize >= 44 + 2 * at_least * RATE / 25);
        assert!(fs::read_dir(&folder).unwrap().count() > at_least);
        count
    };
    let count = check(21, "");
    let rgb = fs::metadata(run.path("v.partial.rgb")).unwrap().len() as usize;
    assert_eq!(rgb, count * 3 * 64 * 96);
    // A killed run leaves whole clusters too, and the older files move aside.
    let live = begin(&[]);
    signal(live.id(), "KILL");
    live.end();
    check(21, ".1");
    check(21, "");
    assert!(!run.path("v.mkv").exists() && !run.path("frames").exists());
}

#[test]
fn a_full_disk_leaves_whole_blocks_in_matroska_and_raw() {
    let run = Run::new();
    let audio = speech(&run, 12.0);
    let limited = |name: &str, kib: usize| {
        let whole = line(&run.path(name), &audio, 1, &["--crf=0", "--num_clip=4"]);
        let mut shell = Command::new("bash");
        shell.args(["-c", &format!("ulimit -f {kib}; exec \"$0\" \"$@\"")]);
        let failed = started_by(shell, &whole)
            .output()
            .map(Finished::from)
            .unwrap();
        failed.error(ErrorKind::Resources);
        assert!(
            failed.stderr.contains("are kept and play: "),
            "{}",
            failed.stderr
        );
    };
    limited("v.mkv", 400);
    let kept = frames(&run.path("v.partial.mkv")).len();
    assert!(kept >= 9 && (kept - 9).is_multiple_of(12), "{kept}");
    limited("v.rgb", 1000);
    let bytes = fs::metadata(run.path("v.partial.rgb")).unwrap().len() as usize;
    let frame = 3 * 64 * 96;
    assert!(
        bytes.is_multiple_of(frame) && (bytes / frame - 9).is_multiple_of(12),
        "{bytes}"
    );
    assert!(!run.path("v.mkv").exists() && !run.path("v.rgb").exists());
}

/// Counts the frames that FFmpeg decodes while a stream lasts.
fn decoded(mut input: Input) -> usize {
    let stream = input.streams().best(Type::Video).unwrap();
    let index = stream.index();
    let context = Context::from_parameters(stream.parameters()).unwrap();
    let mut decoder = context.decoder().video().unwrap();
    let (mut count, mut frame) = (0, Video::empty());
    for (stream, packet) in input.packets() {
        if stream.index() == index {
            decoder.send_packet(&packet).unwrap();
            while decoder.receive_frame(&mut frame).is_ok() {
                count += 1;
            }
        }
    }
    decoder.send_eof().unwrap();
    while decoder.receive_frame(&mut frame).is_ok() {
        count += 1;
    }
    count
}

#[test]
fn a_url_gets_the_video_beside_the_file() {
    let run = Run::new();
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket
        .set_read_timeout(Some(Duration::from_secs(20)))
        .unwrap();
    let port = socket.local_addr().unwrap().port();
    let heard = thread::spawn(move || {
        let (mut all, mut packet) = (Vec::new(), [0; 65_536]);
        // An empty packet ends the test's own wait.
        while let Ok(length @ 1..) = socket.recv(&mut packet) {
            all.extend(&packet[..length]);
        }
        all
    });
    let url = format!("udp://127.0.0.1:{port}?pkt_size=1316");
    let file = run.path("v.mp4");
    made(&file, &["--out", &url]).ok();
    let end = UdpSocket::bind("127.0.0.1:0").unwrap();
    end.send_to(&[], ("127.0.0.1", port)).unwrap();
    let stream = run.path("heard.ts");
    fs::write(&stream, heard.join().unwrap()).unwrap();
    assert!(difference(&frames(&stream), &frames(&file)) < 0.01);
    let late = lag(&sound(&file), &sound(&stream));
    assert!(late.abs() <= 48, "{late} samples");
    // Nobody listens.
    let failed = made(&run.path("w.mp4"), &["--out=rtmp://127.0.0.1:1/live"]);
    let message = failed.error(ErrorKind::Input);
    assert!(
        message.contains("rtmp://127.0.0.1:1/live: cannot open the stream: "),
        "{message}"
    );
    assert!(message.contains("Connection refused"), "{message}");
    assert!(!run.path("w.partial.mp4").exists() && !run.path("w.mp4").exists());
}

#[test]
fn an_rtmp_server_gets_the_video() {
    ffmpeg::init().unwrap();
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = free.local_addr().unwrap().port();
    drop(free);
    let url = format!("rtmp://127.0.0.1:{port}/live/test");
    let server = thread::spawn({
        let url = url.clone();
        move || {
            let mut options = ffmpeg::Dictionary::new();
            options.set("listen", "1");
            options.set("timeout", "60");
            decoded(ffmpeg::format::input_with_dictionary(&url, options).unwrap())
        }
    });
    made(Path::new(&url), &[]).ok();
    assert_eq!(server.join().unwrap(), FRAMES);
}
