//! Recognises text: playlists, manifests and scripts name other files and hold no sound.

/// Returns what a file is, by its first bytes, where these are text.
///
/// No media file may open another one, so such a file cannot be used.
pub(crate) fn text_kind(first: &[u8]) -> Option<&'static str> {
    let first = first.strip_prefix(b"\xef\xbb\xbf").unwrap_or(first);
    let text = match str::from_utf8(first) {
        Ok(text) => text,
        // The last character may be cut.
        Err(error) if error.error_len().is_none() => {
            str::from_utf8(&first[..error.valid_up_to()]).unwrap_or_default()
        }
        Err(_) => return None,
    };
    let control = |c: char| c.is_control() && !"\t\r\n\x0c".contains(c);
    if text.is_empty() || text.contains(control) {
        return None;
    }
    let text = text.trim_start().to_ascii_lowercase();
    let begins = |marks: &[&str]| marks.iter().any(|mark| text.starts_with(mark));
    let kinds: [(&'static str, bool); 5] = [
        ("a playlist (M3U or HLS)", begins(&["#extm3u"])),
        ("a playlist (PLS)", begins(&["[playlist]", "[reference]"])),
        (
            "a list of files for FFmpeg",
            begins(&["ffconcat", "file ", "file'"]),
        ),
        ("a description of a stream (SDP)", begins(&["v=0"])),
        (
            "a playlist or manifest (XML)",
            begins(&["<?xml", "<mpd", "<smil", "<asx", "<playlist"]),
        ),
    ];
    let kind = kinds.iter().find(|(_, is)| *is);
    Some(kind.map_or("a text file", |(kind, _)| kind))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_told_from_sound() {
        for (first, want) in [
            (&b"#EXTM3U\n#EXTINF:2,\na.aac\n"[..], "M3U"),
            (b"\xef\xbb\xbf#EXTM3U\r\na.mp3", "M3U"),
            (b"[playlist]\nFile1=a.mp3\n", "PLS"),
            (b"ffconcat version 1.0\nfile a.wav\n", "list of files"),
            (b"file 'a.wav'\n", "list of files"),
            (b"<?xml version=\"1.0\"?><MPD>", "XML"),
            (b"v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\n", "SDP"),
            ("C:\\Musik\\l\u{e4}rm.mp3\n".as_bytes(), "a text file"),
            (b"cut here: \xc3", "a text file"),
        ] {
            let kind = text_kind(first).unwrap();
            assert!(kind.contains(want), "{kind}");
        }
        for sound in [
            &b"RIFF\x24\0\0\0WAVEfmt "[..],
            b"ID3\x04\0\0\0",
            b"OggS\0\x02",
            b"fLaC\0\0\0\x22",
            b"\xff\xfb\x90\x64",
            b"",
        ] {
            assert_eq!(text_kind(sound), None, "{sound:?}");
        }
    }
}
