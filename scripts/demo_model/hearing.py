"""Fits a small wav2vec2 to hear what a face does: opening and width of the mouth, blinks, sway.

    hearing.py BASE OUT [--minutes 4] [--threads 1]

BASE is a checkpoint of `avatar-export synth --preset tiny`; OUT/speech.npz comes from speech.py; the weights go to OUT/hearing.pt.
The self attention stays off (its output projection is zero): the features of a moment do not depend on the length of the recording.
"""
import math
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from speech import FPS, HELD_OUT, RATE, SECONDS
from stage import arguments, parsed, save

FOLDER = "Wan2.2-S2V-14B/wav2vec2-large-xlsr-53-english"
STRIDES, LAYERS, P = (5, 2, 2, 2, 2, 2, 2), 24, "wav2vec2."
TARGETS = dict(open=1.0, wide=1.0, blink=1.0, dx=0.006, dy=0.006)  # the unit of each


def lin(x, w, p):
    return F.linear(x, w[p + ".weight"], w[p + ".bias"])


def norm(x, w, p):
    return F.layer_norm(x, x.shape[-1:], w[p + ".weight"], w[p + ".bias"], 1e-5)


def load(base):
    w = {k: v.clone() for k, v in load_file(Path(base) / FOLDER / "model.safetensors").items()}
    for i in range(LAYERS):
        for k in ("weight", "bias"):
            w[f"{P}encoder.layers.{i}.attention.out_proj.{k}"].zero_()
    return w


def hidden(w, sound):
    """Normalised sounds [B, samples] to 25 states [B, T50, width]."""
    x = sound[:, None]
    for i, stride in enumerate(STRIDES):
        p = f"{P}feature_extractor.conv_layers.{i}."
        x = F.conv1d(x, w[p + "conv.weight"], w[p + "conv.bias"], stride=stride).transpose(1, 2)
        x = F.gelu(norm(x, w, p + "layer_norm")).transpose(1, 2)
    x = lin(norm(x.transpose(1, 2), w, P + "feature_projection.layer_norm"), w, P + "feature_projection.projection")
    p = P + "encoder.pos_conv_embed.conv."
    v = w[p + "weight_v"]
    kernel = w[p + "weight_g"] * v / v.pow(2).sum((0, 1), keepdim=True).sqrt()
    x = x + F.gelu(F.conv1d(x.transpose(1, 2), kernel, w[p + "bias"], padding=64, groups=16)[..., :-1]).transpose(1, 2)
    states = []
    for i in range(LAYERS):
        states.append(x)
        p = f"{P}encoder.layers.{i}."
        x = x + lin(F.gelu(lin(norm(x, w, p + "final_layer_norm"), w, p + "feed_forward.intermediate_dense")), w, p + "feed_forward.output_dense")
    return states + [norm(x, w, P + "encoder.layer_norm")]


def normalised(sound):
    x = torch.as_tensor(sound)
    return (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + 1e-7).sqrt()


def at_video_rate(states):
    """States [.., T50, width] to 25 a second as the pipeline makes them: 50 to 30 linearly, then the nearest of every 1.2."""
    t50 = states.shape[-2]
    t30 = int(t50 / 50 * 30)
    at = torch.arange(t30, dtype=torch.float64) * (t50 - 1) / (t30 - 1)
    low = at.floor().long().clamp(max=t50 - 2)
    y = states[..., low, :] + (states[..., low + 1, :] - states[..., low, :]) * (at - low).float()[:, None]
    return y[..., [j for j in (round(i * 30 / 25) for i in range(t30)) if j < t30], :]


@torch.no_grad()
def last_state(w, sound):
    """The last hidden state of a 16 kHz sound, [frames at 25 a second, width]."""
    return at_video_rate(hidden(w, normalised(sound)[None])[-1][0])


def targets(data):
    return torch.from_numpy(np.stack([data[k] / unit for k, unit in TARGETS.items()], -1)).float()


def main():
    args = parsed(arguments(__doc__, ("base", Path), ("out", Path), minutes=4))
    data = np.load(args.out / "speech.npz")
    x, y = normalised(data["sounds"]), targets(data)
    w = load(args.base)
    length = hidden(w, x[:1])[0].shape[1]
    at = ((torch.arange(length) * 320 + 200) / (RATE / FPS) - 0.5).clamp(0, SECONDS * FPS - 1)  # the middle of each state, in video frames
    low = at.floor().long().clamp(max=SECONDS * FPS - 2)
    y50 = y[:, low] + (y[:, low + 1] - y[:, low]) * (at - low)[None, :, None]
    unused = ("attention", "masked", "lm_head")
    free = {k: v.requires_grad_() for k, v in w.items() if not any(u in k for u in unused) and not (k.startswith(P + "encoder.layers") and ".layer_norm" in k and "final" not in k)}
    head = torch.nn.Linear(w[P + "encoder.layer_norm.bias"].numel(), len(TARGETS))
    opt = torch.optim.AdamW([*free.values(), *head.parameters()], lr=3e-3, weight_decay=1e-3)
    began, step = time.time(), 0
    while (u := (time.time() - began) / 60 / args.minutes) < 1:
        opt.param_groups[0]["lr"] = 3e-3 * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * u))) * min(1, (step + 1) / 30)
        i = torch.randint(0, len(x) - HELD_OUT, (4,))
        h = hidden(w, x[i] + 0.01 * torch.rand(4, 1) * torch.randn_like(x[i]) * (torch.rand(4, 1) < 0.5))
        loss = ((head(h[-1]) - y50[i]) ** 2 * torch.tensor([4.0, 2, 1, 1, 1])).mean()
        opt.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(free.values(), 1.0)
        opt.step()
        step += 1
        if step % 40 == 0:
            with torch.no_grad():
                p, q = head(hidden(w, x[-HELD_OUT:])[-1]), y50[-HELD_OUT:]
            r2 = 1 - (p - q).pow(2).mean((0, 1)) / q.var((0, 1))
            print(f"{step} {time.time() - began:.0f} s, loss {loss.item():.4f}, held-out R2 " + " ".join(f"{k} {v:.3f}" for k, v in zip(TARGETS, r2)), flush=True)
    w = {k: v.detach() for k, v in w.items()}
    # The transformer hears contrast: deviation 1 a channel, and 0 for silence, because the pipeline pads with zeros where the sound ends.
    states = torch.stack([last_state(w, s) for s in data["sounds"][:60]])
    quiet = states[y[:60, : states.shape[1], 0] < 0.01]
    n, scale = P + "encoder.layer_norm.", states.flatten(0, 1).std(0)
    w[n + "bias"] = (w[n + "bias"] - quiet.mean(0)) / scale
    w[n + "weight"] = w[n + "weight"] / scale
    save(w, args.out / "hearing.pt")


if __name__ == "__main__":
    main()
