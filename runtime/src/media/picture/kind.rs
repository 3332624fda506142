//! Tells the kind of a file by its first bytes. For a kind that is not read, names the command that
//! makes a picture of it.

use std::path::Path;

use image::ImageFormat;

use super::error::PictureError;
use super::tiff;

/// Formats that are read.
const READ: [ImageFormat; 7] = [
    ImageFormat::Png,
    ImageFormat::Jpeg,
    ImageFormat::WebP,
    ImageFormat::Bmp,
    ImageFormat::Gif,
    ImageFormat::Tiff,
    ImageFormat::Pnm,
];

/// A way to make a picture of a file.
#[derive(Clone, Copy)]
enum Way {
    /// `PROGRAM FILE FILE.png`
    Plain(&'static str),
    /// ImageMagick, which also knows odd forms of common formats.
    Magick,
    /// Camera software; `dcraw_emu` belongs to LibRaw.
    Camera,
    /// `rsvg-convert`, at a width that shows a face.
    Drawing,
    /// `pdftoppm`, first page.
    Page,
    /// FFmpeg, first frame.
    Film,
    /// No program helps.
    Again,
}

/// Returns the format of a file that is read.
///
/// # Errors
/// [`PictureError::Kind`] for a kind that is known and not read, [`PictureError::Format`] for all
/// others.
pub(super) fn format(path: &Path, bytes: &[u8]) -> Result<ImageFormat, PictureError> {
    if let Some((kind, way)) = unread(bytes) {
        return Err(PictureError::Kind {
            path: path.to_owned(),
            kind,
            to_do: to_do(path, way),
        });
    }
    image::guess_format(bytes)
        .ok()
        .filter(|format| READ.contains(format))
        .ok_or_else(|| PictureError::Format {
            path: path.to_owned(),
        })
}

/// Returns the sentence that tells how ImageMagick makes a PNG file of a picture.
pub(super) fn converted(path: &Path) -> String {
    to_do(path, Way::Magick)
}

fn to_do(path: &Path, way: Way) -> String {
    let from = quoted(path);
    let target = if path
        .extension()
        .is_some_and(|e| e.eq_ignore_ascii_case("png"))
    {
        path.with_extension("converted.png")
    } else {
        path.with_extension("png")
    };
    let to = quoted(&target);
    let command = match way {
        Way::Plain(program) => format!("{program} {from} {to}"),
        Way::Magick => format!("magick {from} {to}"),
        Way::Camera => format!("dcraw_emu -w -T {from}"),
        Way::Drawing => format!("rsvg-convert -w 1024 {from} -o {to}"),
        Way::Page => format!(
            "pdftoppm -png -singlefile {from} {}",
            quoted(&path.with_extension(""))
        ),
        Way::Film => format!("ffmpeg -i {from} -frames:v 1 {to}"),
        Way::Again => return "download the picture itself again".to_owned(),
    };
    format!("convert it: `{command}`")
}

/// Returns a path as a shell takes it.
fn quoted(path: &Path) -> String {
    let text = path.to_string_lossy();
    // A leading dash would be an option.
    let text = if text.starts_with('-') {
        format!("./{text}")
    } else {
        text.into_owned()
    };
    let safe = |c: char| c.is_alphanumeric() || "/._-+,:@%".contains(c);
    if text.chars().all(safe) {
        text
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
}

/// Returns the name of a kind that is not read, and the way to a picture.
fn unread(bytes: &[u8]) -> Option<(&'static str, Way)> {
    let at = |offset: usize, magic: &[u8]| {
        bytes
            .get(offset..)
            .is_some_and(|rest| rest.starts_with(magic))
    };
    if at(4, b"ftyp") {
        return Some(brand(bytes.get(8..12)?));
    }
    let raw = ("a camera's raw file", Way::Camera);
    let magics: [(&[u8], (&'static str, Way)); 17] = [
        (b"\xff\x0a", ("a JPEG XL picture", Way::Plain("djxl"))),
        (b"\0\0\0\x0cJXL ", ("a JPEG XL picture", Way::Plain("djxl"))),
        (b"\0\0\0\x0cjP  ", ("a JPEG 2000 picture", Way::Magick)),
        (b"\xff\x4f\xff\x51", ("a JPEG 2000 picture", Way::Magick)),
        (b"\0\0\x01\0", ("an icon (ICO)", Way::Magick)),
        (b"\0\0\x02\0", ("a TGA picture", Way::Magick)),
        (b"%PDF", ("a PDF document", Way::Page)),
        (b"%!PS", ("a PostScript drawing", Way::Magick)),
        (b"8BPS", ("a Photoshop file", Way::Magick)),
        (b"v/1\x01", ("an OpenEXR picture", Way::Magick)),
        (b"#?RADIANCE", ("a Radiance HDR picture", Way::Magick)),
        (b"qoif", ("a QOI picture", Way::Magick)),
        (b"DDS ", ("a DDS texture", Way::Magick)),
        (b"\x1a\x45\xdf\xa3", ("a video", Way::Film)),
        (b"FUJIFILMCCD-RAW", raw),
        (b"IIRO", raw),
        (b"IIU\0", raw),
    ];
    if let Some((_, found)) = magics.iter().find(|(magic, _)| at(0, magic)) {
        return Some(*found);
    }
    if at(0, b"II*\0") && at(8, b"CR") || tiff::is_raw(bytes) {
        return Some(raw);
    }
    if tiff::is_float(bytes) {
        return Some(("a TIFF picture in floating point", Way::Magick));
    }
    marked_up(bytes)
}

/// Returns the kind of an ISO media file by its brand.
fn brand(brand: &[u8]) -> (&'static str, Way) {
    match brand {
        b"avif" | b"avis" => ("an AVIF picture", Way::Plain("ffmpeg -i")),
        b"heic" | b"heix" | b"heim" | b"heis" | b"hevc" | b"hevx" | b"mif1" | b"msf1" => {
            ("an HEIC picture", Way::Magick)
        }
        b"crx " => ("a camera's raw file", Way::Camera),
        _ => ("a video", Way::Film),
    }
}

/// Returns the kind of a text in tags.
fn marked_up(bytes: &[u8]) -> Option<(&'static str, Way)> {
    /// Bytes in which the first tag stands, after comments and declarations.
    const HEAD: usize = 2048;
    let text = String::from_utf8_lossy(&bytes[..bytes.len().min(HEAD)]);
    let text = text.trim_start_matches('\u{feff}').trim_start();
    if !text.starts_with('<') {
        return None;
    }
    let text = text.to_ascii_lowercase();
    if text.contains("<html") || text.starts_with("<!doctype html") {
        return Some(("a web page", Way::Again));
    }
    text.contains("<svg")
        .then_some(("an SVG drawing", Way::Drawing))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kind_that_is_not_read_is_named_with_the_way_to_a_picture() {
        let tiff = |tags: &[(u16, u16, u32)]| {
            let mut file = b"II*\0\x08\0\0\0".to_vec();
            file.extend((tags.len() as u16).to_le_bytes());
            for (tag, kind, value) in tags {
                file.extend([tag.to_le_bytes(), kind.to_le_bytes()].concat());
                file.extend([1u32.to_le_bytes(), value.to_le_bytes()].concat());
            }
            file.extend([0; 4]);
            file
        };
        let brand = |name: &str| format!("\0\0\0\x1cftyp{name}\0\0\0\0").into_bytes();
        for (bytes, want) in [
            (
                brand("avif"),
                "an AVIF picture; convert it: `ffmpeg -i in.x in.png`",
            ),
            (
                brand("heic"),
                "an HEIC picture; convert it: `magick in.x in.png`",
            ),
            (brand("mif1"), "an HEIC picture"),
            (
                brand("isom"),
                "a video; convert it: `ffmpeg -i in.x -frames:v 1 in.png`",
            ),
            (brand("crx "), "a camera's raw file"),
            (
                b"\xff\x0a..".to_vec(),
                "a JPEG XL picture; convert it: `djxl in.x in.png`",
            ),
            (b"\0\0\0\x0cjP  \r\n".to_vec(), "a JPEG 2000 picture"),
            (b"\0\0\x01\0\x01\0".to_vec(), "an icon (ICO)"),
            (
                b"%PDF-1.7".to_vec(),
                "a PDF document; convert it: `pdftoppm -png -singlefile in.x in`",
            ),
            (b"8BPS\0\x01".to_vec(), "a Photoshop file"),
            (
                b"\xef\xbb\xbf<?xml?> <!-- a --><svg xmlns='x'>".to_vec(),
                "an SVG drawing",
            ),
            (
                b" <!DOCTYPE html><html>403".to_vec(),
                "a web page; download the picture itself",
            ),
            (b"II*\0\x10\0\0\0CR\x02\0".to_vec(), "a camera's raw file"),
            (
                tiff(&[(50706, 4, 1)]),
                "a camera's raw file; convert it: `dcraw_emu -w -T in.x`",
            ),
            (tiff(&[(254, 4, 1), (330, 4, 99)]), "a camera's raw file"),
            (tiff(&[(339, 3, 3)]), "a TIFF picture in floating point"),
        ] {
            let error = format(Path::new("in.x"), &bytes)
                .expect_err(want)
                .to_string();
            assert!(error.contains(want), "{error}, want {want}");
        }
        let plain = tiff(&[(254, 4, 0), (339, 3, 1)]);
        assert_eq!(format(Path::new("a"), &plain).unwrap(), ImageFormat::Tiff);
    }

    #[test]
    fn commands_quote_the_name_and_never_write_over_the_file() {
        for (name, want) in [
            ("a b'.heic", r"magick 'a b'\''.heic' 'a b'\''.png'"),
            ("-dash.heic", "magick ./-dash.heic ./-dash.png"),
            ("a.png", "magick a.png a.converted.png"),
        ] {
            assert_eq!(converted(Path::new(name)), format!("convert it: `{want}`"));
        }
    }
}
