//! Checks the preparation of inputs: prompts become token ids and text rows, recordings become
//! hidden states and features, and pictures become pixels. The golden set has the input files.

use engines::backend::State;
use engines::components::text;
use engines::contract::DType;
use engines::tensor::{Tensor, View};
use serde_json::Value;

use super::checkup::{Checkup, Problem, lacks};
use crate::chain::encoders;
use crate::inputs::prompt::Prompter;
use crate::inputs::speech::{Speech, clips, features_30, hidden_frames, row_30};
use crate::media::picture::{Fit, Picture, Reading};
use crate::numbers::size::{Size, SizeMode, less_than_area};
use crate::placement::speech_chunk::SpeechChunk;

/// Name of the speech encoder in reports: the common part of its components' names.
const SPEECH_ENCODER: &str = "audio_encoder";
/// Input file with the picture, in every golden set.
pub(super) const PICTURE: &str = "ref.png";

/// Runs the checks of this file.
pub(super) fn check(checkup: &Checkup<'_>) {
    prompts(checkup);
    recordings(checkup);
    tables(checkup);
    pictures(checkup);
}

fn prompts(checkup: &Checkup<'_>) {
    let known = checkup.golden.value("/prompts").and_then(Value::as_object);
    for (tag, facts) in known.into_iter().flatten() {
        let covers = |name: &str| {
            name.split_once('.')
                .is_some_and(|(t, what)| t == tag && ["ids", "mask", "t5"].contains(&what))
        };
        checkup.part("tokenizer", "text", covers, |names| {
            prompt(checkup, tag, facts, names)
        });
    }
    checkup.part(
        text::ENCODER.name,
        "text",
        |name| name == BUCKETS,
        |_| buckets(checkup),
    );
}

/// Tap of the text encoder's graph. The tensor of the golden set has the same name.
const BUCKETS: &str = "relative_buckets";

/// Checks the buckets of relative positions. The graph's table holds the bucket of each distance
/// (key minus query), from one end of a text to the other.
fn buckets(checkup: &Checkup<'_>) -> Result<(), Problem> {
    let distances = checkup
        .golden
        .tensor("text", BUCKETS)?
        .map_or(1, |t| t.shape().iter().product());
    let tokens = distances / 2 + 1;
    let mut options = (checkup.loading())(text::ENCODER.name);
    options.taps.push(BUCKETS.to_owned());
    let mut session = checkup.backend().load(text::ENCODER.name, &options)?;
    let table = session
        .run(
            &[(
                &text::IDS,
                View::from_slice(&[1, tokens], &vec![1i64; tokens]),
            )],
            State::None,
        )?
        .take_named(BUCKETS);
    let table = table.as_slice::<i64>(); // [query, key]
    let last_query = &table[(tokens - 1) * tokens..];
    let first_query = &table[1..tokens];
    let found = [last_query, first_query].concat();
    checkup.table.check(
        text::ENCODER.name,
        "text",
        BUCKETS,
        &Tensor::from_slice(&[found.len()], &found),
    );
    Ok(())
}

fn prompt(
    checkup: &Checkup<'_>,
    tag: &str,
    facts: &Value,
    names: &[String],
) -> Result<(), Problem> {
    let typed = facts
        .get("text")
        .and_then(Value::as_str)
        .ok_or_else(|| lacks(format!("values.prompts.{tag}.text")))?;
    let prompt = Prompter::open(&checkup.models().tokenizer())?.encode(typed)?;
    let (ids, mask) = prompt.padded();
    for (what, values) in [("ids", ids), ("mask", mask)] {
        checkup.table.check(
            "tokenizer",
            "text",
            &format!("{tag}.{what}"),
            &Tensor::from_slice(&[1, values.len()], &values),
        );
    }
    let rows = format!("{tag}.t5");
    if names.contains(&rows) {
        let context = encoders::encode_text(&**checkup.backend(), checkup.loading(), &prompt.ids)?;
        checkup
            .table
            .check(text::ENCODER.name, "text", &rows, &context);
    }
    Ok(())
}

fn recordings(checkup: &Checkup<'_>) {
    let known = checkup.golden.value("/audio").and_then(Value::as_object);
    for (tag, facts) in known.into_iter().flatten() {
        let covers = |name: &str| name.split_once('.').is_some_and(|(t, _)| t == tag);
        checkup.part("audio decoder", "audio", covers, |names| {
            recording(checkup, tag, facts, names)
        });
    }
}

fn recording(
    checkup: &Checkup<'_>,
    tag: &str,
    facts: &Value,
    names: &[String],
) -> Result<(), Problem> {
    let file = facts
        .get("file")
        .and_then(Value::as_str)
        .ok_or_else(|| lacks(format!("values.audio.{tag}.file")))?;
    let speech = Speech::open(&checkup.golden.input(file))?;
    let name = |what: &str| format!("{tag}.{what}");
    let n = speech.samples.len();
    checkup.table.check(
        "audio decoder",
        "audio",
        &name("pcm16k"),
        &Tensor::from_slice(&[n], &speech.samples),
    );
    let values = speech.input_values();
    checkup.table.check(
        "audio decoder",
        "audio",
        &name("input_values"),
        &Tensor::from_slice(&[1, n], &values),
    );
    if names.iter().all(|n| {
        ["pcm16k", "input_values"]
            .iter()
            .any(|what| *n == name(what))
    }) {
        return Ok(());
    }
    let hidden = encoders::encode_speech(
        &**checkup.backend(),
        checkup.loading(),
        &checkup.models().config().speech,
        &values,
        SpeechChunk::default(),
    )?;
    let states = hidden.shape()[0];
    checkup
        .table
        .check(SPEECH_ENCODER, "audio", &name("hidden_states"), &hidden);
    checkup.table.check(
        SPEECH_ENCODER,
        "audio",
        &name("hidden_last"),
        &hidden.lanes(states - 1..states).to_tensor(),
    );
    let features = encoders::audio_features(&hidden)?;
    checkup.table.check(
        "audio features",
        "audio",
        &name("feat30_every8"),
        &every_8(&features, states, hidden.shape()[2]),
    );
    if let Some(frames) = facts.get("bucket_frames").and_then(Value::as_u64) {
        let frames = usize::try_from(frames).unwrap_or_default();
        let bucket = Tensor::from_slice(
            &[1, states, features.dim(), frames],
            &features.block(0..frames),
        );
        checkup
            .table
            .check("audio features", "audio", &name("bucket"), &bucket);
    }
    Ok(())
}

/// Picks every eighth of the 25 hidden states at 30 fps: `[4, rows, dim]`.
fn every_8(features: &crate::inputs::speech::AudioFeatures, states: usize, dim: usize) -> Tensor {
    let rows: Vec<Vec<f32>> = (0..features.rows()).map(|r| features.row(r)).collect();
    let kept: Vec<usize> = (0..states).step_by(8).collect();
    let data: Vec<f32> = kept
        .iter()
        .flat_map(|s| {
            rows.iter()
                .flat_map(move |row| &row[s * dim..(s + 1) * dim])
        })
        .copied()
        .collect();
    Tensor::from_slice(&[kept.len(), rows.len(), dim], &data)
}

/// Clip lengths of the reference's length table in frames, in the order of its columns.
const TABLE_CLIPS: [usize; 3] = [12, 48, 80];

fn tables(checkup: &Checkup<'_>) {
    checkup.part(
        "audio features",
        "audio",
        |n| n == "length_table",
        |_| {
            let want = integers(checkup, "audio", "length_table", 3 + TABLE_CLIPS.len())?;
            let rows = want.iter().flat_map(|row| {
                let samples = usize::try_from(row[0]).unwrap_or_default();
                let hidden = hidden_frames(samples);
                let rows = features_30(hidden);
                let counts = TABLE_CLIPS.map(|frames| clips(rows, frames));
                [samples, hidden, rows]
                    .into_iter()
                    .chain(counts)
                    .map(|n| n as i64)
                    .collect::<Vec<_>>()
            });
            let rows: Vec<i64> = rows.collect();
            checkup.table.check(
                "audio features",
                "audio",
                "length_table",
                &Tensor::from_slice(&[want.len(), 3 + TABLE_CLIPS.len()], &rows),
            );
            Ok(())
        },
    );
    checkup.part(
        "audio features",
        "audio",
        |n| n.starts_with("bucket_index_"),
        |names| {
            for name in names {
                let count = super::checkup::number_in(name, "bucket_index_", "")
                    .ok_or_else(|| lacks("a frame count in the tensor's name"))?;
                let rows: Vec<i64> = (0..count).map(|frame| row_30(frame) as i64).collect();
                checkup.table.check(
                    "audio features",
                    "audio",
                    name,
                    &Tensor::from_slice(&[count], &rows),
                );
            }
            Ok(())
        },
    );
}

/// Reads the rows of a table. Its first columns are the inputs of the other columns.
fn integers(
    checkup: &Checkup<'_>,
    file: &str,
    name: &str,
    columns: usize,
) -> Result<Vec<Vec<i64>>, Problem> {
    let table = checkup
        .golden
        .tensor(file, name)?
        .ok_or_else(|| lacks(format!("{file}.{name}")))?;
    match (table.dtype(), table.shape()) {
        (DType::I64, &[_, c]) if c == columns => Ok(table
            .as_slice::<i64>()
            .chunks_exact(c)
            .map(<[i64]>::to_vec)
            .collect()),
        _ => Err(Problem::Lacks(format!(
            "{file}.{name}: wanted i64 [rows, {columns}], found {table:?}"
        ))),
    }
}

fn pictures(checkup: &Checkup<'_>) {
    checkup.part(
        "size rule",
        "image",
        |n| n == "size_table",
        |_| {
            let want = integers(checkup, "image", "size_table", 5)?;
            let rows = want.iter().flat_map(|row| {
                let [h, w, area] = [0, 1, 2].map(|i| usize::try_from(row[i]).unwrap_or_default());
                let size = less_than_area(
                    Size {
                        width: w,
                        height: h,
                    },
                    area,
                )
                .unwrap_or(Size {
                    width: 0,
                    height: 0,
                });
                [h, w, area, size.height, size.width].map(|n| n as i64)
            });
            let rows: Vec<i64> = rows.collect();
            checkup.table.check(
                "size rule",
                "image",
                "size_table",
                &Tensor::from_slice(&[want.len(), 5], &rows),
            );
            Ok(())
        },
    );
    let known = checkup.golden.value("/image").and_then(Value::as_object);
    for (tag, facts) in known.into_iter().flatten() {
        let covers = |name: &str| name.split_once('.').is_some_and(|(t, _)| t == tag);
        checkup.part("picture", "image", covers, |_| picture(checkup, tag, facts));
    }
}

fn picture(checkup: &Checkup<'_>, tag: &str, facts: &Value) -> Result<(), Problem> {
    let number = |pointer: &str| {
        facts
            .pointer(pointer)
            .and_then(Value::as_u64)
            .and_then(|n| usize::try_from(n).ok())
    };
    let (picture, _) = Picture::open(&checkup.golden.input(PICTURE), Reading::REFERENCE)?;
    if let (Some(height), Some(width)) = (number("/resized/0"), number("/resized/1")) {
        let resized = picture.resized(Size { width, height });
        checkup.table.check(
            "picture",
            "image",
            &format!("{tag}.resized_u8"),
            &bytes(&resized),
        );
    }
    let area = number("/area").ok_or_else(|| lacks(format!("values.image.{tag}.area")))?;
    let size = area_of(area).effective(SizeMode::Area, picture.size())?;
    let cropped = picture.fitted(size, SizeMode::Area, Fit::default());
    checkup.table.check(
        "picture",
        "image",
        &format!("{tag}.cropped_u8"),
        &bytes(&cropped),
    );
    let pixels = Tensor::from_slice(&[3, cropped.height, cropped.width], &cropped.pixels());
    checkup
        .table
        .check("picture", "image", &format!("{tag}.pixels"), &pixels);
    Ok(())
}

/// Makes a size with an area of so many pixels. Its sides have no meaning.
pub(super) fn area_of(pixels: usize) -> Size {
    Size {
        width: pixels,
        height: 1,
    }
}

fn bytes(picture: &Picture) -> Tensor {
    Tensor::from_slice(&[picture.height, picture.width, 3], &picture.rgb)
}
