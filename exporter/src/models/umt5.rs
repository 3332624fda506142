//! The umT5 text encoder on unpadded ids. Every layer has its own table of relative positions, and
//! attention is not scaled. Names are the reference's: liveavatar/models/wan/wan_2_2/modules/t5.py
//! @ 9c2c38d. As in the reference, the whole encoder computes in the recipe's type; only the
//! statistics of norms and softmax are f32, inside their operators.
use crate::graph::{AttentionOptions, Builder, IntoDim, Scope, Transform, Value};
use crate::nn::{self, linear_no_bias as linear, rms_norm};
use engines::components::text::{self, TextConfig};

/// Longest text in tokens, the model's `text_len`.
pub(crate) const MAX_TOKENS: i64 = 512;
/// Distance from which all distances share the last bucket, `T5RelativeEmbedding.max_dist` of the
/// reference.
const MAX_DISTANCE: f32 = 128.0;
const EPS: f32 = 1e-6;

/// Builds `text_encoder`: ids `[1, t]` to rows `[1, t, T]`.
pub(crate) fn encoder<'g>(b: &'g Builder<'g>, c: &TextConfig) {
    let s = b.root();
    let ids = b.input(&text::IDS);
    let buckets = s.tap("relative_buckets", buckets(b, ids, c));
    let table = table(s.pp("token_embedding"), [c.vocab, c.dim]);
    let mut x = table.gather(ids, 0); // [1, t, T]
    for i in 0..c.layers {
        x = block(s.pp("blocks").pp(i), x, buckets, c);
    }
    b.output(&text::CONTEXT_ROWS, rms_norm(s.pp("norm"), x, EPS).to_f32());
}

/// Returns a table of rows in the type that the recipe computes in.
fn table<'g>(s: Scope<'g>, dims: [usize; 2]) -> Value<'g> {
    let dtype = s.builder().recipe().compute();
    s.weight_of(dtype, "weight", dims, Transform::Identity)
}

/// Mirrors `T5SelfAttention.forward` of the reference.
fn block<'g>(s: Scope<'g>, x: Value<'g>, buckets: Value<'g>, c: &TextConfig) -> Value<'g> {
    let x = x + attention(s, rms_norm(s.pp("norm1"), x, EPS), buckets, c);
    let f = s.pp("ffn");
    let y = rms_norm(s.pp("norm2"), x, EPS);
    let gated =
        linear(f.pp("fc1"), y, c.ffn_dim) * linear(f.pp("gate.0"), y, c.ffn_dim).gelu_tanh();
    s.out(x + f.out(linear(f.pp("fc2"), gated, c.dim)))
}

fn attention<'g>(s: Scope<'g>, y: Value<'g>, buckets: Value<'g>, c: &TextConfig) -> Value<'g> {
    let bias = table(s.pp("pos_embedding.embedding"), [c.buckets, c.heads]);
    // [t, t, N] -> [1, N, t, t]
    let bias = bias.gather(buckets, 0).transpose(&[2, 0, 1]).unsqueeze(0);
    let s = s.pp("attn");
    let head_dim = c.attn_dim / c.heads;
    let heads = |name: &str| {
        let x = linear(s.pp(name), y, c.attn_dim);
        x.reshape(&[x.dim(0), x.dim(1), c.heads.into_dim(), head_dim.into_dim()])
            .transpose(&[0, 2, 1, 3])
    };
    let options = AttentionOptions {
        scale: Some(1.0),
        mask: Some(bias),
        ..Default::default()
    };
    let o = nn::attention(heads("q"), heads("k"), heads("v"), options).transpose(&[0, 2, 1, 3]);
    s.out(linear(
        s.pp("o"),
        o.reshape(&[y.dim(0), y.dim(1), c.attn_dim.into_dim()]),
        c.dim,
    ))
}

/// Returns the bucket of every (query, key) pair, `[t, t]`. A table over distances is looked up by
/// key minus query.
fn buckets<'g>(b: &'g Builder<'g>, ids: Value<'g>, c: &TextConfig) -> Value<'g> {
    let table: Vec<i64> = (1 - MAX_TOKENS..MAX_TOKENS)
        .map(|d| bucket(d, c.buckets))
        .collect();
    let table = b.const_i64([table.len()], table);
    let position = ids.range_like(1); // [t]
    let offset = b.const_i64([1], vec![MAX_TOKENS - 1]);
    let distance = position.unsqueeze(0) - position.unsqueeze(1) + offset; // [t, t]
    table.gather(distance, 0)
}

/// Returns the bucket of a distance (key minus query). The sign selects a half; each small distance
/// has a bucket, and larger ones share buckets logarithmically. Mirrors
/// `T5RelativeEmbedding._relative_position_bucket` of the reference, in f32 as there.
pub(crate) fn bucket(distance: i64, buckets: usize) -> i64 {
    let half = buckets as i64 / 2;
    let exact = half / 2;
    let side = if distance > 0 { half } else { 0 };
    let n = distance.abs();
    if n < exact {
        return side + n;
    }
    let log = (n as f32 / exact as f32).ln() / (MAX_DISTANCE / exact as f32).ln();
    side + (exact + (log * (half - exact) as f32) as i64).min(half - 1)
}

#[cfg(test)]
mod tests {
    use super::bucket;

    #[test]
    fn buckets_are_exact_near_and_logarithmic_far() {
        for (distance, want) in [
            (0, 0),
            (-1, 1),
            (1, 17),
            (-7, 7),
            (7, 23),
            (-8, 8),
            (-16, 10),
            (-64, 14),
            (-128, 15),
            (-511, 15),
            (511, 31),
        ] {
            assert_eq!(bucket(distance, 32), want, "distance {distance}");
        }
    }
}
