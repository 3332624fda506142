//! Finds the module of a checkpoint that a LoRA means. Trainers write dots as underscores, or use
//! the module names of diffusers. A name is compared with every spelling of the checkpoint's own
//! modules, so an underscored name is never cut by a guess.

use std::collections::{BTreeMap, BTreeSet};

/// Words of the reference's modules, and of diffusers' Wan transformer in their place.
const DIFFUSERS: [(&str, &str); 8] = [
    ("self_attn", "attn1"),
    ("cross_attn", "attn2"),
    ("q", "to_q"),
    ("k", "to_k"),
    ("v", "to_v"),
    ("o", "to_out.0"),
    ("ffn.0", "ffn.net.0.proj"),
    ("ffn.2", "ffn.net.2"),
];

/// The modules of a checkpoint, by each of their spellings.
pub(super) struct Names<'b> {
    modules: BTreeSet<&'b str>,
    spellings: BTreeMap<String, BTreeSet<&'b str>>,
}

/// The module that a name means.
#[derive(Debug, PartialEq)]
pub(super) enum Found<'b> {
    One(&'b str),
    Nothing,
    Several(&'b str, &'b str),
}

impl<'b> Names<'b> {
    /// Collects the modules of a checkpoint from the names of its tensors.
    pub(super) fn new(tensors: impl Iterator<Item = &'b str>) -> Self {
        let modules: BTreeSet<&str> = tensors
            .filter_map(|name| name.strip_suffix(".weight"))
            .collect();
        let mut spellings: BTreeMap<String, BTreeSet<&str>> = BTreeMap::new();
        for &module in &modules {
            let other = diffusers(module);
            for name in [module.replace('.', "_"), other.replace('.', "_"), other] {
                spellings.entry(name).or_default().insert(module);
            }
        }
        Self { modules, spellings }
    }

    /// Returns the module that `name` means. A module's own name wins over the other spellings.
    pub(super) fn find(&self, name: &str) -> Found<'b> {
        if let Some(module) = self.modules.get(name) {
            return Found::One(module);
        }
        let mut found = self.spellings.get(name).into_iter().flatten();
        match (found.next(), found.next()) {
            (Some(module), None) => Found::One(module),
            (Some(first), Some(second)) => Found::Several(first, second),
            _ => Found::Nothing,
        }
    }
}

/// Returns the name of a module in diffusers: `blocks.0.self_attn.o` -> `blocks.0.attn1.to_out.0`.
fn diffusers(module: &str) -> String {
    let mut name = format!(".{module}.");
    for (ours, theirs) in DIFFUSERS {
        name = name.replace(&format!(".{ours}."), &format!(".{theirs}."));
    }
    name.trim_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_spelling_means_its_module() {
        let all = [
            "blocks.1.self_attn.q",
            "blocks.11.self_attn.q",
            "blocks.1.cross_attn.o",
            "blocks.1.ffn.0",
            "blocks.1.ffn.2",
            "injector.1.k",
        ];
        let tensors: Vec<String> = all.iter().map(|m| format!("{m}.weight")).collect();
        let names = Names::new(tensors.iter().map(String::as_str));
        for (name, want) in [
            ("blocks.1.self_attn.q", all[0]),
            ("blocks_1_self_attn_q", all[0]),
            ("blocks_11_self_attn_q", all[1]),
            ("blocks.1.attn1.to_q", all[0]),
            ("blocks_1_attn2_to_out_0", all[2]),
            ("blocks.1.ffn.net.0.proj", all[3]),
            ("blocks_1_ffn_net_2", all[4]),
            ("injector.1.to_k", all[5]),
        ] {
            assert_eq!(names.find(name), Found::One(want), "{name}");
        }
        for name in ["blocks.2.self_attn.q", "blocks_1_self_attn", "blocks.1"] {
            assert_eq!(names.find(name), Found::Nothing, "{name}");
        }
    }

    #[test]
    fn an_underscored_name_of_two_modules_is_ambiguous() {
        let names = Names::new(["a.b_c.weight", "a_b.c.weight", "a_b_d.weight"].into_iter());
        assert_eq!(names.find("a_b_c"), Found::Several("a.b_c", "a_b.c"));
        assert_eq!(names.find("a_b_d"), Found::One("a_b_d"));
    }
}
