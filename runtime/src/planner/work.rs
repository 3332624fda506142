//! Counts the bytes and the operations of each part of the model at one size: weights, rings,
//! condition, activations, caches. A multiply and an add are two operations. All are functions of
//! sizes, and the tensors are those of the graphs.

use engines::components::dit::MOTION_FRAMES;
use engines::components::vae::{DECODER_NEXT, ENCODER_NEXT, TEMPORAL_STRIDE};
use engines::contract::{Contract, Sizes};
use engines::manifest::ModelConfig;
use engines::profile::Kind;
use engines::recipe::Recipe;

use crate::numbers::size::Size;
use crate::numbers::speech_windows::WHOLE_SECONDS;
use crate::placement::speech_chunk::SpeechChunk;

/// The sizes from which all counts follow.
#[derive(Clone, Debug)]
pub struct Work {
    config: ModelConfig,
    recipe: Recipe,
    size: Size,
    /// Tokens of a block, of the sink, of the ring.
    block: u64,
    sink: u64,
    ring: u64,
    /// Elements of the VAE's feature caches.
    decoder_caches: u64,
    encoder_caches: u64,
}

/// One convolution of the VAE.
struct Conv {
    /// Kernel elements.
    kernel: u64,
    input: u64,
    output: u64,
    /// Output pixels for one latent frame.
    pixels: u64,
    /// Number of such convolutions.
    times: u64,
}

/// Operations of one call for one lane, by kind.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Operations {
    /// Matrix products of large weights.
    pub linear: f64,
    /// Self attention.
    pub attention: f64,
    /// Cross attention and audio injection: matrix products and attention over few keys.
    pub rest: f64,
}

impl Operations {
    /// Returns the sum of all kinds.
    pub fn total(&self) -> f64 {
        self.linear + self.attention + self.rest
    }
}

/// Bytes of an element that every recipe keeps in f32: of the time embedding, modulations, the
/// head, the audio adapter and the speech encoder.
pub(crate) const F32_BYTES: u64 = 4;

/// Frames of the speech encoder in a window, and in the longest recording without windows.
const SPEECH_WINDOW: u64 = 50 * WHOLE_SECONDS as u64;

/// Weights start at multiples of this many bytes on a device.
const ALIGNMENT: u64 = 256;

/// Returns the bytes of one weight with the padding after it.
fn padded(elements: u64, element_bytes: u64) -> u64 {
    (elements * element_bytes).next_multiple_of(ALIGNMENT)
}

fn bytes(n: usize) -> u64 {
    n as u64
}

impl Work {
    /// Counts at `size`, with `ring_blocks` blocks in a ring.
    pub fn new(config: &ModelConfig, recipe: Recipe, size: Size, ring_blocks: usize) -> Self {
        let (h, w) = size.tokens();
        let block = bytes(config.dit.block_frames * h * w);
        Self {
            recipe,
            size,
            block,
            sink: bytes(config.dit.sink_tokens(h, w)),
            ring: block * bytes(ring_blocks),
            decoder_caches: caches(config, size, &DECODER_NEXT),
            encoder_caches: caches(config, size, &ENCODER_NEXT),
            config: config.clone(),
        }
    }

    /// Returns the sizes of the model.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    fn dim(&self) -> u64 {
        bytes(self.config.dit.dim)
    }

    /// Returns the bytes of one element of a hidden state.
    fn compute(&self) -> u64 {
        bytes(self.recipe.compute().size())
    }

    /// Returns the bytes of a linear layer: the matrix in the recipe's type, the bias in the
    /// compute type.
    fn linear(&self, from: u64, to: u64) -> u64 {
        padded(from * to, bytes(self.recipe.weight_bytes())) + self.vector(to)
    }

    /// Returns the bytes of a linear layer that no recipe quantises, in the compute type.
    fn plain_linear(&self, from: u64, to: u64) -> u64 {
        padded(from * to, self.compute()) + self.vector(to)
    }

    /// Returns the bytes of a linear layer that every recipe keeps in f32.
    fn f32_linear(from: u64, to: u64) -> u64 {
        padded(from * to, F32_BYTES) + padded(to, F32_BYTES)
    }

    /// Returns the bytes of a bias or of the gain of a norm, in the compute type.
    fn vector(&self, elements: u64) -> u64 {
        padded(elements, self.compute())
    }

    fn injects(&self, layer: usize) -> bool {
        self.config.dit.audio_inject_layers.contains(&layer)
    }

    /// Counts the weights of `dit_layer` or `dit_layer_audio`.
    pub fn layer_weights(&self, layer: usize) -> u64 {
        let (d, f) = (self.dim(), bytes(self.config.dit.ffn_dim));
        // Self attention has q, k, v and o, cross attention q and o.
        let block = 6 * self.linear(d, d) + self.linear(d, f) + self.linear(f, d);
        // Three norms of queries and keys, the affine norm with its bias, and the modulation.
        let small = 5 * self.vector(d) + padded(6 * d, F32_BYTES);
        let audio = 4 * self.linear(d, d) + 2 * self.vector(d) + self.linear(d, 2 * d);
        block + small + if self.injects(layer) { audio } else { 0 }
    }

    /// Counts the weights that the sink's layer needs beside those of the layer: keys and values of
    /// the text.
    pub fn text_key_weights(&self) -> u64 {
        2 * self.linear(self.dim(), self.dim()) + self.vector(self.dim())
    }

    /// Counts the weights of `dit_embed`: patches, pose and time.
    pub fn embed_weights(&self) -> u64 {
        let (d, dit) = (self.dim(), &self.config.dit);
        let patch = bytes(dit.latent_channels) * 4;
        let mask = 3 * self.vector(d);
        2 * self.plain_linear(patch, d) + self.time_weights() + mask
    }

    /// Returns the bytes of the time embedding, which `dit_embed` and `dit_sink_embed` have both.
    fn time_weights(&self) -> u64 {
        let (d, frequencies) = (self.dim(), bytes(self.config.dit.freq_dim));
        Self::f32_linear(frequencies, d) + Self::f32_linear(d, d) + Self::f32_linear(d, 6 * d)
    }

    /// Counts the weights of `dit_head`.
    pub fn head_weights(&self) -> u64 {
        let z = bytes(self.config.dit.latent_channels);
        Self::f32_linear(self.dim(), 4 * z) + padded(2 * self.dim(), F32_BYTES)
    }

    /// Counts the weights that `dit_sink_embed` has and `dit_embed` has not.
    pub fn packer_weights(&self) -> u64 {
        let (d, z) = (self.dim(), bytes(self.config.dit.latent_channels));
        [4, 32, 256]
            .map(|kernel| self.plain_linear(z * kernel, d))
            .iter()
            .sum()
    }

    /// Counts the weights of `dit_text`.
    pub fn text_embed_weights(&self) -> u64 {
        self.plain_linear(bytes(self.config.dit.text_dim), self.dim())
            + self.plain_linear(self.dim(), self.dim())
    }

    /// Counts the weights of `audio_adapter`.
    pub fn adapter_weights(&self) -> u64 {
        let (d, audio) = (self.dim(), &self.config.dit.audio);
        let (quarter, heads) = (d / 4, bytes(audio.tokens) - 1);
        let conv = |from: u64, to: u64| Self::f32_linear(3 * from, to);
        padded(bytes(audio.states), F32_BYTES)
            + conv(bytes(audio.dim), heads * quarter)
            + conv(bytes(audio.dim), quarter)
            + conv(quarter, d / 2)
            + conv(d / 2, d)
            + Self::f32_linear(d, d)
            + padded(d, F32_BYTES)
    }

    /// Counts every weight of the transformer, in the types of an export.
    pub fn transformer_weights(&self) -> u64 {
        let layers = 0..self.config.dit.layers;
        layers
            .map(|l| self.layer_weights(l) + self.text_key_weights())
            .sum::<u64>()
            + self.embed_weights()
            + self.head_weights()
            + self.packer_weights()
            + self.text_embed_weights()
            + self.adapter_weights()
    }

    /// Counts the weights of the text encoder.
    pub fn text_weights(&self) -> u64 {
        let t = &self.config.text;
        let (d, a, f) = (bytes(t.dim), bytes(t.attn_dim), bytes(t.ffn_dim));
        let layer = 4 * d * a + 3 * d * f + 2 * d + bytes(t.buckets * t.heads);
        (bytes(t.vocab) * d + bytes(t.layers) * layer + d) * self.compute()
    }

    /// Counts the weights of the speech encoder, of all layers.
    pub fn speech_weights(&self) -> u64 {
        let s = &self.config.speech;
        let (d, f) = (bytes(s.dim), bytes(s.ffn_dim));
        let layer = 4 * (d * d + d) + 2 * d * f + d + f + 4 * d;
        let channels = d / 2;
        let kernels: u64 = s.conv_kernel.iter().skip(1).map(|&k| bytes(k)).sum();
        let first = s.conv_kernel.first().map_or(0, |&k| bytes(k));
        let convs =
            channels * (first + kernels * channels) + 3 * channels * bytes(s.conv_kernel.len());
        let rim = channels * d + 3 * d + 2 * channels + 128 * d * d / bytes(s.pos_conv_groups) + d;
        (bytes(s.layers) * layer + convs + rim) * F32_BYTES
    }

    /// Returns the most bytes of the speech encoder at once while it encodes a window: the weights
    /// of a layer, the states of the window before and after it, and the scores of a part of it.
    pub(crate) fn speech_window_bytes(&self) -> u64 {
        let s = &self.config.speech;
        let (d, f) = (bytes(s.dim), bytes(s.ffn_dim));
        let weights = 4 * (d * d + d) + 2 * d * f + d + f + 4 * d;
        let states = 6 * SPEECH_WINDOW * d;
        let scores = bytes(SpeechChunk::default().score_bytes);
        (weights + states) * F32_BYTES + scores
    }

    /// Returns the bytes of the hidden states of speech on the host: those of a recording that is
    /// encoded as a whole, or of the parts of two windows.
    pub(crate) fn speech_states_bytes(&self) -> u64 {
        let s = &self.config.speech;
        (bytes(s.layers) + 1) * SPEECH_WINDOW * bytes(s.dim) * F32_BYTES
    }

    /// Returns the bytes of keys and values of one layer and one step.
    pub fn ring_bytes(&self) -> u64 {
        2 * self.ring * self.dim() * bytes(self.recipe.ring_bytes())
    }

    /// Returns the bytes of a ring that one block writes.
    pub fn block_ring_bytes(&self) -> u64 {
        2 * self.block * self.dim() * bytes(self.recipe.ring_bytes())
    }

    /// Returns the bytes of the sink's keys and values of one layer.
    pub fn sink_bytes(&self) -> u64 {
        2 * self.sink * self.dim() * self.compute()
    }

    /// Returns the bytes of the text's keys and values of one layer.
    pub fn text_bytes(&self) -> u64 {
        2 * bytes(self.config.dit.text_len) * self.dim() * self.compute()
    }

    /// Returns the bytes of one item between two stages: hidden states and the time embedding.
    pub fn hidden_bytes(&self) -> u64 {
        let modulation = 7 * bytes(self.config.dit.block_frames) * self.dim() * 4;
        self.block * self.dim() * self.compute() + modulation
    }

    /// Returns the bytes of a lane's inputs beside its hidden states: latents of the video, of the
    /// pose and of the result, the prediction, the embedding of the time, and the audio.
    pub(crate) fn input_bytes(&self) -> u64 {
        let dit = &self.config.dit;
        let frames = bytes(dit.block_frames);
        let latents = 4 * bytes(dit.latent_channels) * frames * self.latent_pixels();
        let audio = frames * (1 + bytes(dit.audio.tokens)) * self.dim() + self.block;
        // The slot, the length of the ring and two sigmas take 24 bytes.
        (latents + frames * bytes(dit.freq_dim) + audio) * F32_BYTES + 24
    }

    /// Returns the bytes of a prefill between two stages: the sink's hidden states and modulation.
    pub(crate) fn sink_hidden_bytes(&self) -> u64 {
        self.sink * self.dim() * self.compute() + 6 * self.dim() * F32_BYTES
    }

    /// Returns the bytes that pass through one layer of a prefill: hidden states before and after
    /// it, the modulation, the text, the rotary tables, and the keys and values that it gives.
    pub(crate) fn sink_layer_bytes(&self) -> u64 {
        let (d, c) = (self.dim(), self.compute());
        let text = bytes(self.config.dit.text_len) * d * c;
        let tables = self.sink * bytes(self.config.dit.head_dim()) * F32_BYTES;
        let hidden = 2 * self.sink * d * c + 6 * d * F32_BYTES;
        hidden + text + tables + self.sink_bytes() + self.text_bytes()
    }

    /// Returns the bytes of the sink's embedding, which a prefill loads for its first layer: its
    /// weights, and the latents and tokens that pass through it.
    pub(crate) fn sink_embed_bytes(&self) -> u64 {
        let latents = 1 + bytes(MOTION_FRAMES);
        let latents = bytes(self.config.dit.latent_channels) * latents * self.latent_pixels();
        let inputs = latents + bytes(self.config.dit.freq_dim);
        let tokens = self.sink * self.dim() * self.compute() + 7 * self.dim() * F32_BYTES;
        self.embed_weights() + self.packer_weights() + inputs * F32_BYTES + tokens
    }

    /// Returns the most bytes of inner values at once in a layer's graph, for one lane. At the peak
    /// these are the block's residual, queries, joined keys and values of sink and ring, the rotary
    /// tables and the result. A CPU does not fuse attention, so the scores add to them.
    pub fn layer_activations(&self, kind: Kind) -> u64 {
        let (d, c) = (self.dim(), self.compute());
        let hidden = self.block * d * c;
        let keys = self.sink + self.ring;
        let half = bytes(self.config.dit.head_dim() / 2);
        let tables = 2 * (self.block + self.sink) * half * 4;
        let joined = 2 * keys * d * c;
        let rim = 2 * hidden + self.hidden_bytes() + tables;
        let attention = 3 * hidden + joined + self.sink * d * c;
        let inner = 2 * self.block * bytes(self.config.dit.ffn_dim) * c;
        let feed_forward = self.block * d * 4 + 2 * hidden + inner;
        let scores = match kind {
            Kind::Gpu => 0,
            Kind::Cpu => bytes(self.config.dit.heads) * self.block * keys * 4,
        };
        rim + (attention + scores).max(feed_forward)
    }

    /// Counts the operations of layer `layer` for one lane against a full ring.
    pub fn layer_operations(&self, layer: usize) -> Operations {
        let (d, f, block) = (
            self.dim() as f64,
            self.config.dit.ffn_dim as f64,
            self.block as f64,
        );
        let keys = (self.sink + self.ring) as f64;
        let text = self.config.dit.text_len as f64;
        let per_audio = if self.injects(layer) {
            4.0 * d * d * block
        } else {
            0.0
        };
        Operations {
            linear: 2.0 * block * (6.0 * d * d + 2.0 * d * f),
            attention: 4.0 * block * keys * d,
            rest: 4.0 * block * text * d + per_audio,
        }
    }

    /// Counts the operations of a call for one lane, all layers, against a full ring.
    pub fn call_operations(&self) -> Operations {
        (0..self.config.dit.layers).fold(Operations::default(), |sum, l| {
            let o = self.layer_operations(l);
            Operations {
                linear: sum.linear + o.linear,
                attention: sum.attention + o.attention,
                rest: sum.rest + o.rest,
            }
        })
    }

    /// Returns the operations for keys and values of the text. The reference computes them in each
    /// call, and the sink's graphs once for each anchor.
    pub fn text_key_operations(&self) -> f64 {
        let (d, text) = (self.dim() as f64, self.config.dit.text_len as f64);
        self.config.dit.layers as f64 * 4.0 * text * d * d
    }

    /// Counts the operations of one layer of the sink prefill.
    pub fn sink_layer_operations(&self) -> Operations {
        let (d, f, sink) = (
            self.dim() as f64,
            self.config.dit.ffn_dim as f64,
            self.sink as f64,
        );
        let text = self.config.dit.text_len as f64;
        Operations {
            linear: 2.0 * sink * (6.0 * d * d + 2.0 * d * f) + 4.0 * text * d * d,
            attention: 4.0 * sink * sink * d,
            rest: 4.0 * sink * text * d,
        }
    }

    /// Returns the bytes that one layer moves through device memory for one lane, without the
    /// operands of matrix products: norms, rotation, residuals, and the joined keys and values,
    /// each written and read.
    pub fn layer_traffic(&self) -> u64 {
        let (d, c) = (self.dim(), self.compute());
        let joined = 2 * (self.sink + self.ring) * d * c;
        let hidden = self.block * d * c;
        2 * (joined + 12 * hidden + self.block * bytes(self.config.dit.ffn_dim) * c)
    }

    fn latent_pixels(&self) -> u64 {
        let (h, w) = self.size.latent();
        bytes(h * w)
    }

    /// Convolutions of the decoder for one latent frame after the first, and of the encoder.
    fn decoder_convs(&self) -> Vec<Conv> {
        let (c, z, at) = (
            bytes(self.config.vae.dim),
            bytes(self.config.vae.latent_channels),
            self.latent_pixels(),
        );
        let conv = |kernel, input, output, pixels, times| Conv {
            kernel,
            input,
            output,
            pixels,
            times,
        };
        // With zeros, two sets of 2x3 weights give the rows of a doubled picture.
        let on_frames = !self.config.vae.frame_convolutions.is_empty();
        let doubling = |input, output, pixels| match on_frames {
            true => conv(6, input, 2 * output, pixels / 2, 1),
            false => conv(9, input, output, pixels, 1),
        };
        vec![
            conv(1, z, z, at, 1),
            conv(27, z, 4 * c, at, 1),
            conv(27, 4 * c, 4 * c, at, 10),
            conv(1, 4 * c, 16 * c, at, 1),
            conv(3, 4 * c, 8 * c, at, 1),
            doubling(4 * c, 2 * c, 8 * at),
            conv(27, 2 * c, 4 * c, 8 * at, 1),
            conv(1, 2 * c, 4 * c, 8 * at, 1),
            conv(27, 4 * c, 4 * c, 8 * at, 5),
            conv(3, 4 * c, 8 * c, 8 * at, 1),
            doubling(4 * c, 2 * c, 64 * at),
            conv(27, 2 * c, 2 * c, 64 * at, 6),
            doubling(2 * c, c, 256 * at),
            conv(27, c, c, 256 * at, 6),
            conv(27, c, 3, 256 * at, 1),
        ]
    }

    fn encoder_convs(&self) -> Vec<Conv> {
        let (c, z, at) = (
            bytes(self.config.vae.dim),
            bytes(self.config.vae.latent_channels),
            self.latent_pixels(),
        );
        let conv = |kernel, input, output, pixels, times| Conv {
            kernel,
            input,
            output,
            pixels,
            times,
        };
        vec![
            conv(27, 3, c, 256 * at, 1),
            conv(27, c, c, 256 * at, 4),
            conv(9, c, c, 64 * at, 1),
            conv(27, c, 2 * c, 64 * at, 1),
            conv(1, c, 2 * c, 64 * at, 1),
            conv(27, 2 * c, 2 * c, 64 * at, 3),
            conv(9, 2 * c, 2 * c, 16 * at, 1),
            conv(3, 2 * c, 2 * c, 8 * at, 1),
            conv(27, 2 * c, 4 * c, 8 * at, 1),
            conv(1, 2 * c, 4 * c, 8 * at, 1),
            conv(27, 4 * c, 4 * c, 8 * at, 3),
            conv(9, 4 * c, 4 * c, 2 * at, 1),
            conv(3, 4 * c, 4 * c, at, 1),
            conv(27, 4 * c, 4 * c, at, 8),
            conv(1, 4 * c, 16 * c, at, 1),
            conv(27, 4 * c, 2 * z, at, 1),
            conv(1, 2 * z, 2 * z, at, 1),
        ]
    }

    /// Counts the weights of the decoder's convolutions and norms.
    pub fn decoder_weights(&self) -> u64 {
        conv_weights(&self.decoder_convs(), self.compute())
    }

    /// Counts the weights of the encoder's convolutions and norms.
    pub fn encoder_weights(&self) -> u64 {
        conv_weights(&self.encoder_convs(), self.compute())
    }

    /// Counts the operations of decoding one block.
    pub fn decode_operations(&self) -> f64 {
        self.config.dit.block_frames as f64 * conv_operations(&self.decoder_convs())
    }

    /// Counts the operations of encoding four video frames.
    pub fn encode_operations(&self) -> f64 {
        conv_operations(&self.encoder_convs())
    }

    /// Returns the bytes of the feature caches of the decoder, counted once.
    pub fn decoder_caches(&self) -> u64 {
        self.decoder_caches * self.compute()
    }

    /// Returns the bytes of the feature caches of the encoder, counted once.
    pub fn encoder_caches(&self) -> u64 {
        self.encoder_caches * self.compute()
    }

    /// Returns the most bytes of inner values at once in a VAE's graph, where pixels are whole and
    /// `full` is a tensor of the base width. A fused graph holds a residual block's input, its
    /// norm, the product with the gain, the join with two cached frames (half as much again) and
    /// its output. The figure of a CPU was measured at two sizes: its kernels hold unrolled copies,
    /// and the operators of the norm one tensor each.
    pub fn vae_activations(&self, kind: Kind) -> u64 {
        let full = bytes(self.config.vae.dim * TEMPORAL_STRIDE) * 64 * self.latent_pixels();
        let quarters = match kind {
            Kind::Gpu => 22,
            Kind::Cpu => 55,
        };
        full * self.compute() * quarters / 4
    }
}

/// Counts the elements of the caches that a graph of the VAE has in this model.
fn caches(config: &ModelConfig, size: Size, whole: &'static Contract) -> u64 {
    let contract = config.vae.contract(whole);
    let (h, w) = size.latent();
    let mut sizes = config.vae.bindings();
    sizes.extend([("H".to_owned(), h as i64), ("W".to_owned(), w as i64)]);
    let elements = |port: &engines::contract::Port| -> u64 {
        let dims = port.dims();
        dims.iter()
            .map(|d| d.eval(&sizes).unwrap_or_default().unsigned_abs())
            .product()
    };
    contract.state.iter().map(elements).sum()
}

/// Returns the bytes of convolutions: kernel, bias, and the gain of the norm before, in f32.
fn conv_weights(convs: &[Conv], compute: u64) -> u64 {
    let one = |c: &Conv| {
        let kernel = padded(c.kernel * c.input * c.output, compute);
        kernel + padded(c.output, compute) + padded(c.output, F32_BYTES)
    };
    convs.iter().map(|c| c.times * one(c)).sum()
}

fn conv_operations(convs: &[Conv]) -> f64 {
    convs
        .iter()
        .map(|c| 2.0 * (c.times * c.kernel * c.input * c.output) as f64 * c.pixels as f64)
        .sum()
}
