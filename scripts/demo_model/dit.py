"""The S2V transformer with the published parameter names, for training: all blocks of a clip at once.

Step i of the pipeline attends to the ring of step i, which holds the keys of earlier blocks at the same sigma. One forward pass over a clip whose blocks
all have one sigma, with a block-causal attention and the sink in front, therefore computes what the wavefront computes.
"""
import math

import numpy as np
import torch
import torch.nn.functional as F

from stage import HALF

DIM, HEADS, FFN, LAYERS, INJECT = 160, 2, 640, 3, (0, 1)
AUDIO, TEXT, STATES, FREQ, TEXT_LENGTH = 32, 64, 25, 256, 512
LATENTS, PATCH = 16, 64
FRAMES = 3  # latent frames of a block
HEARD = "casual_audio_encoder.weights"  # shares of the hidden states; stays as it starts
LORA_RANK, LORA_SCALE = 8, 0.5
BRANCHES = 0.02  # length of what a branch adds at the start
CONSTANT = 2.5  # length of a part of every token that does not change: it keeps layer norms nearly linear


# ------------------------------------------------------------------ parameters
def shapes():
    """Names and shapes of all tensors, as published."""
    d, out = DIM, {}

    def linear(name, o, i):
        out[name + ".weight"], out[name + ".bias"] = (o, i), (o,)

    def attention(name):
        for c in "qkvo":
            linear(f"{name}.{c}", d, d)
        out[f"{name}.norm_q.weight"] = out[f"{name}.norm_k.weight"] = (d,)

    for i in range(LAYERS):
        p = f"blocks.{i}"
        out[f"{p}.modulation"] = (1, 6, d)
        attention(f"{p}.self_attn")
        attention(f"{p}.cross_attn")
        out[f"{p}.norm3.weight"] = out[f"{p}.norm3.bias"] = (d,)
        linear(f"{p}.ffn.0", FFN, d)
        linear(f"{p}.ffn.2", d, FFN)
    for i in range(len(INJECT)):
        attention(f"audio_injector.injector.{i}")
        linear(f"audio_injector.injector_adain_layers.{i}.linear", 2 * d, d)
    p = "casual_audio_encoder."
    out[p + "weights"], out[p + "encoder.padding_tokens"] = (1, STATES, 1, 1), (1, 1, 1, d)
    for name, o, i in (("conv1_global", d // 4, AUDIO), ("conv1_local", d, AUDIO), ("conv2", d // 2, d // 4), ("conv3", d, d // 2)):
        out[f"{p}encoder.{name}.conv.weight"], out[f"{p}encoder.{name}.conv.bias"] = (o, i, 3), (o,)
    linear(p + "encoder.final_linear", d, d)
    for name, kernel in (("patch_embedding", (1, 2, 2)), ("cond_encoder", (1, 2, 2)), ("frame_packer.proj", (1, 2, 2)), ("frame_packer.proj_2x", (2, 4, 4)), ("frame_packer.proj_4x", (4, 8, 8))):
        out[name + ".weight"], out[name + ".bias"] = (d, LATENTS, *kernel), (d,)
    linear("head.head", PATCH, d)
    out["head.modulation"] = (1, 2, d)
    for name, o, i in (("text_embedding.0", d, TEXT), ("text_embedding.2", d, d), ("time_embedding.0", d, FREQ), ("time_embedding.2", d, d), ("time_projection.1", 6 * d, d)):
        linear(name, o, i)
    out["trainable_cond_mask.weight"] = (3, d)
    return out


def sigmas(n=4):
    """The schedule of n steps with a shift of 3, and the 0 at its end."""
    u = np.linspace(1.0, 0.003 / 1.002, n)
    return torch.tensor(np.append(3 * u / (1 + 2 * u), 0.0), dtype=torch.float32)


def parts(half):
    """How the rotary pairs of a head are shared by frame, row and column."""
    return half - 2 * (half // 3), half // 3, half // 3


def start():
    """A start that shows a still picture: tokens carry x_t, the first layer copies the reference's token at the same place into other channels (a head that
    looks at positions), the head subtracts one from the other and divides by sigma."""
    w, d = {}, DIM // HEADS
    generator = torch.Generator().manual_seed(0)
    random = lambda *s: torch.randn(*s, generator=generator)
    constant = CONSTANT * torch.where(torch.randperm(DIM, generator=generator) < DIM // 2, 1.0, -1.0)
    basis = torch.linalg.qr(torch.cat([torch.ones(DIM, 1), constant[:, None], random(DIM, 2 * PATCH + 1)], 1))[0]
    x, y, mark = basis[:, 2 : 2 + PATCH], basis[:, 2 + PATCH : 2 + 2 * PATCH], basis[:, 2 + 2 * PATCH]  # channels of x_t, of the copy, and the mark of reference tokens
    first = math.sqrt(CONSTANT**2 + 2 * PATCH / DIM)  # what a layer norm divides by, at the start and at the end
    last = math.sqrt(CONSTANT**2 + 3 * PATCH / DIM)
    for name, s in shapes().items():
        leaf = name.split(".")[-1]
        if "norm" in name and leaf == "weight":
            t = torch.ones(s)
        elif leaf == "bias" or name.endswith("modulation") or name.startswith("trainable_cond_mask"):
            t = torch.zeros(s)
        else:
            t = random(*s) / math.sqrt(max(1, int(np.prod(s[1:]))))
        if name.startswith(("time_projection", "time_embedding.2")) and leaf == "weight":
            t *= 0.1
        if "adain_layers" in name and leaf == "weight":
            t *= 0.2
        if name.endswith((".o.weight", "ffn.2.weight")):
            t *= 10 * BRANCHES if "audio" in name else BRANCHES
        if "cross_attn.norm" in name:
            t *= 2
        if "proj_2x" in name or "proj_4x" in name:
            t *= 0.1  # else old motion is mistaken for the reference
        if name in ("patch_embedding.weight", "frame_packer.proj.weight"):
            t = x.clone().view(s)
        if name == "patch_embedding.bias" or "frame_packer" in name and leaf == "bias":
            t = constant.clone()
        if name == "head.head.weight":  # tokens are (c, row, column) at the input, (row, column, c) at the output
            t = last * (x - y).view(DIM, LATENTS, 4).permute(2, 1, 0).reshape(PATCH, DIM)
        if name.endswith("modulation") and "blocks" in name:
            t[:, 2], t[:, 5] = 1.0, 1.0
        if name == HEARD:
            t = torch.zeros(s)  # SiLU(0) = 0: only the last hidden state is heard
            t[:, -1] = 1.0
        w[name] = t
    w["trainable_cond_mask.weight"][:] = torch.tensor([-1.0, 1, -1])[:, None] * 8 * mark  # equal lengths: a norm must not tell them apart
    frame, row, _ = parts(d // 2)
    fine = [2 * (frame + g * row + j) + r for g in (0, 1) for j in range(6) for r in (0, 1)]  # fast row and column frequencies of the first head
    slow = [2 * j + r for j in range(frame - 10, frame) for r in (0, 1)]  # slow frame frequencies hardly turn
    for i in range(LAYERS):
        p = f"blocks.{i}.self_attn."
        for n in "qk":
            w[p + n + ".bias"][:] = 1.0
            # Content hardly counts at first: it would change the norm of keys, and with it who is looked at.
            w[p + n + ".weight"][:d] *= 0.02 if i == 0 else 0.1
            w[p + n + ".weight"][d:] *= 0.1 if i == 0 else 0.5
            w[p + f"norm_{n}.weight"][fine] = 8.0
        if i == 0:
            w[p + "k.bias"][slow] = 0.0
            w[p + "k.weight"][slow] += 0.5 * mark * first / 1.22
            w[p + "v.weight"][:PATCH] = x.T
            w[p + "o.weight"][:, :PATCH] = 1.03 * first * y
    t = sigmas(4) * 1000  # e(t) = 1 / sigma - 1 in all channels
    angle = t.double()[:, None] * 10000.0 ** (-torch.arange(FREQ // 2, dtype=torch.float64) / (FREQ // 2))
    f = F.silu(F.linear(torch.cat([angle.cos(), angle.sin()], 1).float(), w["time_embedding.0.weight"], w["time_embedding.0.bias"]))
    want = torch.tensor([0.0, 1 / 0.857692 - 1, 1 / 0.602151 - 1, 0.0, 0.0])
    w["time_embedding.2.weight"] += torch.linalg.lstsq(f, want[:, None], driver="gelsd").solution.T.expand(DIM, -1)
    return w


def adapted(w):
    """Names of the weights that the LoRA changes, as published: all projections of attentions and feed-forwards."""
    return [k for k in w if k.endswith(tuple(f".{c}.weight" for c in "qkvo") + ("ffn.0.weight", "ffn.2.weight"))]


# ------------------------------------------------------------------ network
def norm(x, eps=1e-6):
    return F.layer_norm(x, x.shape[-1:], None, None, eps)


def linear(x, w, b):
    if HALF:
        return F.linear(x.bfloat16(), w.bfloat16(), b.bfloat16()).float()
    return F.linear(x, w, b)


def rotate(x, table):
    """[B, L, heads, d] by tables [L, d/2]; interleaved pairs."""
    c, s = table[0][:, None], table[1][:, None]
    a, b = x[..., 0::2], x[..., 1::2]
    return torch.stack([a * c - b * s, a * s + b * c], -1).flatten(-2)


def attend(q, k, v, bias=None):
    half = HALF and k.shape[1] > 256  # short rows are faster as they are
    q, k, v = ((x.bfloat16() if half else x).transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias).transpose(1, 2).flatten(2).float()


def padded(contexts, longest):
    """Contexts [tokens, width] of B prompts: [B, longest + 1, width] and the logits' bias [B, 1, 1, longest + 1]. The last row stands for all zero rows up to 512."""
    rows, bias = torch.zeros(len(contexts), longest + 1, TEXT), torch.full((len(contexts), 1, 1, longest + 1), -math.inf)
    for i, c in enumerate(contexts):
        rows[i, : len(c)], bias[i, ..., : len(c)], bias[i, ..., -1] = c, 0.0, math.log(TEXT_LENGTH - len(c))
    return rows, bias


def tokens(x):
    """Cuts [B, 16, T, H, W] into patches, [B, T, tokens, 64], as the head gives them: (row, column, channel)."""
    return x.unflatten(4, (-1, 2)).unflatten(3, (-1, 2)).permute(0, 2, 3, 5, 4, 6, 1).flatten(4).flatten(2, 3)


class Dit:
    """Weights `w` by name; `rows` and `columns` are the tokens of a frame.

    With `keep` (numbers of tokens in a frame) only these are computed, at their true places: a part of the work, and attention sees near and far.
    """

    def __init__(self, w, rows, columns, keep=None):
        self.w, self.rows, self.columns = w, rows, columns
        self.keep = torch.arange(rows * columns) if keep is None else keep
        self.inverse = [10000.0 ** (-np.arange(n) / n) for n in parts(DIM // HEADS // 2)]

    def lin(self, x, p):
        return linear(x, self.w[p + ".weight"], self.w[p + ".bias"])

    def rms(self, x, p):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * self.w[p + ".weight"]

    def heads(self, x):
        return x.unflatten(-1, (HEADS, -1))

    def table(self, frames, rows, columns):
        f, r, c = self.inverse
        grid = np.stack(np.meshgrid(*map(np.asarray, (frames, rows, columns)), indexing="ij"), -1).reshape(-1, 3)
        a = np.concatenate([grid[:, :1] * f, grid[:, 1:2] * r, grid[:, 2:] * c], 1)
        return torch.from_numpy(np.cos(a)).float(), torch.from_numpy(np.sin(a)).float()

    def frame_table(self, frames):
        tables = self.table(frames, range(self.rows), range(self.columns))
        return tuple(t.unflatten(0, (len(frames), -1))[:, self.keep].flatten(0, 1) for t in tables)

    def motion_table(self):
        at = lambda n, m: np.linspace(0, n - 1, m).astype(int)
        h, q = self.rows, self.columns
        tables = [self.frame_table([-1]), self.table([-3], at(h, h // 2), at(q, q // 2)), self.table([-19, -14, -9, -4], at(h, h // 4), at(q, q // 4))]
        return tuple(torch.cat(t) for t in zip(*tables))

    def time(self, t):
        a = t.double()[:, None] * 10000.0 ** (-torch.arange(FREQ // 2, dtype=torch.float64) / (FREQ // 2))
        e = self.lin(F.silu(self.lin(torch.cat([a.cos(), a.sin()], 1).float(), "time_embedding.0")), "time_embedding.2")
        return e, self.lin(F.silu(e), "time_projection.1").view(-1, 6, DIM)

    def patch(self, x, p):
        """[B, 16, T, H, W] -> [B, tokens, DIM]"""
        k = self.w[p + ".weight"]
        if k.shape[2:] == (1, 2, 2):
            x = x.unflatten(4, (-1, 2)).unflatten(3, (-1, 2)).permute(0, 2, 3, 5, 1, 4, 6).flatten(4).flatten(2, 3)[:, :, self.keep].flatten(1, 2)
            return linear(x, k.flatten(1), self.w[p + ".bias"])
        return F.conv3d(x, k, self.w[p + ".bias"], stride=k.shape[2:]).flatten(2).transpose(1, 2)

    def audio(self, a):
        """The last hidden state of one block each, [B, 12, width], to global [B, 3, DIM] and local [B, 3, 5, DIM] tokens."""
        w, p = self.w, "casual_audio_encoder."
        x = torch.cat([a[:, :1].expand(-1, 13, -1), a], 1).transpose(1, 2)  # 13 copies in front give what the pipeline's 73 give
        p += "encoder."
        conv = lambda y, n, stride=1: F.conv1d(torch.cat([y[..., :1], y[..., :1], y], -1), w[p + n + ".conv.weight"], w[p + n + ".conv.bias"], stride=stride)
        act = lambda u: F.silu(norm(u.transpose(1, 2))).transpose(1, 2)
        tail = lambda y: act(conv(act(conv(act(y), "conv2", 2)), "conv3", 2)).transpose(1, 2)[:, -FRAMES:]
        b = len(a)
        local = tail(conv(x, "conv1_local").unflatten(1, (4, -1)).flatten(0, 1)).unflatten(0, (b, 4)).transpose(1, 2)
        local = torch.cat([local, w[p + "padding_tokens"].expand(b, FRAMES, 1, -1)], 2)
        return self.lin(tail(conv(x, "conv1_global")), p + "final_linear"), local

    def text(self, rows):
        return self.lin(F.gelu(self.lin(rows, "text_embedding.0"), approximate="tanh"), "text_embedding.2")

    def layer(self, i, x, e0, text, self_attention):
        p, w = f"blocks.{i}.", self.w
        s1, c1, g1, s2, c2, g2 = (w[p + "modulation"] + e0).unsqueeze(2).unbind(1)
        y, s = norm(x) * (1 + c1) + s1, p + "self_attn."
        q, k = (self.heads(self.rms(self.lin(y, s + n), s + "norm_" + n)) for n in "qk")
        x = x + self.lin(self_attention(i, q, k, self.heads(self.lin(y, s + "v"))), s + "o") * g1
        rows, bias = text
        y, s = norm(x) * w[p + "norm3.weight"] + w[p + "norm3.bias"], p + "cross_attn."
        q, k = (self.heads(self.rms(self.lin(v, s + n), s + "norm_" + n)) for n, v in (("q", y), ("k", rows)))
        x = x + self.lin(attend(q, k, self.heads(self.lin(rows, s + "v")), bias), s + "o")
        y = norm(x) * (1 + c2) + s2
        return x + self.lin(F.gelu(self.lin(y, p + "ffn.0"), approximate="tanh"), p + "ffn.2") * g2

    def sink_places(self):
        return tuple(torch.cat(t) for t in zip(self.frame_table([30]), self.motion_table()))

    def sink(self, ref, motion, text, table):
        """Keys (not yet rotated) and values of reference and motion, for each layer. ref [B, 16, 1, H, W], motion [B, 16, 19, H, W]."""
        m = self.w["trainable_cond_mask.weight"]
        packed = [self.patch(motion[:, :, 18:], "frame_packer.proj"), self.patch(motion[:, :, 16:18], "frame_packer.proj_2x"), self.patch(motion[:, :, :16], "frame_packer.proj_4x")]
        x = torch.cat([self.patch(ref, "patch_embedding") + m[1], torch.cat(packed, 1) + m[2]], 1)
        _, e0 = self.time(torch.zeros(1))
        out = []

        def self_attention(i, q, k, v):
            out.append((k, v))
            return attend(rotate(q, table), rotate(k, table), v)

        for i in range(LAYERS):
            x = self.layer(i, x, e0, text, self_attention)
        return out

    def inject(self, j, x, audio):
        """Every frame's tokens look at that frame's five audio tokens."""
        glo, loc = audio
        n = len(self.keep)
        shift, scale = self.lin(F.silu(glo), f"audio_injector.injector_adain_layers.{j}.linear").unsqueeze(1).chunk(2, -1)
        z, p = norm(x, 1e-5).reshape(-1, n, DIM) * (1 + scale) + shift, f"audio_injector.injector.{j}."
        q = self.heads(self.rms(self.lin(z, p + "q"), p + "norm_q"))
        k = self.heads(self.rms(self.lin(loc, p + "k"), p + "norm_k"))
        return self.lin(attend(q, k, self.heads(self.lin(loc, p + "v"))), p + "o").view_as(x)

    def places(self, first, distance):
        """Rotations of the tokens of K blocks, whose reference is `distance` [K] frames away from them; `first` is the global latent frame where they begin."""
        refs = [self.frame_table([30 + max(0, first + FRAMES * b - (30 - d))]) for b, d in enumerate(distance)]
        return self.frame_table(range(first, first + FRAMES * len(distance))), refs, self.motion_table()

    def forward(self, x, t, audio, sink, text, places):
        """Predicts the flow of K blocks as patches [B, 3K, tokens, 64]: x [B, 16, 3K, H, W], t [B], audio [B, 12K, width]."""
        batch, n, blocks = len(x), len(self.keep), x.shape[2] // FRAMES
        table, refs, motion = places
        e, e0 = self.time(t)
        heard = self.audio(audio.reshape(batch * blocks, 12, -1))
        heard = heard[0].flatten(0, 1), heard[1].flatten(0, 1)
        size = FRAMES * n
        x = self.patch(x, "patch_embedding") + self.w["cond_encoder.bias"] + self.w["trainable_cond_mask.weight"][0]

        def self_attention(i, q, k, v):
            q, k, (sk, sv) = rotate(q, table), rotate(k, table), sink[i]
            moved = rotate(sk[:, n:], motion)
            out = []
            for b in range(blocks):
                keys = torch.cat([k[:, : (b + 1) * size], rotate(sk[:, :n], refs[b]), moved], 1)
                out.append(attend(q[:, b * size : (b + 1) * size], keys, torch.cat([v[:, : (b + 1) * size], sv], 1)))
            return torch.cat(out, 1)

        for i in range(LAYERS):
            x = self.layer(i, x, e0, text, self_attention)
            if i in INJECT:
                x = x + self.inject(INJECT.index(i), x, heard)
        shift, scale = (self.w["head.modulation"] + e[:, None]).chunk(2, 1)
        return self.lin(norm(x) * (1 + scale) + shift, "head.head").view(batch, FRAMES * blocks, n, PATCH)
