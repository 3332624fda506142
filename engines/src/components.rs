//! The contracts of every component, one file each: symbols, ports, sizes; no logic.
//!
//! | symbol | meaning |
//! |---|---|
//! | `B` | lanes of one call; `G` is 1 (shared by all lanes) or `B` |
//! | `F` | latent frames of a block (3); `h`, `w` token rows and columns of a frame (latent rows and columns are `2*h`, `2*w`) |
//! | `D`, `N`, `d`, `p` | width, heads, head size, rotary pairs `d/2` of the DiT |
//! | `S`, `C`, `M` | tokens of the KV ring, of the sink (condition), of the text |
//! | `A`, `K`, `Q`, `E` | actors, audio tokens per frame, speech hidden states, their width |
//! | `s`, `t`, `r` | samples; tokens of a prompt or frames of speech; some of those frames |
//! | `Z`, `H`, `W`, `c` | latent channels, latent rows and columns, base width of the VAE |
pub mod dit;
pub mod preset;
pub mod probe;
pub mod speech;
pub mod text;
pub mod vae;

use crate::contract::Contract;

/// Every contract of the project, in data-flow order.
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
