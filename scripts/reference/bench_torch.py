#!/usr/bin/env python3
"""Times the components in straightforward PyTorch, f32 on the CPU, on any checkpoint in the published layout; prints JSON.

Not the reference and not tuned: plain torch operators and `scaled_dot_product_attention`, the same cut as the exported graphs (text keys and values
and the sink computed once, audio encoder apart), so that figures stand beside `avatar-run`'s on the same weights. All sizes come from the checkpoint.

  bench_torch.py CKPT [--size 256*256] [--threads 2] [--runs 5] [--only dit_call,...]
      CKPT holds Wan2.2-S2V-14B/ and perhaps LiveAvatar/; a LoRA changes no time, so it is merged for --check only
  bench_torch.py SET/ckpt --check SET     compares the same code with a golden set's numbers first; exit 7 when it is wrong

Needs torch, numpy and safetensors.
"""
import argparse
import functools
import json
import math
import statistics
import sys
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

TOLERANCE = 2e-4


# ------------------------------------------------------------------ small things
def lin(x, w, p):
    return F.linear(x, w[p + ".weight"], w.get(p + ".bias"))


def rms(x, g, eps=1e-6):
    return F.rms_norm(x, (x.shape[-1],), g, eps)


def ln(x, eps=1e-6, w=None, p=None):
    return F.layer_norm(x, (x.shape[-1],), w[p + ".weight"] if p else None, w[p + ".bias"] if p else None, eps)


def heads(x, n):
    """[.., L, n*d] -> [.., n, L, d]"""
    return x.unflatten(-1, (n, -1)).transpose(-3, -2)


def attend(q, k, v, **options):
    """Attention of q, k, v [.., n, L, d] -> [.., L, n*d]"""
    batched = q.dim() == 4
    if not batched:
        q, k, v = q[None], k[None], v[None]
    y = F.scaled_dot_product_attention(q, k, v, **options).transpose(1, 2).flatten(-2)
    return y if batched else y[0]


def floats(tensors):
    return {k: t.float() for k, t in tensors.items()}


def shard_files(folder, stem):
    index = folder / f"{stem}.safetensors.index.json"
    if not index.is_file():
        return [folder / f"{stem}.safetensors"]
    return [folder / f for f in sorted(set(json.loads(index.read_text())["weight_map"].values()))]


# ------------------------------------------------------------------ umT5 encoder
class TextEncoder:
    def __init__(self, folder):
        self.w = floats(torch.load(next(folder.glob("models_t5*.pth")), weights_only=True))
        self.n = self.w["blocks.0.pos_embedding.embedding.weight"].shape[1]
        self.layers = 1 + max(int(k.split(".")[1]) for k in self.w if k.startswith("blocks."))

    def buckets(self, length):
        i = torch.arange(length)
        rel = i[None] - i[:, None]
        a = rel.abs()
        far = 8 + (torch.log(a.float().clamp(min=1) / 8) / math.log(128 / 8) * 8).long()
        return (rel > 0).long() * 16 + torch.where(a < 8, a, far.clamp(max=15))

    def __call__(self, ids):
        w, x, b = self.w, self.w["token_embedding.weight"][ids], self.buckets(len(ids))
        for i in range(self.layers):
            p = f"blocks.{i}."
            y = rms(x, w[p + "norm1.weight"])
            q, k, v = (heads(lin(y, w, p + f"attn.{c}"), self.n) for c in "qkv")
            bias = w[p + "pos_embedding.embedding.weight"][b].permute(2, 0, 1)[None]
            x = x + lin(attend(q, k, v, attn_mask=bias, scale=1.0), w, p + "attn.o")
            y = rms(x, w[p + "norm2.weight"])
            x = x + lin(lin(y, w, p + "ffn.fc1") * F.gelu(lin(y, w, p + "ffn.gate.0"), approximate="tanh"), w, p + "ffn.fc2")
        return rms(x, w["norm.weight"])


# ------------------------------------------------------------------ wav2vec2
class SpeechEncoder:
    def __init__(self, folder):
        folder = next(folder.glob("wav2vec2*"))
        file = folder / "model.safetensors"
        self.w = floats(load_file(file) if file.is_file() else torch.load(folder / "pytorch_model.bin", weights_only=True))
        self.c = json.loads((folder / "config.json").read_text())
        p = "wav2vec2.encoder.pos_conv_embed.conv."
        names = [p + "weight_g", p + "weight_v"]
        if names[0] not in self.w:
            names = [p + "parametrizations.weight.original0", p + "parametrizations.weight.original1"]
        g, v = (self.w[n] for n in names)
        self.kernel, self.bias = g * v / v.pow(2).sum((0, 1), keepdim=True).sqrt(), self.w[p + "bias"]

    def __call__(self, values):
        """[samples] normalised -> [states, T50, dim]"""
        w, c, n = self.w, self.c, self.c["num_attention_heads"]
        x = values[None, None]
        for i, stride in enumerate(c["conv_stride"]):
            p = f"wav2vec2.feature_extractor.conv_layers.{i}."
            y = F.conv1d(x, w[p + "conv.weight"], w.get(p + "conv.bias"), stride=stride).transpose(1, 2)
            x = F.gelu(ln(y, 1e-5, w, p + "layer_norm")).transpose(1, 2)
        p = "wav2vec2.feature_projection."
        x = lin(ln(x.transpose(1, 2), 1e-5, w, p + "layer_norm"), w, p + "projection")
        k = self.kernel.shape[-1]
        y = F.conv1d(x.transpose(1, 2), self.kernel, self.bias, padding=k // 2, groups=c["num_conv_pos_embedding_groups"])
        x = x + F.gelu(y[..., : x.shape[1]]).transpose(1, 2)
        states = []
        for i in range(c["num_hidden_layers"]):
            states.append(x)
            p = f"wav2vec2.encoder.layers.{i}."
            y = ln(x, 1e-5, w, p + "layer_norm")
            q, kk, v = (heads(lin(y, w, p + f"attention.{c}_proj"), n) for c in "qkv")
            x = x + lin(attend(q, kk, v), w, p + "attention.out_proj")
            y = lin(ln(x, 1e-5, w, p + "final_layer_norm"), w, p + "feed_forward.intermediate_dense")
            x = x + lin(F.gelu(y), w, p + "feed_forward.output_dense")
        return torch.cat(states + [ln(x, 1e-5, w, "wav2vec2.encoder.layer_norm")])


# ------------------------------------------------------------------ VAE decoder, streaming
class VaeDecoder:
    def __init__(self, folder):
        self.w = floats(torch.load(folder / "Wan2.1_VAE.pth", weights_only=True))
        self.latent = self.w["conv2.weight"].shape[1]
        self.reset()

    def reset(self):
        self.cache, self.first = {}, True

    def conv(self, x, p):
        """Causal in time: the last two input frames are kept, zeros before the first."""
        k = self.w[p + ".weight"]
        t = k.shape[2] - 1
        if t:
            old = self.cache.get(p)
            x = torch.cat([old if old is not None else x.new_zeros(1, x.shape[1], t, *x.shape[3:]), x], 2)
            self.cache[p] = x[:, :, -t:]
        return F.conv3d(x, k, self.w[p + ".bias"], padding=(0, k.shape[3] // 2, k.shape[4] // 2))

    def norm(self, x, p):
        return F.normalize(x, dim=1) * x.shape[1] ** 0.5 * self.w[p + ".gamma"].view(1, -1, 1, 1, 1)

    def residual(self, x, p):
        s = self.conv(x, p + "shortcut") if p + "shortcut.weight" in self.w else x
        y = self.conv(F.silu(self.norm(x, p + "residual.0")), p + "residual.2")
        return s + self.conv(F.silu(self.norm(y, p + "residual.3")), p + "residual.6")

    def attention(self, x, p):
        y = self.norm(x, p + "norm")[0].transpose(0, 1)
        q, k, v = F.conv2d(y, self.w[p + "to_qkv.weight"], self.w[p + "to_qkv.bias"]).flatten(2).transpose(1, 2)[:, None].chunk(3, -1)
        z = attend(q, k, v).transpose(1, 2).view(y.shape)
        return x + F.conv2d(z, self.w[p + "proj.weight"], self.w[p + "proj.bias"]).transpose(0, 1)[None]

    def upsample(self, x, p):
        if p + "time_conv.weight" in self.w and not self.first:
            a, b = self.conv(x, p + "time_conv").chunk(2, 1)
            x = torch.stack([a, b], 3).flatten(2, 3)
        y = F.interpolate(x[0].transpose(0, 1), scale_factor=2.0, mode="nearest-exact")
        return F.conv2d(y, self.w[p + "resample.1.weight"], self.w[p + "resample.1.bias"], padding=1).transpose(0, 1)[None]

    def walk(self, x, root):
        i = 0
        while any(k.startswith(f"{root}.{i}.") for k in self.w):
            p = f"{root}.{i}."
            step = self.residual if p + "residual.0.gamma" in self.w else self.attention if p + "to_qkv.weight" in self.w else self.upsample
            x, i = step(x, p), i + 1
        return x

    def __call__(self, z):
        """[16, T, h, w], already de-normalised -> [3, frames, 8h, 8w]; goes on where the last call ended."""
        x, out = self.conv(z[None], "conv2"), []
        for i in range(x.shape[2]):
            y = self.walk(self.walk(self.conv(x[:, :, i : i + 1], "decoder.conv1"), "decoder.middle"), "decoder.upsamples")
            out.append(self.conv(F.silu(self.norm(y, "decoder.head.0")), "decoder.head.2"))
            self.first = False
        return torch.cat(out, 2)[0].clamp(-1, 1)


# ------------------------------------------------------------------ DiT
class Dit:
    def __init__(self, folder, h, w, lora=None, lora_scale=0.5):
        self.c = json.loads((folder / "config.json").read_text())
        self.w = {}
        for file in shard_files(folder, "diffusion_pytorch_model"):
            self.w |= load_file(file)
        if lora:
            self.merge(lora, lora_scale)
        self.w = floats(self.w)
        self.h, self.q = h, w
        self.dim, self.n, self.layers = self.c["dim"], self.c["num_heads"], self.c["num_layers"]
        self.d = self.dim // self.n
        self.inject = {layer: i for i, layer in enumerate(sorted(self.c["audio_inject_layers"]))}
        self.latent = self.w["patch_embedding.weight"].shape[1]
        self.text_dim = self.w["text_embedding.0.weight"].shape[1]
        self.audio_dim = self.w["casual_audio_encoder.encoder.conv1_local.conv.weight"].shape[1]
        self.audio_states = self.w["casual_audio_encoder.weights"].shape[1]
        self.block = 3 * h * w
        ring = 4 * self.block
        self.keys = [torch.zeros(self.n, ring, self.d) for _ in range(self.layers)]
        self.values = [torch.zeros(self.n, ring, self.d) for _ in range(self.layers)]
        self.sink_kv, self.text_kv = [None] * self.layers, [None] * self.layers

    def merge(self, file, scale):
        lora = {k.removeprefix("base_model.model."): t.float() for k, t in load_file(file).items()}
        for k in lora:
            m = k.removesuffix(".lora_A.default.weight")
            if m != k:
                base = self.w[m + ".weight"]
                self.w[m + ".weight"] = (base.float() + scale * (lora[m + ".lora_B.default.weight"] @ lora[k])).to(base.dtype)

    def rope_table(self, groups):
        half = self.d // 2
        parts = [half - 2 * (half // 3), half // 3, half // 3]
        inverse = [10000.0 ** (-np.arange(n) / n) for n in parts]
        a = np.array([np.concatenate([f * inverse[0], r * inverse[1], c * inverse[2]]) for fs, rs, cs in groups for f in fs for r in rs for c in cs])
        return torch.from_numpy(np.cos(a)).float(), torch.from_numpy(np.sin(a)).float()

    @functools.cache  # a host's work, not the model's: built once, outside the timed runs
    def block_rope(self, f0):
        return self.rope_table([(range(f0, f0 + 3), range(self.h), range(self.q))])

    @functools.cache
    def sink_rope(self, shift):
        h, q = self.h, self.q
        at = lambda n, m: np.linspace(0, n - 1, m).astype(int)
        return self.rope_table([([30 + shift], range(h), range(q)), ([-1], range(h), range(q)), ([-3], at(h, h // 2), at(q, q // 2)),
                                ([-19, -14, -9, -4], at(h, h // 4), at(q, q // 4))])

    def rotate(self, x, table):
        """[n, L, d], interleaved pairs"""
        cos, sin = table
        a, b = x.unflatten(-1, (-1, 2)).unbind(-1)
        return torch.stack([a * cos - b * sin, a * sin + b * cos], -1).flatten(-2)

    def times(self, t):
        a = torch.tensor([[t]], dtype=torch.float64) * 10000.0 ** (-torch.arange(128, dtype=torch.float64) / 128)
        e = lin(F.silu(lin(torch.cat([a.cos(), a.sin()], 1).float(), self.w, "time_embedding.0")), self.w, "time_embedding.2")
        return e[0], lin(F.silu(e), self.w, "time_projection.1").view(6, self.dim)

    def kv(self, x, p):
        k = rms(lin(x, self.w, p + "k"), self.w[p + "norm_k.weight"])
        return heads(k, self.n), heads(lin(x, self.w, p + "v"), self.n)

    def query(self, x, p):
        return heads(rms(lin(x, self.w, p + "q"), self.w[p + "norm_q.weight"]), self.n)

    def layer(self, i, x, e0, self_attention):
        p, w = f"blocks.{i}.", self.w
        s1, c1, g1, s2, c2, g2 = w[p + "modulation"][0] + e0
        y = ln(x) * (1 + c1) + s1
        sa = p + "self_attn."
        x = x + lin(self_attention(i, self.query(y, sa), *self.kv(y, sa)), w, sa + "o") * g1
        ca = p + "cross_attn."
        x = x + lin(attend(self.query(ln(x, 1e-6, w, p + "norm3"), ca), *self.text_kv[i]), w, ca + "o")
        y = F.gelu(lin(ln(x) * (1 + c2) + s2, w, p + "ffn.0"), approximate="tanh")
        return x + lin(y, w, p + "ffn.2") * g2

    def patches(self, x, p):
        k = self.w[p + ".weight"]
        return F.conv3d(x[None], k, self.w[p + ".bias"], stride=k.shape[2:])[0].flatten(1).T

    def sink(self, ref, motion, context):
        """Fills every layer's sink and text keys and values."""
        text = torch.zeros(512, self.text_dim)
        text[: len(context)] = context
        text = lin(F.gelu(lin(text, self.w, "text_embedding.0"), approximate="tanh"), self.w, "text_embedding.2")
        self.text_kv = [self.kv(text, f"blocks.{i}.cross_attn.") for i in range(self.layers)]
        m = self.w["trainable_cond_mask.weight"]
        packed = [self.patches(motion[:, 18:], "frame_packer.proj"), self.patches(motion[:, 16:18], "frame_packer.proj_2x"),
                  self.patches(motion[:, :16], "frame_packer.proj_4x")]
        x = torch.cat([self.patches(ref, "patch_embedding") + m[1], torch.cat(packed) + m[2]])
        table = self.sink_rope(0)
        _, e0 = self.times(0.0)

        def self_attention(i, q, k, v):
            self.sink_kv[i] = (k, v)
            return attend(self.rotate(q, table), self.rotate(k, table), v)

        for i in range(self.layers):
            x = self.layer(i, x, e0, self_attention)
        return x

    def audio(self, a):
        """[A, states, C, 12] -> global [A, 3, D], local [A, 3, 5, D]"""
        w, p = self.w, "casual_audio_encoder."
        x = torch.cat([a[..., :1].expand(-1, -1, -1, 73), a], -1)
        s = F.silu(w[p + "weights"])
        x = (x * s / s.sum()).sum(1)
        p += "encoder."

        def conv(y, name, stride=1):
            return F.conv1d(F.pad(y, (2, 0), mode="replicate"), w[p + name + ".conv.weight"], w[p + name + ".conv.bias"], stride=stride)

        def tail(y):
            act = lambda u: F.silu(ln(u.transpose(1, 2))).transpose(1, 2)
            return act(conv(act(conv(act(y), "conv2", 2)), "conv3", 2)).transpose(1, 2)

        n = a.shape[0]
        local = tail(conv(x, "conv1_local").unflatten(1, (4, -1)).flatten(0, 1)).unflatten(0, (n, 4)).transpose(1, 2)
        local = torch.cat([local, w[p + "padding_tokens"].expand(n, local.shape[1], 1, -1)], 2)
        return lin(tail(conv(x, "conv1_global")), w, p + "final_linear")[:, 19:], local[:, 19:]

    def injection(self, i, x, glo, local):
        """Audio residual of one actor: every frame's tokens look at that frame's five audio tokens."""
        p = f"audio_injector.injector.{i}."
        shift, scale = lin(F.silu(glo), self.w, f"audio_injector.injector_adain_layers.{i}.linear").chunk(2, -1)
        z = ln(x, 1e-5).view(3, -1, self.dim) * (1 + scale[:, None]) + shift[:, None]
        return lin(attend(self.query(z, p), *self.kv(local, p)), self.w, p + "o").flatten(0, 1)

    def call(self, x, t, pose, audio, start, rel):
        """One forward of one block of 3 latent frames: [16, 3, 2h, 2w] -> noise prediction of that shape."""
        f0, ring = start // (self.h * self.q), self.keys[0].shape[1]
        e, e0 = self.times(t)
        table, sink_table = self.block_rope(f0), self.sink_rope(max(0, f0 - (30 - rel)))
        x = self.patches(x, "patch_embedding") + self.patches(pose, "cond_encoder") + self.w["trainable_cond_mask.weight"][0]
        slot = start % ring
        seen = min(start + self.block, ring)

        def self_attention(i, q, k, v):
            self.keys[i][:, slot : slot + self.block] = self.rotate(k, table)
            self.values[i][:, slot : slot + self.block] = v
            sk, sv = self.sink_kv[i]
            return attend(self.rotate(q, table), torch.cat([self.keys[i][:, :seen], self.rotate(sk, sink_table)], 1),
                          torch.cat([self.values[i][:, :seen], sv], 1))

        glo, local = audio
        for i in range(self.layers):
            x = self.layer(i, x, e0, self_attention)
            if i in self.inject:
                x = x + self.injection(self.inject[i], x, glo[0], local[0])
        shift, scale = self.w["head.modulation"][0] + e
        y = lin(ln(x) * (1 + scale) + shift, self.w, "head.head").view(3, self.h, self.q, 2, 2, -1)
        return y.permute(5, 0, 1, 3, 2, 4).reshape(-1, 3, 2 * self.h, 2 * self.q)


# ------------------------------------------------------------------ check and bench
def check(folder, golden):
    """Whether what is timed computes the right thing."""
    gold = lambda name: load_file(golden / "golden" / f"{name}.safetensors")
    manifest = json.loads((golden / "golden" / "manifest.json").read_text(encoding="utf-8"))
    worst = {}
    far = lambda name, got, want: worst.update({name: (got - want).abs().max().item()})
    text = gold("text")
    n = int(text["en.mask"].sum())
    far("text_encoder", TextEncoder(folder)(text["en.ids"][0, :n]), text["en.t5"])
    audio = gold("audio")
    far("speech_encoder", SpeechEncoder(folder)(audio["a16k.input_values"][0]), audio["a16k.hidden_states"])
    vae, z = VaeDecoder(folder), gold("vae")["decode.latents"]
    mean, std = (torch.tensor(manifest["values"]["vae"][k]).view(-1, 1, 1, 1) for k in ("mean", "std"))
    z = z * std + mean
    vae(z[:, :7])
    far("vae_block", vae(z[:, 7:10]), gold("vae_stream")["block0.frames"])
    s, b, c = gold("dit_sink"), gold("dit_blocks"), gold("causal_audio")
    _, _, _, h, w = s["ref_latents"].shape
    dit = Dit(folder, h // 2, w // 2, golden / "ckpt/LiveAvatar/liveavatar.safetensors", manifest["values"]["lora"]["scale"])
    far("audio_adapter", dit.audio(c["one.audio_input"])[1], c["one.local"])
    dit.sink(s["ref_latents"][0], s["motion_latents"][0], s["context"])
    for k in range(6):
        pose = b.get(f"block{k}.cond_states", torch.zeros(1, 16, 3, h, w))[0]
        bucket = audio["a16k.bucket"][..., 12 * k : 12 * k + 12]
        y = dit.call(b[f"block{k}.x"], manifest["values"]["dit_blocks"]["timestep"], pose, dit.audio(bucket), k * dit.block,
                     manifest["values"]["dit_blocks"]["relative_dist"][k])
        far(f"dit_call.block{k}", y, b[f"block{k}.noise_pred"])
    return worst


def timed(runs, f):
    """Milliseconds: median and least of the runs, after one that is not counted."""
    f()
    took = []
    for _ in range(runs):
        t = time.perf_counter()
        f()
        took.append((time.perf_counter() - t) * 1e3)
    return {"median_ms": round(statistics.median(took), 3), "min_ms": round(min(took), 3)}


def bench(folder, height, width, runs, only):
    results = {}
    torch.manual_seed(0)

    def put(name, shapes, f):
        if not only or name in only:
            results[name] = timed(runs, f) | shapes
            print(f"bench_torch: {name} {results[name]['median_ms']} ms", file=sys.stderr)

    wants = lambda *names: not only or any(n in only for n in names)
    if wants("text_encoder_100", "text_encoder_512"):
        text = TextEncoder(folder)
        rows, dim = text.w["token_embedding.weight"].shape
        for n in (100, 512):
            ids = torch.randint(0, rows, (n,))
            put(f"text_encoder_{n}", {"ids": [n], "context": [n, dim], "layers": text.layers}, lambda ids=ids: text(ids))
        del text
    if wants("speech_encoder_5s"):
        speech, x = SpeechEncoder(folder), torch.randn(80000)
        put("speech_encoder_5s", {"samples": [80000], "states": list(speech(x).shape)}, lambda: speech(x))
        del speech
    if wants("vae_block"):
        vae = VaeDecoder(folder)
        z = torch.randn(vae.latent, 3, height // 8, width // 8)
        vae(z)  # the first latent frame of a stream is a special case; a block in mid-stream is timed
        put("vae_block", {"latents": list(z.shape), "frames": list(vae(z).shape)}, lambda: vae(z))
        del vae
    if wants("dit_sink", "dit_call", "audio_adapter"):
        h, w = height // 16, width // 16
        dit = Dit(folder, h, w)
        latents = lambda frames: torch.randn(dit.latent, frames, 2 * h, 2 * w)
        ref, motion, context = latents(1), latents(19), torch.randn(100, dit.text_dim)
        sink = dit.sink(ref, motion, context)
        put("dit_sink", {"ref_latents": list(ref.shape), "motion_latents": list(motion.shape), "tokens": list(sink.shape)},
            lambda: dit.sink(ref, motion, context))
        a = torch.randn(1, dit.audio_states, dit.audio_dim, 12)
        put("audio_adapter", {"audio": list(a.shape), "local": list(dit.audio(a)[1].shape)}, lambda: dit.audio(a))
        x, pose, audio = latents(3), torch.zeros(dit.latent, 3, 2 * h, 2 * w), dit.audio(a)
        put("dit_call", {"latents": list(x.shape), "tokens": [dit.block, dit.dim], "ring_tokens": 4 * dit.block, "sink_tokens": sink.shape[0],
                         "layers": dit.layers, "parameters": sum(t.numel() for t in dit.w.values())},
            lambda: dit.call(x, 857.6923, pose, audio, 5 * dit.block, 17))
    return results


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("ckpt", type=Path)
    p.add_argument("--size", default="256*256", help="width*height in pixels, multiples of 64")
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--runs", type=int, default=5)
    p.add_argument("--only", default="", help="names from the output, by comma")
    p.add_argument("--check", type=Path, metavar="SET")
    a = p.parse_args()
    folder = a.ckpt / "Wan2.2-S2V-14B" if (a.ckpt / "Wan2.2-S2V-14B").is_dir() else a.ckpt
    width, height = (int(v) for v in a.size.replace("x", "*").split("*"))
    if width % 64 or height % 64 or min(width, height) < 64:
        p.error(f"--size {a.size}: multiples of 64 wanted")
    torch.set_num_threads(a.threads)
    out = {"torch": torch.__version__, "threads": a.threads, "size": [width, height], "runs": a.runs}
    with torch.inference_mode():
        if a.check:
            out["worst_difference"] = check(folder, a.check)
            wrong = [k for k, v in out["worst_difference"].items() if not v <= TOLERANCE]
            if wrong:
                print(json.dumps(out, indent=1))
                print(f"bench_torch: wrong beyond {TOLERANCE}: {', '.join(wrong)}", file=sys.stderr)
                return 7
        out["components"] = bench(folder, height, width, a.runs, set(filter(None, a.only.split(","))))
    print(json.dumps(out, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
