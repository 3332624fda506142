//! The spellings of a LoRA's keys. Trainers write the same two matrices under many names; a key is
//! cut into its module, its part and its spelling. It also names the forms that are no plain LoRA.

use std::fmt;

/// Suffixes of keys before an optional adapter name and `.weight`.
const SIDES: [(&str, Part, bool); 6] = [
    (".lora_A.", Part::Down, false),
    (".lora_B.", Part::Up, false),
    (".lora_down.", Part::Down, true),
    (".lora_up.", Part::Up, true),
    (".lora.down.", Part::Down, true),
    (".lora.up.", Part::Up, true),
];
/// Prefixes of dotted module names. A key may have several of them.
const PREFIXES: [(&str, LoraForm); 4] = [
    ("base_model.model.", LoraForm::Peft),
    ("model.diffusion_model.", LoraForm::ComfyUi),
    ("diffusion_model.", LoraForm::ComfyUi),
    ("transformer.", LoraForm::Diffusers),
];
/// Prefixes of module names whose dots are written as underscores.
const UNDERSCORED: [&str; 2] = ["lora_unet_", "lora_transformer_"];

/// The spelling of a LoRA's keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
pub enum LoraForm {
    /// `MODULE.lora_A[.ADAPTER].weight`, with or without `base_model.model.`.
    Peft,
    /// The prefix `diffusion_model.`.
    ComfyUi,
    /// The prefix `transformer.`.
    Diffusers,
    /// `lora_unet_MODULE.lora_down.weight`, or `lora_down` without a known prefix.
    Kohya,
}

impl fmt::Display for LoraForm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Peft => "PEFT",
            Self::ComfyUi => "ComfyUI",
            Self::Diffusers => "diffusers",
            Self::Kohya => "kohya",
        })
    }
}

/// The role of a tensor in its module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// A, or `lora_down`: `[rank, in]`.
    Down,
    /// B, or `lora_up`: `[out, rank]`.
    Up,
    /// The number alpha.
    Alpha,
}

/// A key of a plain LoRA.
#[derive(Debug, PartialEq)]
pub(super) struct Key<'k> {
    /// The module as the file spells it, without its prefix.
    pub(super) module: &'k str,
    pub(super) part: Part,
    /// The spelling, where the key shows one: `MODULE.alpha` is common to several.
    pub(super) form: Option<LoraForm>,
}

/// Returns the parts of a plain LoRA's key, or `None` for a key of another kind.
pub(super) fn parse(key: &str) -> Option<Key<'_>> {
    let (name, part, down) = split(key)?;
    let (mut module, mut form) = (name, None);
    while let Some((rest, found)) = PREFIXES
        .iter()
        .find_map(|&(prefix, form)| Some((module.strip_prefix(prefix)?, form)))
    {
        module = rest;
        // The prefix of the model says more than PEFT's wrapper in front of it.
        form = Some(found);
    }
    let underscored = UNDERSCORED.iter().find_map(|p| module.strip_prefix(p));
    if let Some(rest) = underscored {
        (module, form) = (rest, Some(LoraForm::Kohya));
    }
    let by_part = match part {
        Part::Alpha => None,
        _ if down => Some(LoraForm::Kohya),
        _ => Some(LoraForm::Peft),
    };
    (!module.is_empty()).then_some(Key {
        module,
        part,
        form: form.or(by_part),
    })
}

/// Splits the part off a key. The last value is true for a spelling with `down` and `up`.
fn split(key: &str) -> Option<(&str, Part, bool)> {
    if let Some(name) = key.strip_suffix(".alpha") {
        return Some((name, Part::Alpha, false));
    }
    let name = key.strip_suffix("weight")?;
    SIDES.iter().find_map(|&(side, part, down)| {
        let at = name.rfind(side)?;
        // The rest is empty, or the name of an adapter with its dot.
        let adapter = &name[at + side.len()..];
        let plain = adapter.is_empty() || adapter.find('.') == Some(adapter.len() - 1);
        plain.then_some((&name[..at], part, down))
    })
}

/// Returns the name of the form that a key belongs to when it is no plain LoRA's, or `None` for an
/// unknown form.
pub(super) fn refused(key: &str) -> Option<&'static str> {
    key.split('.').find_map(|word| {
        Some(match word {
            "lora_magnitude_vector" | "dora_scale" => "DoRA",
            "diff" | "diff_b" => "a full difference (diff, diff_b)",
            "set_weight" => "a whole weight (set_weight)",
            "modules_to_save" => "a whole module (modules_to_save)",
            "lora_mid" => "a LoRA with a core (lora_mid)",
            "lora_bias" => "a LoRA with a bias",
            "lora_embedding_A" | "lora_embedding_B" => "a LoRA of an embedding",
            "reshape_weight" => "a reshaped weight (reshape_weight)",
            "w_norm" | "b_norm" => "a difference of a norm (w_norm, b_norm)",
            _ if word.starts_with("hada_") => "LoHa",
            _ if word.starts_with("lokr_") => "LoKr",
            _ if word.starts_with("oft_") || word.starts_with("boft_") => "OFT",
            _ => return None,
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_spelling_gives_module_part_and_form() {
        let (down, up, alpha) = (Part::Down, Part::Up, Part::Alpha);
        let (peft, comfy) = (Some(LoraForm::Peft), Some(LoraForm::ComfyUi));
        let (diffusers, kohya) = (Some(LoraForm::Diffusers), Some(LoraForm::Kohya));
        for (key, module, part, form) in [
            ("b.0.q.lora_A.weight", "b.0.q", down, peft),
            ("b.0.q.lora_B.default.weight", "b.0.q", up, peft),
            ("base_model.model.b.lora_A.mine.weight", "b", down, peft),
            ("diffusion_model.b.lora_A.weight", "b", down, comfy),
            (
                "base_model.model.diffusion_model.b.lora_B.weight",
                "b",
                up,
                comfy,
            ),
            ("model.diffusion_model.b.lora_up.weight", "b", up, comfy),
            ("transformer.b.lora_B.weight", "b", up, diffusers),
            ("transformer.b.lora.down.weight", "b", down, diffusers),
            ("lora_unet_b_0_q.lora_down.weight", "b_0_q", down, kohya),
            ("lora_unet_b_0_q.alpha", "b_0_q", alpha, kohya),
            ("b.lora_up.weight", "b", up, kohya),
            ("b.alpha", "b", alpha, None),
        ] {
            let want = Key { module, part, form };
            assert_eq!(parse(key), Some(want), "{key}");
        }
        for key in [
            "b.bias",
            "b.weight",
            ".lora_A.weight",
            "b.lora_A.a.b.weight",
            "b.lora_A.default.bias",
            "b.lora_Aweight",
        ] {
            assert_eq!(parse(key), None, "{key}");
        }
    }

    #[test]
    fn every_other_form_has_a_name() {
        for (key, want) in [
            ("b.lora_magnitude_vector.default.weight", Some("DoRA")),
            ("b.dora_scale", Some("DoRA")),
            ("b.diff", Some("a full difference (diff, diff_b)")),
            ("b.diff_b", Some("a full difference (diff, diff_b)")),
            ("b.hada_w1_a", Some("LoHa")),
            ("b.lokr_w2", Some("LoKr")),
            ("b.set_weight", Some("a whole weight (set_weight)")),
            ("b.lora_mid.weight", Some("a LoRA with a core (lora_mid)")),
            ("b.weight", None),
        ] {
            assert_eq!((parse(key), refused(key)), (None, want), "{key}");
        }
    }
}
