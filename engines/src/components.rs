//! The contracts of every component, one file each: symbols, ports, sizes; no logic.
//! [`symbols`] says what the letters in the shapes mean.
pub mod dit;
pub mod matmul;
pub mod preset;
pub mod speech;
pub mod symbols;
pub mod text;
pub mod vae;

use crate::contract::{Contract, Sizes};
use crate::dim::Bindings;

/// Contracts of every component of a model, in data-flow order.
pub const ALL: &[Contract] = &[
    text::ENCODER,
    speech::ENCODER_FEATURES,
    speech::ENCODER_POSITIONS,
    speech::ENCODER_LAYER,
    speech::ENCODER_LAST,
    speech::ADAPTER,
    vae::ENCODER_FIRST,
    vae::ENCODER_NEXT,
    vae::DECODER_FIRST,
    vae::DECODER_NEXT,
    dit::TEXT_EMBED,
    dit::SINK_EMBED,
    dit::SINK_LAYER,
    dit::EMBED,
    dit::LAYER,
    dit::LAYER_AUDIO,
    dit::HEAD,
];

/// Sizes of every component of a model.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelConfig {
    /// The transformer.
    pub dit: dit::DitConfig,
    /// The video VAE.
    pub vae: vae::VaeConfig,
    /// The text encoder.
    pub text: text::TextConfig,
    /// The speech encoder.
    pub speech: speech::SpeechConfig,
}

impl ModelConfig {
    /// Finds the contract that a component of this model keeps, by the contract's name.
    pub fn contract(&self, name: &str) -> Option<&'static Contract> {
        let whole = ALL.iter().find(|c| c.name == name)?;
        Some(match vae::ALL.contains(whole) {
            true => self.vae.contract(whole),
            false => whole,
        })
    }
}

impl Sizes for ModelConfig {
    /// Every symbol that any component's configuration fixes.
    fn bindings(&self) -> Bindings {
        let mut all = self.dit.bindings();
        all.extend(self.vae.bindings());
        all.extend(self.text.bindings());
        all.extend(self.speech.bindings());
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_port_parses_and_has_its_own_name() {
        for contract in ALL {
            let mut seen = BTreeSet::new();
            for name in contract
                .graph_inputs()
                .map(|p| p.name.to_owned())
                .chain(contract.graph_outputs().map(|(n, _)| n))
            {
                assert!(seen.insert(name.clone()), "{}: {name} twice", contract.name);
            }
            for port in contract
                .inputs
                .iter()
                .chain(contract.state)
                .chain(contract.outputs)
            {
                port.dims();
            }
        }
    }

    #[test]
    fn contracts_are_unchanged() {
        let text: String = ALL
            .iter()
            .map(|c| format!("{c}  fingerprint {}\n\n", c.fingerprint()))
            .collect();
        insta::assert_snapshot!(text);
    }
}
