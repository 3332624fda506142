//! Turns a prompt into token ids of umT5.
//!
//! It cleans the text as the reference does. The tokenizer file of the checkpoint then gives the
//! ids.
//!
//! Cleaning is `ftfy.fix_text`, `html.unescape` twice, and single spaces for all white space. Of
//! ftfy 6.3 this file repeats these steps, line by line, until nothing changes (64 times at most):
//!
//! - It replaces HTML entities with a semicolon, unless the line or an earlier one has a `<`.
//! - It reads C1 controls as Windows-1252.
//! - It replaces Latin ligatures, full-width and half-width forms, and curly quotes.
//! - It unifies line breaks, removes terminal escapes and control characters, and composes to NFC.
//!
//! It does not repeat `fix_encoding`: text decoded with the wrong codec (`cafÃ©`) stays as typed.
//! `…` and `½` stay, as with ftfy. A Rust string holds no lone surrogates, so their repair is
//! missing.

use std::borrow::Cow;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use engines::error_kind::ErrorKind;
use tokenizers::Tokenizer;
use unicode_normalization::UnicodeNormalization;

/// Largest number of tokens of a prompt, with `</s>` (reference `text_len`).
pub(crate) const TEXT_TOKENS: usize = 512;
/// Token that ends a text.
const EOS: &str = "</s>";
/// Characters that ftfy treats together where no line break parts them.
const SEGMENT_CHARS: usize = 1_000_000;
/// Most passes over one segment. ftfy has no limit; a pass removes one level of `&amp;amp;amp;…`.
const MAX_PASSES: usize = 64;

/// A reason why a prompt cannot be tokenized.
#[derive(Debug, thiserror::Error)]
pub enum PromptError {
    /// The file of the tokenizer cannot be read.
    #[error("{path}: wants a tokenizer.json of umT5, {reason}")]
    Tokenizer {
        /// Path of the file.
        path: PathBuf,
        /// Fault of the file.
        reason: String,
    },
    /// The tokenizer has no token that ends a text.
    #[error("{path}: wants a token {EOS} in the vocabulary, found none")]
    NoEos {
        /// Path of the file.
        path: PathBuf,
    },
    /// The tokenizer refuses the text.
    #[error("prompt of {characters} characters cannot be tokenized: {reason}")]
    Encode {
        /// Length of the cleaned text.
        characters: usize,
        /// Answer of the tokenizer.
        reason: String,
    },
}

impl PromptError {
    /// Returns `Model` for a bad tokenizer file, and `Input` otherwise.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Tokenizer { .. } | Self::NoEos { .. } => ErrorKind::Model,
            Self::Encode { .. } => ErrorKind::Input,
        }
    }
}

/// The tokenizer of umT5.
pub struct Prompter {
    tokenizer: Tokenizer,
    eos: u32,
}

/// A prompt, prepared for the text encoder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prompt {
    /// The text after cleaning.
    pub cleaned: String,
    /// 1 to 512 token ids, without padding. The last one is `</s>`.
    pub ids: Vec<i64>,
    /// True if the text was longer. Its end is lost.
    pub truncated: bool,
}

impl Prompter {
    /// Reads `google/umt5-xxl/tokenizer.json`.
    ///
    /// # Errors
    /// A file that is missing, is no tokenizer, or has no `</s>`.
    pub fn open(path: &Path) -> Result<Self, PromptError> {
        let bad = |reason: String| PromptError::Tokenizer {
            path: path.to_owned(),
            reason,
        };
        let bytes = std::fs::read(path).map_err(|e| bad(e.to_string()))?;
        let mut tokenizer = Tokenizer::from_bytes(bytes).map_err(|e| bad(e.to_string()))?;
        tokenizer
            .with_truncation(None)
            .map_err(|e| bad(e.to_string()))?;
        tokenizer.with_padding(None);
        let eos = tokenizer
            .token_to_id(EOS)
            .ok_or_else(|| PromptError::NoEos {
                path: path.to_owned(),
            })?;
        Ok(Self { tokenizer, eos })
    }

    /// Cleans and tokenizes a text. An empty text gives `</s>` alone.
    ///
    /// Reference: `HuggingfaceTokenizer(clean='whitespace')`.
    ///
    /// # Errors
    /// The tokenizer refuses the text.
    pub fn encode(&self, text: &str) -> Result<Prompt, PromptError> {
        let cleaned = clean(text);
        let failed = |e: tokenizers::Error| PromptError::Encode {
            characters: cleaned.chars().count(),
            reason: e.to_string(),
        };
        let encoding = self
            .tokenizer
            .encode_fast(cleaned.as_str(), true)
            .map_err(failed)?;
        let mut ids: Vec<i64> = encoding.get_ids().iter().map(|&id| i64::from(id)).collect();
        let truncated = ids.len() > TEXT_TOKENS;
        if truncated {
            ids.truncate(TEXT_TOKENS - 1);
            ids.push(i64::from(self.eos));
        }
        Ok(Prompt {
            cleaned,
            ids,
            truncated,
        })
    }
}

impl Prompt {
    /// Returns the ids padded with 0, `[512]`, and their mask, `[512]`.
    pub fn padded(&self) -> (Vec<i64>, Vec<i64>) {
        let mut ids = self.ids.clone();
        ids.resize(TEXT_TOKENS, 0);
        let mask = (0..TEXT_TOKENS)
            .map(|i| i64::from(i < self.ids.len()))
            .collect();
        (ids, mask)
    }
}

/// Cleans a text as `whitespace_clean(basic_clean(text))` of the reference does.
///
/// The head of this file lists the steps of ftfy.
pub(crate) fn clean(text: &str) -> String {
    let fixed = fix_text(text);
    let once = unescape(&fixed);
    let plain = unescape(&once);
    plain
        .split(is_space)
        .filter(|word| !word.is_empty())
        .collect::<Vec<_>>()
        .join(" ")
}

/// Tells whether Python's `str.strip` and `\s` take a character for white space.
fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}

/// Repeats `ftfy.fix_text` without the repair of mojibake.
///
/// From the first line with a `<`, entities stay as they are.
fn fix_text(text: &str) -> String {
    let mut entities = true;
    let mut out = String::with_capacity(text.len());
    for line in text.split_inclusive('\n') {
        let mut rest = line;
        while !rest.is_empty() {
            let end = rest
                .char_indices()
                .nth(SEGMENT_CHARS)
                .map_or(rest.len(), |(at, _)| at);
            let (segment, tail) = rest.split_at(end);
            entities &= !segment.contains('<');
            out.push_str(&fix_segment(segment, entities));
            rest = tail;
        }
    }
    out
}

/// Repeats the passes over one segment until nothing changes. `entities` allows HTML entities.
fn fix_segment(segment: &str, entities: bool) -> String {
    let mut text = segment.to_owned();
    for _ in 0..MAX_PASSES {
        let named = if entities {
            unescape_marked(&text)
        } else {
            Cow::Borrowed(text.as_str())
        };
        let mut plain = String::with_capacity(named.len());
        named.chars().for_each(|c| push_plain(c, &mut plain));
        let lines = plain
            .replace("\r\n", "\n")
            .replace(['\r', '\u{2028}', '\u{2029}', '\u{85}'], "\n");
        let fixed: String = strip_escapes(&lines)
            .chars()
            .filter(|&c| !is_control(c))
            .nfc()
            .collect();
        if fixed == text {
            break;
        }
        text = fixed;
    }
    text
}

/// Applies the character tables of ftfy: C1 controls, ligatures, widths, quotes, in that order.
fn push_plain(c: char, out: &mut String) {
    match windows_1252(c) {
        'Ĳ' => out.push_str("IJ"),
        'ĳ' => out.push_str("ij"),
        'ŉ' => out.push_str("'n"), // ʼn, whose apostrophe is straightened
        c @ ('\u{1c4}'..='\u{1cc}' | '\u{1f1}'..='\u{1f3}') => push_digraph(c, out),
        c @ '\u{fb00}'..='\u{fb06}' => {
            let letters = ["ff", "fi", "fl", "ffi", "ffl", "ſt", "st"];
            out.push_str(letters[(u32::from(c) - 0xfb00) as usize]);
        }
        '\u{3000}' => out.push(' '),
        c @ '\u{ff01}'..='\u{ffef}' => out.extend(std::iter::once(c).nfkc().map(straight)),
        c => out.push(straight(c)),
    }
}

/// Appends the two letters of a digraph: `DŽ` to `nj`, or `DZ` to `dz`.
fn push_digraph(c: char, out: &mut String) {
    const LETTERS: [&str; 9] = ["DŽ", "Dž", "dž", "LJ", "Lj", "lj", "NJ", "Nj", "nj"];
    const DZ: [&str; 3] = ["DZ", "Dz", "dz"];
    let code = u32::from(c);
    out.push_str(if code < 0x1f1 {
        LETTERS[(code - 0x1c4) as usize]
    } else {
        DZ[(code - 0x1f1) as usize]
    });
}

/// Turns a curly quote into a straight one.
fn straight(c: char) -> char {
    match c {
        '\u{2bc}' | '\u{2018}'..='\u{201b}' => '\'',
        '\u{201c}'..='\u{201f}' => '"',
        c => c,
    }
}

/// Reads a C1 control as Windows-1252. The five codes without a meaning there stay.
fn windows_1252(c: char) -> char {
    const TABLE: [char; 32] = [
        '€', '\u{81}', '‚', 'ƒ', '„', '…', '†', '‡', 'ˆ', '‰', 'Š', '‹', 'Œ', '\u{8d}', 'Ž',
        '\u{8f}', '\u{90}', '‘', '’', '“', '”', '•', '–', '—', '˜', '™', 'š', '›', 'œ', '\u{9d}',
        'ž', 'Ÿ',
    ];
    match c {
        '\u{80}'..='\u{9f}' => TABLE[(u32::from(c) - 0x80) as usize],
        c => c,
    }
}

/// Removes `ESC [ digits and semicolons letter`.
fn strip_escapes(text: &str) -> Cow<'_, str> {
    if !text.contains("\u{1b}[") {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("\u{1b}[") {
        let after = rest[at + 2..].trim_start_matches(|c: char| is_digit(c) || c == ';');
        let escape = after.starts_with(|c: char| c.is_ascii_alphabetic());
        let end = if escape {
            rest.len() - after.len() + 1
        } else {
            at + 2
        };
        out.push_str(&rest[..if escape { at } else { end }]);
        rest = &rest[end..];
    }
    out.push_str(rest);
    Cow::Owned(out)
}

/// Tells whether a character is an ASCII digit.
///
/// Python's `\d` takes digits of other scripts too, but no terminal sends them.
fn is_digit(c: char) -> bool {
    c.is_ascii_digit()
}

/// Tells whether ftfy removes a character.
///
/// It removes ASCII controls except tab, line feed, form feed and carriage return, and a few
/// invisible code points.
fn is_control(c: char) -> bool {
    let ascii = matches!(c, '\0'..='\u{8}' | '\u{b}' | '\u{e}'..='\u{1f}' | '\u{7f}');
    let invisible = matches!(c, '\u{206a}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffc}');
    ascii || invisible
}

/// Named character references of HTML5: from `name` or `name;` to text.
///
/// Source: the list of the W3C, the same as Python's `html.entities.html5`.
static HTML5: LazyLock<HashMap<&'static str, String>> = LazyLock::new(|| {
    let line = |line: &'static str| {
        let (name, codes) = line.split_once(' ')?;
        let text = codes
            .split(' ')
            .filter_map(|c| char::from_u32(u32::from_str_radix(c, 16).ok()?))
            .collect();
        Some((name, text))
    };
    include_str!("html5_entities.txt")
        .lines()
        .filter_map(line)
        .collect()
});

/// Longest name of a reference, without `&` and `;` (Python's `html.unescape`).
const NAME_CHARS: usize = 32;

/// Replaces references as Python's `html.unescape` does.
///
/// It takes references with and without a semicolon. Of an unknown name it takes the longest known
/// beginning.
fn unescape(text: &str) -> Cow<'_, str> {
    each_reference(text, |after| {
        if let Some(number) = after.strip_prefix('#') {
            let (value, taken) = number_of(number)?;
            return Some((character_of(value), 1 + taken));
        }
        let name = after
            .split(|c: char| "\t\n\u{c} <&#;".contains(c))
            .next()
            .unwrap_or_default();
        let end = name
            .char_indices()
            .nth(NAME_CHARS)
            .map_or(name.len(), |(at, _)| at);
        let marked = after[end..].starts_with(';').then(|| &after[..=end]);
        let shorter = after[..end]
            .char_indices()
            .map(|(at, c)| at + c.len_utf8())
            .skip(1)
            .map(|end| &after[..end]);
        marked
            .into_iter()
            .chain(shorter.collect::<Vec<_>>().into_iter().rev())
            .find_map(|n| Some((HTML5.get(n)?.clone(), n.len())))
    })
}

/// Replaces references as ftfy's `unescape_html` does.
///
/// It takes references with a semicolon only. It also takes a known name in capitals.
fn unescape_marked(text: &str) -> Cow<'_, str> {
    // The longest body of ftfy's pattern, in characters.
    const LONGEST: usize = 24;
    each_reference(text, |after| {
        let body = after.strip_prefix('#').unwrap_or(after);
        let length = body
            .bytes()
            .take(LONGEST + 1)
            .take_while(u8::is_ascii_alphanumeric)
            .count();
        if !(1..=LONGEST).contains(&length) || body.as_bytes().get(length) != Some(&b';') {
            return None;
        }
        let (name, end) = (&body[..length], after.len() - body.len() + length + 1);
        let text = if after.starts_with('#') {
            let (value, taken) = number_of(name)?;
            (taken == length && value != u32::from(';')).then(|| character_of(value))
        } else {
            HTML5.get(&after[..end]).cloned().or_else(|| capital(name))
        };
        text.map(|text| (text, end))
    })
}

/// Turns `EACUTE` into `É`, if `eacute;` is a name and no beginning of `EACUTE` is one.
fn capital(name: &str) -> Option<String> {
    let lower = name.to_ascii_lowercase();
    let beginnings = (2..=name.len()).any(|end| HTML5.contains_key(&name[..end]));
    if name != name.to_ascii_uppercase() || beginnings {
        return None;
    }
    HTML5
        .get(format!("{lower};").as_str())
        .map(|text| text.to_uppercase())
}

/// Replaces each reference that `read` recognises after a `&`.
///
/// `read` returns the new text and the number of bytes that it replaces.
fn each_reference(text: &str, read: impl Fn(&str) -> Option<(String, usize)>) -> Cow<'_, str> {
    if !text.contains('&') {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('&') {
        out.push_str(&rest[..at]);
        let after = &rest[at + 1..];
        let (text, taken) = read(after).unwrap_or_else(|| ("&".to_owned(), 0));
        out.push_str(&text);
        rest = &after[taken..];
    }
    out.push_str(rest);
    Cow::Owned(out)
}

/// Returns the value of `123;` or `x7b;`, and the number of bytes read.
///
/// A number that is too large becomes the largest one.
fn number_of(text: &str) -> Option<(u32, usize)> {
    let (digits, radix, prefix) = match text.strip_prefix(['x', 'X']) {
        Some(rest) => (rest, 16, 1),
        None => (text, 10, 0),
    };
    let end = digits
        .find(|c: char| !c.is_digit(radix))
        .unwrap_or(digits.len());
    if end == 0 {
        return None;
    }
    let value = digits[..end].chars().filter_map(|c| c.to_digit(radix));
    let value = value.fold(0u32, |value, digit| {
        value.saturating_mul(radix).saturating_add(digit)
    });
    Some((
        value,
        prefix + end + usize::from(digits[end..].starts_with(';')),
    ))
}

/// Returns the text of a numeric reference in HTML5.
///
/// The C1 range is read as Windows-1252. A non-character gives no text.
fn character_of(value: u32) -> String {
    let replacement = || char::REPLACEMENT_CHARACTER.to_string();
    match value {
        0 => replacement(),
        0x0d => "\r".to_owned(),
        0x80..=0x9f => {
            char::from_u32(value).map_or_else(replacement, |c| windows_1252(c).to_string())
        }
        0x01..=0x08 | 0x0b | 0x0e..=0x1f | 0x7f | 0xfdd0..=0xfdef => String::new(),
        v if v <= 0x10_ffff && v & 0xfffe == 0xfffe => String::new(),
        v => char::from_u32(v).map_or_else(replacement, String::from),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::golden;

    #[test]
    fn text_is_cleaned_as_the_reference_does() {
        for (text, want) in [
            (
                "  A  man &amp; a woman\n\tspeak&lt;slowly&gt;\u{3000}to the ﬁne camera… ½ \
                 “quoted” ＡＢＣ　１２３  ",
                "A man & a woman speak<slowly> to the fine camera… ½ \"quoted\" ABC 123",
            ),
            ("光温暖而柔和，她说！。", "光温暖而柔和,她说!。"),
            ("", ""),
            (" \t\r\n ", ""),
            ("it’s ‘fine’", "it's 'fine'"),
            ("a\u{1b}[31;1mred\u{1b}[0m b\u{1b}[", "ared b["),
            ("nul\0 bell\u{7} bom\u{feff}", "nul bell bom"),
            ("e\u{301} ﬄ ﬆ Ǆ ŉ", "é ffl st DŽ 'n"),
            ("ﾊﾟ ｶﾞ ￥", "パ ガ ¥"),
            ("\u{93}C1\u{94} \u{85}", "\"C1\" …"),
            ("P&EACUTE;REZ &eacute; &checkmark;", "PÉREZ é ✓"),
            (
                "this&not that &notit; &ampamp; &bogus; &",
                "this¬ that ¬it; & &bogus; &",
            ),
            (
                "&#x41;&#66;&#128;&#0;&#xD800;&#xFFFF;&#99999999999;",
                "AB€\u{fffd}\u{fffd}\u{fffd}",
            ),
            ("&amp;amp;lt;", "<"),
            ("<b> &amp;amp;amp; \n&amp;lt;", "<b> &amp; <"),
            ("a\u{2028}b\u{a0}c\u{1f}d", "a b cd"),
            ("cafÃ©", "cafÃ©"),
        ] {
            assert_eq!(clean(text), want, "{text:?}");
        }
    }

    #[test]
    fn a_long_run_of_anything_is_cleaned() {
        for unit in ["word ", "&", "&amp;", "amp;", "\u{1b}[", "<", "é"] {
            let text = format!("&{}", unit.repeat(100_000 / unit.len()));
            assert!(clean(&text).len() <= text.len());
        }
    }

    fn prompter(set: &golden::GoldenSet) -> Prompter {
        Prompter::open(
            &set.root
                .join("ckpt/Wan2.2-S2V-14B/google/umt5-xxl/tokenizer.json"),
        )
        .unwrap()
    }

    #[test]
    fn golden_prompts_give_the_references_ids() {
        for set in golden::sets() {
            let prompter = prompter(&set);
            for (tag, value) in set.values()["prompts"].as_object().unwrap() {
                let prompt = prompter.encode(value["text"].as_str().unwrap()).unwrap();
                assert_eq!(prompt.cleaned, value["cleaned"].as_str().unwrap(), "{tag}");
                let (ids, mask) = prompt.padded();
                assert_eq!(ids, set.i64s("text", &format!("{tag}.ids")), "{tag}");
                assert_eq!(mask, set.i64s("text", &format!("{tag}.mask")), "{tag}");
                assert_eq!(prompt.truncated, tag == "long");
            }
        }
    }

    #[test]
    fn very_long_prompts_are_truncated_not_refused() {
        for set in golden::sets().into_iter().take(1) {
            let prompter = prompter(&set);
            for (unit, length) in [
                ("the camera ", 1_000_000),
                ("x", 100_000),
                ("\0", 100_000),
                ("说", 100_000),
            ] {
                let prompt = prompter.encode(&unit.repeat(length / unit.len())).unwrap();
                assert!(
                    prompt.ids.len() <= TEXT_TOKENS && prompt.ids.last() == Some(&1),
                    "{unit:?}"
                );
            }
        }
    }

    #[test]
    fn a_file_that_is_no_tokenizer_is_the_models_fault() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tokenizer.json");
        assert_eq!(
            Prompter::open(&path).err().map(|e| e.kind()),
            Some(ErrorKind::Model)
        );
        std::fs::write(&path, "{}").unwrap();
        let error = Prompter::open(&path).err().unwrap();
        assert!(
            error.to_string().contains("wants a tokenizer.json of umT5"),
            "{error}"
        );
    }
}
