//! Holds the tables of the README against the programs.

use std::fs;
use std::sync::Mutex;

use engines::error_kind::ErrorKind;
use engines::manifest::Models;
use image::{DynamicImage, ImageFormat, RgbImage};
use runtime::chain::{Event, Observer};
use runtime::generate::{GenerateError, Prepared, Request};
use tests::golden::{models, workspace};
use tests::program::Program;

use crate::stream::Run;

fn readme() -> String {
    fs::read_to_string(workspace().join("README.md")).unwrap()
}

/// Returns the cells of every row of the table whose header begins with `header`.
fn table(header: &str) -> Vec<Vec<String>> {
    let text = readme();
    let mut lines = text
        .lines()
        .skip_while(|l| !l.starts_with(&format!("| {header} |")));
    assert!(lines.next().is_some(), "README.md has no table `{header}`");
    let rows = lines.skip(1).take_while(|l| l.starts_with('|'));
    let cells = |row: &str| -> Vec<String> {
        let cells = row.trim_matches('|').split('|');
        cells.map(|c| c.trim().replace('`', "")).collect()
    };
    rows.map(cells).collect()
}

/// Returns the second cell of the row that begins with `name`.
fn cell(rows: &[Vec<String>], name: &str) -> String {
    let row = rows.iter().find(|r| r[0] == name);
    row.unwrap_or_else(|| panic!("no row `{name}`"))[1].clone()
}

/// Returns the numbers of a text, in order.
fn numbers(text: &str) -> Vec<usize> {
    let parts = text.split(|c: char| !c.is_ascii_digit());
    parts.filter_map(|p| p.parse().ok()).collect()
}

/// Keeps the notices of a run.
#[derive(Default)]
struct Notices(Mutex<Vec<String>>);

impl Observer for Notices {
    fn event(&self, event: &Event<'_>) {
        if let Event::Notice(text) = event {
            self.0.lock().unwrap().push(text.clone());
        }
    }
}

/// Reads the inputs of a request, and returns the notices.
fn prepared(change: impl FnOnce(&mut Request)) -> Result<Vec<String>, GenerateError> {
    let run = Run::new();
    let mut request = run.request();
    request.files.trace = None;
    change(&mut request);
    let (models, notices) = (Models::open(models()).unwrap(), Notices::default());
    Prepared::open(request, &models, &notices)?;
    Ok(notices.0.into_inner().unwrap())
}

#[track_caller]
fn refused(kind: ErrorKind, change: impl FnOnce(&mut Request)) -> String {
    let error = prepared(change).unwrap_err();
    assert_eq!(error.kind(), kind, "{error}");
    error.to_string()
}

#[test]
fn limits_are_those_of_the_readme() {
    let rows = table("value");
    let range = |name: &str| -> [usize; 2] { numbers(&cell(&rows, name)).try_into().unwrap() };

    let [least, most] = range("side of the video, in pixels");
    let size = |width: usize| format!("{width}*64").parse();
    for width in [least, most] {
        prepared(|r| r.size = size(width).unwrap()).unwrap();
    }
    for width in [least - 16, most + 16] {
        let too_far = size(width).map(|size| refused(ErrorKind::Usage, |r| r.size = size));
        assert!(too_far.is_err() || too_far.is_ok_and(|text| text.contains("size")));
    }

    let [least, most] = range("side of the picture, in pixels");
    let dir = tempfile::tempdir().unwrap();
    for (width, allowed) in [
        (least, true),
        (most, true),
        (least - 1, false),
        (most + 1, false),
    ] {
        let path = dir.path().join(format!("{width}.png"));
        RgbImage::new(width as u32, least as u32)
            .save(&path)
            .unwrap();
        match allowed {
            true => drop(prepared(|r| r.image = path).unwrap()),
            false => drop(refused(ErrorKind::Input, |r| r.image = path)),
        }
    }

    let unit = range("--infer_frames")[0];
    prepared(|r| r.infer_frames = unit).unwrap();
    let text = refused(ErrorKind::Usage, |r| r.infer_frames = 2 * unit + 1);
    assert!(
        text.contains(&format!("{} and {}", 2 * unit, 3 * unit)),
        "{text}"
    );

    let [least, most] = range("--sample_steps");
    for steps in [least, most] {
        let notices = prepared(|r| r.steps = steps).unwrap();
        assert!(
            notices.iter().any(|n| n.contains("distilled for 4")),
            "{notices:?}"
        );
    }
    for steps in [least - 1, most + 1] {
        refused(ErrorKind::Usage, |r| r.steps = steps);
    }

    let [least, most] = range("--crf");
    let crf = (most + 1).to_string();
    let message = Program::Run
        .run(["generate", "--crf", &crf])
        .error(ErrorKind::Usage);
    assert!(
        message.contains(&format!("not in {least}..={most}")),
        "{message}"
    );

    let [least, most] = range("--fps");
    let fps = (most + 1).to_string();
    let message = Program::Run.run(["generate", "--fps", &fps]);
    let message = message.error(ErrorKind::Usage);
    let wanted = format!("not in {least}..={most}");
    assert!(message.contains(&wanted), "{message}");

    let [_, most] = range("tokens of the prompt");
    let notices = prepared(|r| r.prompt = "word ".repeat(2 * most)).unwrap();
    let cut = format!("first {most} tokens");
    assert!(notices.iter().any(|n| n.contains(&cut)), "{notices:?}");
}

#[test]
fn pictures_are_those_of_the_readme() {
    let rows = table("picture");
    let read = rows.iter().find(|r| r[1].starts_with("reads it")).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let formats = ["PNG", "JPEG", "WebP", "BMP", "GIF", "TIFF", "PNM"];
    let named: Vec<&str> = read[0].split(", ").filter(|n| !n.contains(' ')).collect();
    assert_eq!(named, formats);
    let picture = DynamicImage::from(RgbImage::new(64, 96));
    for name in named {
        let format = ImageFormat::from_extension(name).unwrap();
        let path = dir.path().join(name);
        picture.save_with_format(&path, format).unwrap();
        prepared(|r| r.image = path).unwrap();
    }
    // The first bytes of kinds that are refused by name.
    let refused_kinds = &rows.iter().find(|r| r[0].starts_with("AVIF")).unwrap()[0];
    let boxed = |brand: &[u8]| [b"\0\0\0\x1cftyp", brand, &[0; 64]].concat();
    for (kind, bytes) in [
        ("AVIF", boxed(b"avif")),
        ("HEIC", boxed(b"heic")),
        ("ICO", [&b"\0\0\x01\0\x01\0"[..], &[16; 64]].concat()),
        ("PSD", [&b"8BPS\0\x01"[..], &[0; 64]].concat()),
        (
            "SVG",
            b"<svg xmlns='http://www.w3.org/2000/svg'></svg>".to_vec(),
        ),
        ("PDF", b"%PDF-1.7\n%%EOF".to_vec()),
    ] {
        assert!(refused_kinds.contains(kind), "{kind}: {refused_kinds}");
        let path = dir.path().join(kind);
        fs::write(&path, bytes).unwrap();
        let text = refused(ErrorKind::Input, |r| r.image = path);
        assert!(text.contains(kind) && text.contains("convert it"), "{text}");
    }
}

#[test]
fn exit_codes_are_those_of_the_readme() {
    let rows = table("code");
    for (kind, first) in [
        (ErrorKind::Usage, "usage"),
        (ErrorKind::Input, "input"),
        (ErrorKind::Model, "model"),
        (ErrorKind::Resources, "resources"),
        (ErrorKind::Interrupted, "interrupted"),
        (ErrorKind::Verification, "verification"),
    ] {
        let meaning = cell(&rows, &kind.code().to_string());
        assert!(meaning.starts_with(first), "{}: {meaning}", kind.code());
    }
}

#[test]
fn commands_and_flags_of_the_readme_are_in_the_help() {
    let text = readme();
    let section = text
        .split("\n## ")
        .find(|s| s.starts_with("Commands\n"))
        .unwrap();
    let mut commands = 0;
    for row in section.lines().filter(|l| l.starts_with("| `avatar-")) {
        let command = row.split('`').nth(1).unwrap();
        let mut words = command.split(' ');
        let program = match words.next().unwrap() {
            "avatar-run" => Program::Run,
            _ => Program::Export,
        };
        let help = program.run([words.next().unwrap(), "--help"]).ok().stdout;
        let flags = row.split(|c: char| !c.is_ascii_alphanumeric() && c != '-' && c != '_');
        for flag in flags.filter(|w| w.starts_with("--")) {
            let either = [
                flag.replace('_', "-"),
                flag.replace('-', "_").replacen("__", "--", 1),
            ];
            assert!(
                either.iter().any(|f| help.contains(f)),
                "{command}: {flag}\n{help}"
            );
        }
        commands += 1;
    }
    assert!(commands > 10, "{commands} commands: is the table read?");
}
