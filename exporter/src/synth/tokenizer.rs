//! A small tokenizer in the published folder layout: a unigram model with byte fallback, so it can
//! encode every text. Its pieces come from a few sentences of our own. They are not umT5's pieces,
//! and only the ids `<pad>` 0 and `</s>` 1 are umT5's. The normalizer is the published one: it
//! replaces runs of two or more spaces by one space.
//!
//! It differs from the published files in three points. The published model has no byte fallback,
//! so it encodes unknown letters as `<unk>`. It has a piece `<s>` before `<unk>`. `spiece.model`
//! here normalises nothing, and no program of this project reads it.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;

use protobuf::CodedOutputStream;
use serde_json::{Value, json};

const SPECIAL: [&str; 3] = ["<pad>", "</s>", "<unk>"];
const SPACE: char = '\u{2581}';
const MAX_PIECE: usize = 10;
const MAX_PIECES: usize = 700;
const CORPUS: &str = "\
A young woman with long hair looks into the camera and speaks in a calm, friendly voice. She is \
sitting in a bright room. An old man with a grey beard tells a story to the children; they \
listen and laugh. He is standing near the window. The singer is on the stage, the light is \
warm, and the people in front of the stage are clapping their hands. A person is talking to the \
viewer with natural lip movement, small head motion and a realistic expression on the face. The \
background shows a city at night, with blue and red lights, some cars, and the rain on the \
street. The camera moves slowly to the left, then it stays still while the speaker explains the \
idea once more. High quality, detailed, cinematic style, soft light, shallow depth of field, \
sharp focus, realistic skin, 25 frames per second. Low quality, blurry, static, overexposed, \
worst quality, deformed hands, bad face, extra fingers, messy background, subtitles. What would \
you like to know? Please wait a moment: I will be there in 10 minutes, or in 15 at the most! \
There was a dog that could not sing, so it danced with the cat instead, and the other animals \
were happy about it. \
一个女人坐在房间里，对着镜头微笑着说话。一个男人站在窗前\
，他的手在动。画面清晰，光线柔和，背景是城市的夜景。";

/// `TrainerSpec.ModelType.UNIGRAM`.
const UNIGRAM: i32 = 1;

/// `ModelProto.SentencePiece.Type`.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Normal = 1,
    Unknown = 2,
    Control = 3,
    Byte = 6,
}

struct Piece {
    text: String,
    score: f32,
    kind: Kind,
}

/// A tokenizer to be written.
pub(super) struct Tokenizer {
    pieces: Vec<Piece>,
    extra_ids: usize,
}

impl Tokenizer {
    /// Returns a tokenizer whose last ids are `extra_ids` sentinels `<extra_id_N>`, as in T5.
    pub(super) fn new(extra_ids: usize) -> Self {
        let special = SPECIAL.map(|s| Piece {
            text: s.to_owned(),
            score: 0.0,
            kind: if s == "<unk>" {
                Kind::Unknown
            } else {
                Kind::Control
            },
        });
        let bytes = (0..=255).map(|b| Piece {
            text: format!("<0x{b:02X}>"),
            score: 0.0,
            kind: Kind::Byte,
        });
        let learnt = learn(CORPUS).into_iter().map(|(text, score)| Piece {
            text,
            score,
            kind: Kind::Normal,
        });
        Self {
            pieces: special.into_iter().chain(bytes).chain(learnt).collect(),
            extra_ids,
        }
    }

    /// Returns the number of ids; the embedding needs at least as many rows.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.pieces.len() + self.extra_ids
    }

    /// Writes the folder's four files.
    pub(super) fn write(&self, dir: &Path) -> io::Result<()> {
        fs::create_dir_all(dir)?;
        for (name, value) in [
            ("tokenizer.json", self.tokenizer()),
            ("tokenizer_config.json", self.config()),
            ("special_tokens_map.json", self.map()),
        ] {
            fs::write(dir.join(name), serde_json::to_vec_pretty(&value)?)?;
        }
        fs::write(dir.join("spiece.model"), self.sentencepiece()?)
    }

    /// Returns `<extra_id_N>` .. `<extra_id_0>`. The highest number has the lowest id.
    fn extra(&self) -> impl DoubleEndedIterator<Item = String> {
        (0..self.extra_ids).rev().map(|i| format!("<extra_id_{i}>"))
    }

    fn added(&self) -> Vec<(usize, String)> {
        let special = SPECIAL.iter().map(|s| s.to_string()).enumerate();
        special
            .chain(
                self.extra()
                    .enumerate()
                    .map(|(i, e)| (self.pieces.len() + i, e)),
            )
            .collect()
    }

    fn tokenizer(&self) -> Value {
        let added = |(id, content)| {
            json!({
                "id": id, "content": content, "single_word": false, "lstrip": false,
                "rstrip": false, "normalized": false, "special": true,
            })
        };
        let added: Vec<Value> = self.added().into_iter().map(added).collect();
        let vocab: Vec<Value> = self
            .pieces
            .iter()
            .map(|p| json!([p.text, p.score]))
            .chain(self.extra().map(|e| json!([e, 0.0])))
            .collect();
        let metaspace = json!({
            "type": "Metaspace", "replacement": SPACE, "prepend_scheme": "always", "split": true,
        });
        let sequence = |id| json!({"Sequence": {"id": id, "type_id": 0}});
        let end = json!({"SpecialToken": {"id": "</s>", "type_id": 0}});
        json!({
            "version": "1.0",
            "truncation": null,
            "padding": null,
            "added_tokens": added,
            "normalizer": {"type": "Sequence", "normalizers": [
                {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "},
            ]},
            "pre_tokenizer": metaspace,
            "post_processor": {
                "type": "TemplateProcessing",
                "single": [sequence("A"), end],
                "pair": [sequence("A"), end, sequence("B"), end],
                "special_tokens": {"</s>": {"id": "</s>", "ids": [1], "tokens": ["</s>"]}},
            },
            "decoder": metaspace,
            "model": {"type": "Unigram", "unk_id": 2, "vocab": vocab, "byte_fallback": true},
        })
    }

    fn config(&self) -> Value {
        let decoder = |(id, content): (usize, String)| {
            (
                id.to_string(),
                json!({
                    "content": content, "special": true, "lstrip": false, "normalized": false,
                    "rstrip": false, "single_word": false,
                }),
            )
        };
        let decoders: serde_json::Map<_, _> = self.added().into_iter().map(decoder).collect();
        json!({
            "added_tokens_decoder": decoders,
            "additional_special_tokens": self.extra().rev().collect::<Vec<_>>(),
            "clean_up_tokenization_spaces": true,
            "eos_token": "</s>",
            "extra_ids": self.extra_ids,
            "model_max_length": 1e30,
            "pad_token": "<pad>",
            "sp_model_kwargs": {},
            "tokenizer_class": "T5Tokenizer",
            "unk_token": "<unk>",
        })
    }

    fn map(&self) -> Value {
        let token = |content| {
            json!({
                "content": content, "lstrip": false, "normalized": false, "rstrip": false,
                "single_word": false,
            })
        };
        json!({
            "additional_special_tokens": self.extra().rev().collect::<Vec<_>>(),
            "eos_token": token("</s>"),
            "pad_token": token("<pad>"),
            "unk_token": token("<unk>"),
        })
    }

    /// Returns the bytes of `spiece.model`: a unigram model that normalises nothing.
    ///
    /// The numbers are the fields of `ModelProto`, `ModelProto.SentencePiece`, `TrainerSpec` and
    /// `NormalizerSpec` in sentencepiece_model.proto. Fields that keep their default are left out.
    fn sentencepiece(&self) -> protobuf::Result<Vec<u8>> {
        message(|model| {
            for piece in &self.pieces {
                let piece = message(|out| {
                    out.write_string(1, &piece.text)?;
                    out.write_float(2, piece.score)?;
                    out.write_enum(3, piece.kind as i32)
                })?;
                model.write_bytes(1, &piece)?;
            }
            let trainer = message(|out| {
                out.write_string(2, "spiece")?; // model_prefix
                out.write_enum(3, UNIGRAM)?; // model_type
                out.write_int32(4, self.pieces.len() as i32)?; // vocab_size
                out.write_bool(35, true)?; // byte_fallback
                out.write_int32(40, 2)?; // unk_id
                out.write_int32(41, -1)?; // bos_id: there is none
                out.write_int32(42, 1)?; // eos_id
                out.write_int32(43, 0)?; // pad_id
                out.write_string(45, "<unk>")?; // unk_piece
                out.write_string(47, "</s>")?; // eos_piece
                out.write_string(48, "<pad>") // pad_piece
            })?;
            model.write_bytes(2, &trainer)?;
            let normalizer = message(|out| {
                out.write_string(1, "identity")?; // name
                out.write_bytes(2, &[])?; // precompiled_charsmap: none
                out.write_bool(3, true)?; // add_dummy_prefix
                out.write_bool(4, true)?; // remove_extra_whitespaces
                out.write_bool(5, true) // escape_whitespaces
            })?;
            model.write_bytes(3, &normalizer)
        })
    }
}

/// Returns the bytes of one protobuf message, whose fields `write` writes.
fn message(
    write: impl FnOnce(&mut CodedOutputStream<'_>) -> protobuf::Result<()>,
) -> protobuf::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut out = CodedOutputStream::vec(&mut bytes);
    write(&mut out)?;
    out.flush()?;
    drop(out);
    Ok(bytes)
}

/// Returns pieces with their log-probabilities, best first: repeated parts of words, and every
/// letter.
fn learn(corpus: &str) -> Vec<(String, f32)> {
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for word in corpus.split_whitespace() {
        let word: Vec<char> = std::iter::once(SPACE).chain(word.chars()).collect();
        for start in 0..word.len() {
            for end in start + 1..=word.len().min(start + MAX_PIECE) {
                *counts.entry(word[start..end].iter().collect()).or_default() += 1;
            }
        }
    }
    (' '..='~')
        .skip(1)
        .for_each(|c| *counts.entry(c.to_string()).or_default() += 1);
    let length = |s: &str| s.chars().count();
    let (letters, mut parts): (Vec<_>, Vec<_>) =
        counts.into_iter().partition(|(s, _)| length(s) == 1);
    parts.retain(|(_, n)| *n > 2);
    parts.sort_by_key(|(s, n)| std::cmp::Reverse(n * length(s)));
    parts.truncate(MAX_PIECES);
    let total: usize = letters.iter().map(|(_, n)| n).sum();
    let mut scored: Vec<(String, f32)> = parts
        .into_iter()
        .chain(letters)
        .map(|(s, n)| (s, (n as f32 / total as f32).ln()))
        .collect();
    scored.sort_by(|a, b| b.1.total_cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
    scored
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn ids_are_those_of_t5_and_pieces_are_distinct() {
        let t = Tokenizer::new(10);
        assert_eq!(
            t.pieces[..3]
                .iter()
                .map(|p| p.text.as_str())
                .collect::<Vec<_>>(),
            SPECIAL
        );
        assert_eq!(
            t.pieces
                .iter()
                .map(|p| &p.text)
                .collect::<HashSet<_>>()
                .len(),
            t.pieces.len()
        );
        assert_eq!(
            t.len(),
            t.tokenizer()["model"]["vocab"].as_array().unwrap().len()
        );
        assert_eq!(
            t.added().last().unwrap(),
            &(t.len() - 1, "<extra_id_0>".to_owned())
        );
        assert!(
            t.pieces
                .iter()
                .filter(|p| p.kind == Kind::Normal)
                .all(|p| p.score < 0.0)
        );
    }

    #[test]
    fn every_printable_ascii_letter_is_a_piece() {
        let pieces: HashSet<String> = learn(CORPUS).into_iter().map(|(s, _)| s).collect();
        assert!(('!'..='~').all(|c| pieces.contains(&c.to_string())));
        assert!(pieces.contains("\u{2581}") && pieces.contains("\u{2581}the"));
    }
}
