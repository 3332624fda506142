use std::collections::HashMap;
use std::fs;

use ::safetensors::Dtype;
use ::safetensors::tensor::TensorView;
use half::bf16;
use tempfile::{TempDir, tempdir};

use super::*;
use crate::checkpoint::Checkpoint;

type Tensor = (String, Dtype, Vec<usize>, Vec<u8>);
type Tensors = Vec<Tensor>;

/// Modules of the base, with their shapes.
const BASE: [(&str, [usize; 2]); 4] = [
    ("blocks.0.self_attn.q", [3, 2]),
    ("blocks.0.cross_attn.o", [3, 2]),
    ("blocks.1.ffn.0", [5, 2]),
    ("blocks.11.ffn.2", [2, 5]),
];

fn bf16s(key: impl Into<String>, shape: &[usize], f: impl Fn(usize) -> f32) -> Tensor {
    let n = shape.iter().product();
    let bytes = (0..n).flat_map(|i| bf16::from_f32(f(i)).to_le_bytes());
    (key.into(), Dtype::BF16, shape.to_vec(), bytes.collect())
}

/// A tensor of one f32.
fn one(key: impl Into<String>, number: f32) -> Tensor {
    let bytes = number.to_le_bytes().to_vec();
    (key.into(), Dtype::F32, vec![], bytes)
}

fn wave(i: usize) -> f32 {
    (i as f32 * 0.37).sin()
}

fn write(path: &Path, tensors: &Tensors, metadata: &[(&str, &str)]) {
    let views = tensors
        .iter()
        .map(|(n, d, s, b)| (n, TensorView::new(*d, s.clone(), b).unwrap()));
    let pairs = metadata.iter().map(|&(k, v)| (k.to_owned(), v.to_owned()));
    let metadata: HashMap<String, String> = pairs.collect();
    let metadata = (!metadata.is_empty()).then_some(metadata);
    fs::write(path, ::safetensors::serialize(views, metadata).unwrap()).unwrap();
}

/// A folder with a base checkpoint and LoRAs.
struct Case(TempDir);

impl Case {
    fn new() -> Self {
        let case = Self(tempdir().unwrap());
        let mut base: Tensors = BASE
            .iter()
            .map(|(module, shape)| bf16s(format!("{module}.weight"), shape, wave))
            .collect();
        base.push(bf16s("blocks.0.self_attn.q.bias", &[3], wave));
        write(&case.path("base.safetensors"), &base, &[]);
        case
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn lora(&self, tensors: &Tensors, metadata: &[(&str, &str)]) -> PathBuf {
        let path = self.path("lora.safetensors");
        write(&path, tensors, metadata);
        path
    }

    fn merge(&self, loras: &[(&Path, LoraScale, f64)]) -> Result<Checkpoint, CheckpointError> {
        let base = Checkpoint::open(&self.path("base.safetensors"))?;
        loras
            .iter()
            .try_fold(base, |base, &(path, scale, strength)| {
                let file = LoraFile {
                    path: path.to_owned(),
                    scale,
                    strength,
                };
                base.with_lora(file.open()?)
            })
    }

    fn merge_one(&self, path: &Path) -> Result<Checkpoint, CheckpointError> {
        self.merge(&[(path, LoraScale::Stored, 1.0)])
    }

    fn refusal(&self, tensors: &Tensors, metadata: &[(&str, &str)]) -> String {
        let path = self.lora(tensors, metadata);
        self.merge_one(&path).unwrap_err().to_string()
    }
}

/// Returns rank 4 pairs for every module of the base. `name` makes the keys of A, B and alpha from
/// a module; an empty key leaves the tensor out.
fn pairs(name: impl Fn(&str) -> [String; 3], alpha: f32) -> Tensors {
    let mut tensors = Tensors::new();
    for (at, (module, [rows, columns])) in BASE.iter().enumerate() {
        let [a, b, number] = name(module);
        tensors.push(bf16s(a, &[4, *columns], |i| wave(i + 9 + at)));
        tensors.push(bf16s(b, &[*rows, 4], |i| wave(i + 5 + at)));
        if !number.is_empty() {
            tensors.push(one(number, alpha));
        }
    }
    tensors
}

/// Returns the keys of PEFT's plainest form, without alpha.
fn peft(module: &str) -> [String; 3] {
    keys(module, "lora_A", "lora_B", false)
}

fn keys(module: &str, a: &str, b: &str, alpha: bool) -> [String; 3] {
    let number = alpha.then(|| format!("{module}.alpha"));
    [
        format!("{module}.{a}.weight"),
        format!("{module}.{b}.weight"),
        number.unwrap_or_default(),
    ]
}

/// Returns the merged values of every module of the base.
fn values(checkpoint: &Checkpoint) -> Vec<Vec<f32>> {
    let read = |(module, _): &(&str, _)| checkpoint.read_f32(&format!("{module}.weight")).unwrap();
    BASE.iter().map(read).collect()
}

/// Computes the merged values of [`pairs`] with one factor, without the code under test.
fn expected(factor: f32) -> Vec<Vec<f32>> {
    let b16 = |x: f32| bf16::from_f32(x).to_f32();
    let module = |(at, (_, [rows, columns])): (usize, &(&str, [usize; 2]))| {
        let value = |i: usize| {
            let (row, column) = (i / columns, i % columns);
            let terms = (0..4).map(|r| {
                b16(wave(row * 4 + r + 5 + at)) * b16(wave(r * columns + column + 9 + at))
            });
            b16(b16(wave(i)) + factor * terms.sum::<f32>())
        };
        (0..rows * columns).map(value).collect()
    };
    BASE.iter().enumerate().map(module).collect()
}

#[test]
fn every_spelling_merges_to_the_same_rounded_sum() {
    type Name = Box<dyn Fn(&str) -> [String; 3]>;
    let diffusers = |m: &str| {
        let m = m.replace("self_attn.q", "attn1.to_q");
        let m = m.replace("cross_attn.o", "attn2.to_out.0");
        let m = m.replace("ffn.0", "ffn.net.0.proj");
        m.replace("ffn.2", "ffn.net.2")
    };
    let under = |m: &str| format!("lora_unet_{}", m.replace('.', "_"));
    let cases: Vec<(&str, Name)> = vec![
        ("PEFT", Box::new(peft)),
        (
            "PEFT",
            Box::new(|m| keys(m, "lora_A.default", "lora_B.default", false)),
        ),
        (
            "PEFT",
            Box::new(|m| keys(m, "lora_A.style", "lora_B.style", true)),
        ),
        (
            "PEFT",
            Box::new(|m| {
                keys(
                    &format!("base_model.model.{m}"),
                    "lora_A.default",
                    "lora_B.default",
                    false,
                )
            }),
        ),
        ("PEFT", Box::new(|m| keys(m, "lora_A", "lora_B", true))),
        (
            "ComfyUI",
            Box::new(|m| keys(&format!("diffusion_model.{m}"), "lora_A", "lora_B", false)),
        ),
        (
            "ComfyUI",
            Box::new(|m| {
                keys(
                    &format!("model.diffusion_model.{m}"),
                    "lora_A",
                    "lora_B",
                    false,
                )
            }),
        ),
        (
            "ComfyUI",
            Box::new(|m| {
                keys(
                    &format!("diffusion_model.{m}"),
                    "lora_down",
                    "lora_up",
                    true,
                )
            }),
        ),
        (
            "diffusers",
            Box::new(|m| keys(&format!("transformer.{m}"), "lora_A", "lora_B", false)),
        ),
        (
            "diffusers",
            Box::new(move |m| {
                keys(
                    &format!("transformer.{}", diffusers(m)),
                    "lora_A",
                    "lora_B",
                    false,
                )
            }),
        ),
        (
            "kohya",
            Box::new(move |m| keys(&under(m), "lora_down", "lora_up", true)),
        ),
        (
            "kohya",
            Box::new(move |m| keys(&under(&diffusers(m)), "lora_down", "lora_up", true)),
        ),
        ("kohya", Box::new(|m| keys(m, "lora.down", "lora.up", true))),
    ];
    // Alpha 2 at rank 4 is the factor of a file without alpha.
    let want = expected(0.5);
    let case = Case::new();
    for (form, name) in cases {
        let path = case.lora(&pairs(&name, 2.0), &[]);
        let c = case.merge_one(&path).unwrap();
        assert_eq!(values(&c), want, "{form} {}", name("m")[0]);
        let report = c.loras().next().unwrap();
        assert_eq!((report.form().as_str(), report.factors), (form, [0.5; 2]));
        assert_eq!((report.ranks.first(), report.modules), (Some(&4), 4));
        assert_eq!(report.targets["blocks.ffn.2"], 1, "{form}");
        assert_eq!(
            c.computed("blocks.0.self_attn.q.weight"),
            Some("LoRA merge")
        );
        assert!(matches!(
            c.bytes("blocks.0.self_attn.q.weight"),
            Err(CheckpointError::Computed { .. })
        ));
        assert_eq!(c.computed("blocks.0.self_attn.q.bias"), None);
    }
}

#[test]
fn alpha_comes_from_wherever_a_file_states_it() {
    type Metadata<'m> = &'m [(&'m str, &'m str)];
    let case = Case::new();
    let plain = pairs(peft, 0.0);
    let with = |alpha: f32| pairs(|m| keys(m, "lora_A", "lora_B", true), alpha);
    let config = r#"{"transformer.r":4,"transformer.lora_alpha":8}"#;
    let cases: [(&Tensors, Metadata<'_>, f32, &str); 9] = [
        (
            &plain,
            &[],
            0.5,
            "no alpha in the file; 64 / 128 as published",
        ),
        (&with(8.0), &[], 2.0, "alpha in the file"),
        (
            &with(8.0),
            &[("ss_network_alpha", "2")],
            2.0,
            "alpha in the file",
        ),
        (
            &with(8.0),
            &[("ss_network_alpha", "Dynamic")],
            2.0,
            "alpha in the file",
        ),
        (
            &plain,
            &[("lora_alpha", "8")],
            2.0,
            "alpha of metadata lora_alpha",
        ),
        (
            &plain,
            &[("ss_network_alpha", "8.0"), ("ss_network_dim", "4")],
            2.0,
            "alpha of metadata ss_network_alpha",
        ),
        (
            &plain,
            &[("ss_network_alpha", "1"), ("ss_network_dim", "Dynamic")],
            0.25,
            "alpha of metadata ss_network_alpha",
        ),
        (
            &plain,
            &[("lora_adapter_metadata", config)],
            2.0,
            "alpha of metadata lora_adapter_metadata",
        ),
        (
            &plain,
            &[("lora_adapter_metadata", config), ("ss_network_alpha", "8")],
            2.0,
            "alpha of metadata lora_adapter_metadata",
        ),
    ];
    for (tensors, metadata, factor, origin) in cases {
        let c = case.merge_one(&case.lora(tensors, metadata)).unwrap();
        assert_eq!(values(&c), expected(factor), "{metadata:?}");
        let report = c.loras().next().unwrap();
        assert_eq!(
            (report.factors, report.origin.as_str()),
            ([factor; 2], origin)
        );
    }
    for (metadata, want) in [
        (
            &[("lora_adapter_metadata", config), ("ss_network_alpha", "2")][..],
            "two factors are stated, metadata lora_adapter_metadata gives 2 \
             and metadata ss_network_alpha gives 0.5; give --lora-scale to decide",
        ),
        (
            &[("ss_network_alpha", "Dynamic")],
            "metadata ss_network_alpha: alpha is \"Dynamic\", wanted a number",
        ),
        (
            &[("ss_network_alpha", "8"), ("ss_network_dim", "8")],
            "has rank 4 in the file, metadata ss_network_alpha says 8; \
             give --lora-scale to decide",
        ),
    ] {
        let error = case.refusal(&plain, metadata);
        assert!(error.contains(want), "{error} has no {want:?}");
        // A flag decides.
        let path = case.path("lora.safetensors");
        let c = case.merge(&[(&path, LoraScale::Scale(2.0), 1.0)]).unwrap();
        assert_eq!(values(&c), expected(2.0));
    }
    let mut some = with(8.0);
    some.remove(2);
    let error = case.refusal(&some, &[]);
    let want = "1 of 4 modules have no alpha (blocks.0.self_attn.q); \
                give --lora-alpha or --lora-scale";
    assert!(error.ends_with(want), "{error}");
}

#[test]
fn alpha_may_be_a_whole_number_and_must_be_one_number() {
    let case = Case::new();
    let mut tensors = pairs(peft, 0.0);
    for (module, _) in BASE {
        let bytes = 8i64.to_le_bytes().to_vec();
        tensors.push((format!("{module}.alpha"), Dtype::I64, vec![1], bytes));
    }
    let c = case.merge_one(&case.lora(&tensors, &[])).unwrap();
    assert_eq!(values(&c), expected(2.0));
    tensors.pop();
    tensors.push(bf16s("blocks.11.ffn.2.alpha", &[2], wave));
    let error = case.refusal(&tensors, &[]);
    let want = "key blocks.11.ffn.2.alpha has shape [2], wanted one number";
    assert!(error.ends_with(want), "{error}");
}

#[test]
fn a_folder_of_peft_has_the_factor_of_its_configuration() {
    let case = Case::new();
    let folder = case.path("peft");
    fs::create_dir(&folder).unwrap();
    let file = folder.join("adapter_model.safetensors");
    let wrapped = |m: &str| peft(&format!("base_model.model.{m}"));
    write(&file, &pairs(wrapped, 0.0), &[("format", "pt")]);
    // Another weight file in the folder does not make it ambiguous.
    write(
        &folder.join("optimizer.safetensors"),
        &pairs(peft, 0.0),
        &[],
    );
    let config = |text: &str| fs::write(folder.join("adapter_config.json"), text).unwrap();
    config(r#"{"peft_type":"LORA","r":4,"lora_alpha":8,"bias":"none"}"#);
    for path in [&folder, &file] {
        let c = case.merge_one(path).unwrap();
        assert_eq!(values(&c), expected(2.0));
        let report = c.loras().next().unwrap();
        assert_eq!(
            report.strength_text(),
            "rank 4, factor 2 (alpha of adapter_config.json), strength 1"
        );
    }
    config(r#"{"r":4,"lora_alpha":8,"use_rslora":true}"#);
    assert_eq!(values(&case.merge_one(&folder).unwrap()), expected(4.0));
    config(r#"{"r":4,"lora_alpha":8,"alpha_pattern":{"ffn.0":2,"blocks.11.ffn.2":2}}"#);
    let c = case.merge_one(&folder).unwrap();
    let (twice, half) = (expected(2.0), expected(0.5));
    assert_eq!(values(&c), [&twice[..2], &half[2..]].concat());
    let text = c.loras().next().unwrap().strength_text();
    assert!(text.starts_with("rank 4, factors 0.5 to 2 ("), "{text}");
    config(r#"{"r":4,"lora_alpha":8,"use_dora":true,"bias":"all"}"#);
    let error = case.merge_one(&folder).unwrap_err().to_string();
    let want = "peft: adapter_config.json: use_dora is true, wanted false: DoRA is not merged; \
                adapter_config.json: bias is \"all\", wanted \"none\"";
    assert!(error.ends_with(want), "{error}");
}

#[test]
fn each_module_has_its_own_rank() {
    let case = Case::new();
    let short = |alpha: bool| {
        let mut tensors = pairs(|m| keys(m, "lora_A", "lora_B", alpha), 2.0);
        // Rank 2 in one module; two zero ranks give the same product.
        let at = tensors.iter().position(|t| t.0.contains("1.ffn.0.lora_A"));
        let at = at.unwrap();
        tensors[at] = bf16s(tensors[at].0.clone(), &[2, 2], |i| wave(i + 11));
        tensors[at + 1] = bf16s(tensors[at + 1].0.clone(), &[5, 2], |i| wave(i + 7));
        let mut padded = tensors.clone();
        padded[at] = bf16s(padded[at].0.clone(), &[4, 2], |i| {
            if i < 4 { wave(i + 11) } else { 0.0 }
        });
        padded[at + 1] = bf16s(padded[at + 1].0.clone(), &[5, 4], |i| match i % 4 {
            r @ 0..2 => wave(i / 4 * 2 + r + 7),
            _ => 0.5,
        });
        if alpha {
            // Alpha 2 at rank 2 is alpha 4 at rank 4.
            padded[at + 2] = one(padded[at + 2].0.clone(), 4.0);
        }
        (tensors, padded)
    };
    for (alpha, factors) in [(false, [0.5, 0.5]), (true, [0.5, 1.0])] {
        let (tensors, padded) = short(alpha);
        let path = case.lora(&tensors, &[]);
        let c = case.merge_one(&path).unwrap();
        let (mixed, report) = (values(&c), c.loras().next().unwrap());
        assert_eq!(report.factors, factors);
        assert!(report.strength_text().starts_with("ranks 2 to 4, "));
        assert_eq!(c.lora_work(), (4, 4 * (6 + 6 + 10) + 2 * 10));
        let c = case.merge_one(&case.lora(&padded, &[])).unwrap();
        assert_eq!(mixed, values(&c));
    }
}

#[test]
fn several_loras_merge_in_order_with_their_strengths() {
    let case = Case::new();
    let (first, second) = (
        case.path("first.safetensors"),
        case.path("second.safetensors"),
    );
    write(&first, &pairs(peft, 0.0), &[]);
    let other: Tensors = [
        bf16s("blocks.0.self_attn.q.lora_A.weight", &[1, 2], |i| {
            wave(i + 50)
        }),
        bf16s("blocks.0.self_attn.q.lora_B.weight", &[3, 1], |i| {
            wave(i + 60)
        }),
    ]
    .to_vec();
    write(&second, &other, &[("lora_alpha", "3")]);
    let stored = LoraScale::Stored;
    let c = case
        .merge(&[(&first, stored, 2.0), (&second, stored, 0.5)])
        .unwrap();
    let b16 = |x: f32| bf16::from_f32(x).to_f32();
    let mut want = expected(1.0);
    for (i, w) in want[0].iter_mut().enumerate() {
        *w = b16(*w + 1.5 * b16(wave(i / 2 + 60)) * b16(wave(i % 2 + 50)));
    }
    assert_eq!(values(&c), want);
    let mut tile = Vec::new();
    c.read_f32_tile("blocks.0.self_attn.q.weight", 1..3, 1..2, &mut tile)
        .unwrap();
    assert_eq!(tile, [want[0][3], want[0][5]]);
    let reports: Vec<_> = c.loras().map(|l| (l.factors[1], l.strength)).collect();
    assert_eq!(reports, [(0.5, 2.0), (3.0, 0.5)]);
    assert_eq!(c.lora_work(), (4, 4 * 32 + 6));
    assert_eq!(c.files().len(), 3);
    // One rounding after each LoRA makes the order visible.
    let turned = case
        .merge(&[(&second, stored, 0.5), (&first, stored, 2.0)])
        .unwrap();
    assert_ne!(values(&turned)[0], want[0]);
    assert_eq!(values(&turned)[1..], want[1..]);
}

#[test]
fn each_fault_is_named() {
    let q = "blocks.0.self_attn.q";
    let a = |shape: &[usize]| bf16s(format!("{q}.lora_A.default.weight"), shape, wave);
    let b = |shape: &[usize]| bf16s(format!("{q}.lora_B.default.weight"), shape, wave);
    let good = |keys: &[&str]| {
        let extra = keys.iter().map(|key| bf16s(*key, &[1], wave));
        [a(&[4, 2]), b(&[3, 4])].into_iter().chain(extra).collect()
    };
    let f8 = |key: &str, shape: [usize; 2]| {
        let bytes = vec![0; shape[0] * shape[1]];
        (key.to_owned(), Dtype::F8_E4M3, shape.to_vec(), bytes)
    };
    let stranger = |n: usize| {
        let names = (0..n).flat_map(|i| {
            [
                bf16s(format!("unet.{i}.lora_A.weight"), &[4, 2], wave),
                bf16s(format!("unet.{i}.lora_B.weight"), &[3, 4], wave),
            ]
        });
        names.collect::<Tensors>()
    };
    let cases: Vec<(Tensors, &str)> = vec![
        (
            vec![bf16s("x.weight", &[1], wave)],
            "no key matches MODULE.lora_A.weight, MODULE.lora_down.weight \
             or another spelling of a LoRA; it has x.weight",
        ),
        (vec![], "or another spelling of a LoRA; it has no tensors"),
        (
            vec![a(&[4, 2])],
            "module blocks.0.self_attn.q has lora_A (lora_down) but no lora_B (lora_up)",
        ),
        (
            vec![b(&[3, 4])],
            "module blocks.0.self_attn.q has lora_B (lora_up) but no lora_A (lora_down)",
        ),
        (
            vec![one("m.alpha", 2.0)],
            "module m has alpha but no lora_A and lora_B",
        ),
        (
            vec![a(&[4, 2]), b(&[3, 5])],
            "module blocks.0.self_attn.q: lora_A has rank 4, lora_B has rank 5",
        ),
        (
            vec![a(&[4, 3]), b(&[3, 4])],
            "B @ A is [3, 3], blocks.0.self_attn.q.weight is [3, 2]",
        ),
        (
            vec![a(&[4, 2, 1]), b(&[3, 4])],
            "self_attn.q.lora_A.default.weight has shape [4, 2, 1], wanted two dimensions",
        ),
        (
            good(&["blocks.0.self_attn.q.bias"]),
            "no LoRA weight (1 key: blocks.0.self_attn.q.bias), \
             so the base model would be overwritten or the key ignored",
        ),
        (
            good(&[
                "m.1.dora_scale",
                "m.2.dora_scale",
                "m.3.dora_scale",
                "m.4.dora_scale",
            ]),
            "lora.safetensors: DoRA is not merged \
             (4 keys: m.1.dora_scale, m.2.dora_scale, m.3.dora_scale and 1 more); \
             take a plain LoRA, or merge it with the program that made it",
        ),
        (
            good(&["m.diff_b"]),
            "a full difference (diff, diff_b) is not merged (1 key: m.diff_b); ",
        ),
        (
            vec![
                bf16s("m.hada_w1_a", &[1], wave),
                bf16s("m.hada_w1_b", &[1], wave),
            ],
            "lora.safetensors: LoHa is not merged (2 keys: m.hada_w1_a, m.hada_w1_b); ",
        ),
        (
            vec![f8("m.lora_A.weight", [4, 2]), f8("m.lora_B.weight", [3, 4])],
            "lora.safetensors: F8_E4M3 is not merged (2 keys: m.lora_A.weight, m.lora_B.weight), \
             wanted F32, BF16, F16 or F64; convert the LoRA to bf16",
        ),
        (
            stranger(5),
            "the checkpoint lacks all of its 5 modules (unet.0, unet.1, unet.2 and 2 more), \
             so it belongs to another model",
        ),
        (
            [good(&[]), stranger(1)].concat(),
            "the checkpoint lacks 1 of its 2 modules (unet.0), so it belongs to another model",
        ),
        (
            good(&["base_model.model.blocks.0.self_attn.q.lora_A.weight"]),
            "module blocks.0.self_attn.q is listed twice, by \
             base_model.model.blocks.0.self_attn.q.lora_A.weight and \
             blocks.0.self_attn.q.lora_A.default.weight",
        ),
        (
            vec![
                a(&[4, 2]),
                b(&[3, 4]),
                bf16s(
                    "lora_unet_blocks_0_self_attn_q.lora_down.weight",
                    &[4, 2],
                    wave,
                ),
                bf16s(
                    "lora_unet_blocks_0_self_attn_q.lora_up.weight",
                    &[3, 4],
                    wave,
                ),
            ],
            "module blocks.0.self_attn.q.weight is listed twice, by blocks.0.self_attn.q and \
             blocks_0_self_attn_q",
        ),
    ];
    let case = Case::new();
    for (lora, want) in cases {
        let error = case.refusal(&lora, &[]);
        assert!(error.contains(want), "{error} has no {want:?}");
        assert_eq!(error.lines().count(), 1, "{error}");
    }
}

#[test]
fn a_scale_that_is_no_number_is_refused() {
    let case = Case::new();
    let path = case.lora(&pairs(peft, 0.0), &[]);
    let by_zero = LoraScale::AlphaRank {
        alpha: 64.0,
        rank: 0,
    };
    for (scale, strength, want) in [
        (by_zero, 1.0, "scale inf is not a finite number"),
        (
            LoraScale::Scale(f64::NAN),
            1.0,
            "scale NaN is not a finite number",
        ),
        (LoraScale::Scale(1e30), 1e30, "is not a finite number"),
    ] {
        let merged = case.merge(&[(&path, scale, strength)]);
        let error = merged.unwrap_err().to_string();
        assert!(error.contains(want), "{error}");
    }
}

#[test]
fn parts_of_a_target_have_the_bits_of_the_whole() {
    let case = Case::new();
    let (rows, columns, rank) = (165, 70, 5);
    let base = case.path("base.safetensors");
    write(
        &base,
        &vec![bf16s("m.q.weight", &[rows, columns], wave)],
        &[],
    );
    let lora = vec![
        bf16s("m.q.lora_A.weight", &[rank, columns], wave),
        bf16s("m.q.lora_B.weight", &[rows, rank], wave),
    ];
    let c = case.merge_one(&case.lora(&lora, &[])).unwrap();
    let whole = c.read_f32("m.q.weight").unwrap();
    assert_ne!(whole[70], bf16::from_f32(wave(70)).to_f32());
    let mut tile = Vec::new();
    for (r, cols) in [(0..rows, 0..columns), (3..4, 0..1), (60..140, 33..70)] {
        c.read_f32_tile("m.q.weight", r.clone(), cols.clone(), &mut tile)
            .unwrap();
        let part = |r| &whole[r * columns..][cols.clone()];
        assert_eq!(tile, r.flat_map(part).copied().collect::<Vec<_>>());
    }
    for range in [0..1, 69..142, 5000..rows * columns] {
        let part = c.read_f32_range("m.q.weight", range.clone()).unwrap();
        assert_eq!(part, whole[range]);
    }
    let beyond = c.read_f32_tile("m.q.weight", 0..1, 0..columns + 1, &mut tile);
    assert!(matches!(beyond, Err(CheckpointError::Range { .. })));
    assert_eq!(c.lora_work(), (1, (rows * columns * rank) as u64));
    assert_eq!(c.files().len(), 2);
    assert_eq!(c.without(|k| k == "m.q.weight").lora_work(), (0, 0));
}

/// The shared set is not part of the repository: without it this test has nothing to say.
#[test]
fn merged_rows_are_within_one_bf16_ulp_of_the_reference() {
    let shared = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/golden");
    if !shared.is_dir() {
        return;
    }
    let lora = Lora::open(
        &shared.join("ckpt/LiveAvatar/liveavatar.safetensors"),
        LoraScale::default(),
    )
    .unwrap();
    let merged = Checkpoint::open(&shared.join("ckpt/Wan2.2-S2V-14B"))
        .unwrap()
        .with_lora(lora)
        .unwrap();
    let golden = Checkpoint::open(&shared.join("golden/lora.safetensors")).unwrap();
    let (mut off, mut all) = (0, 0);
    for name in golden.names() {
        let want = golden.read_f32(name).unwrap();
        let got = merged
            .read_f32(name.strip_prefix("merged_rows.").unwrap())
            .unwrap();
        for (&got, &want) in got.iter().zip(&want) {
            let ulp = f32::from_bits(want.abs().to_bits() & 0x7F80_0000) / 128.0;
            assert!(
                (got - want).abs() <= ulp,
                "{name}: {got} is not within one ulp of {want}"
            );
            off += usize::from(got != want);
            all += 1;
        }
    }
    assert!(all > 10_000);
    assert!(
        off * 1000 <= all,
        "{off} of {all} values round the other way"
    );
}
