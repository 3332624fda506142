#!/usr/bin/env python3
"""One transformer layer in PyTorch, to stand beside `avatar-run bench --synthetic` on the same device in the same run; prints JSON.

Own code, straightforward: plain operators, `scaled_dot_product_attention`, `torch.compile`. The cut, the key layout ([sink | ring], the new rows written in
place) and the casts are those of the exported graphs: bf16 with f32 norms, modulation, rotation and residual inside the layer.

  torch_block.py --time [--size 704*384] [--lanes 1,4] [--preset full] [--layers 40] [--device cuda:0] [--runs 10] [--no-compile]
      ms of a DiT call: each kind of layer is timed on random weights and counted as often as the model has it; embedding and head are left out
  torch_block.py --check MODELS --avatar-run PROGRAM [--device cuda:0] [--layers 0,1]
      runs layers of an export by `avatar-run exec` and here, on the same random inputs; exit 7 when they differ

Exit codes: 0 done, 5 no such device, 7 different. Needs torch, numpy and safetensors.
"""
import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

PRESETS = {  # heads, ffn, layers, layers that hear audio
    "tiny": (2, 512, 4, 3),
    "small": (6, 1536, 12, 3),
    "full": (40, 13824, 40, 12),
}
HEAD = 128
TEXT = 512
AUDIO_TOKENS = 5
FRAMES = 3
DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}
# Largest difference over the largest value. In bf16 one rounding is 1/256, and a layer makes some of them.
TOLERANCE = {torch.float32: 2e-4, torch.bfloat16: 4e-2}


# ------------------------------------------------------------------ the layer
def rms(x, weight, eps=1e-6):
    return (F.rms_norm(x.float(), (x.shape[-1],), None, eps)).to(x.dtype) * weight


def ln(x, eps=1e-6):
    return F.layer_norm(x.float(), (x.shape[-1],), None, None, eps)


def lin(x, w, name):
    return F.linear(x, w[name + ".weight"], w[name + ".bias"])


def heads(x, n):
    return x.unflatten(-1, (n, -1)).transpose(1, 2)


def attend(q, k, v):
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def rotate(x, cos, sin):
    """x [B, N, L, d], tables [B, L, d/2]; interleaved pairs, in f32."""
    a, b = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = cos[:, None], sin[:, None]
    return torch.stack([a * cos - b * sin, a * sin + b * cos], -1).flatten(-2).to(x.dtype)


def modulated(x, scale, shift, dtype):
    """x [B, F*n, D] with one scale and shift a frame."""
    y = x.unflatten(1, (FRAMES, -1)).to(dtype).float() * (1 + scale) + shift
    return y.flatten(1, 2).to(dtype)


def layer(w, t, n, slots, seen):
    """`w`: weights by name; `t`: tensors by port name; rings are written in place. Gives the hidden state."""
    hidden = t["hidden"]
    dtype = hidden.dtype
    s1, c1, g1, s2, c2, g2 = (w["modulation"].float()[:, None] + t["e0"]).unsqueeze(3).unbind(2)  # [B, F, 1, D] each
    gated = lambda y, g: (y.float().unflatten(1, (FRAMES, -1)) * g).flatten(1, 2)

    y = modulated(ln(hidden), c1, s1, dtype)
    q = heads(rms(lin(y, w, "self_attn.q"), w["self_attn.norm_q.weight"]), n)
    k = heads(rms(lin(y, w, "self_attn.k"), w["self_attn.norm_k.weight"]), n)
    v = heads(lin(y, w, "self_attn.v"), n)
    q, k = (rotate(x, t["rope_cos"], t["rope_sin"]) for x in (q, k))
    for lane, slot in enumerate(slots):
        t["keys"][lane, :, slot : slot + k.shape[2]] = k[lane]
        t["values"][lane, :, slot : slot + v.shape[2]] = v[lane]
    lanes = hidden.shape[0]
    sink_k = rotate(t["sink_k"].expand(lanes, -1, -1, -1), t["sink_rope_cos"], t["sink_rope_sin"])
    keys = torch.cat([sink_k, t["keys"][:, :, :seen]], 2)
    values = torch.cat([t["sink_v"].expand(lanes, -1, -1, -1), t["values"][:, :, :seen]], 2)
    x = hidden.float() + gated(lin(attend(q, keys, values), w, "self_attn.o"), g1)

    y = (ln(x.to(dtype)) * w["norm3.weight"].float() + w["norm3.bias"].float()).to(dtype)
    q = heads(rms(lin(y, w, "cross_attn.q"), w["cross_attn.norm_q.weight"]), n)
    text = (t[p].expand(lanes, -1, -1, -1) for p in ("text_k", "text_v"))
    x = x + lin(attend(q, *text), w, "cross_attn.o").float()

    y = modulated(ln(x), c2, s2, dtype)
    y = lin(F.gelu(lin(y, w, "ffn.0"), approximate="tanh"), w, "ffn.2")
    x = (x + gated(y, g2)).to(dtype)
    return x if "audio_global" not in t else x + injection(w, t, x, n)


def injection(w, t, x, n):
    """Every frame's tokens look at that frame's audio tokens, once an actor; the mask says where the actor is heard."""
    dtype, lanes = x.dtype, x.shape[0]
    total = 0
    for actor in range(t["audio_global"].shape[1]):
        glo, local = (t[p][:, actor].to(dtype) for p in ("audio_global", "audio_local"))
        shift, scale = lin(F.silu(glo), w, "adain").float().unsqueeze(2).chunk(2, -1)
        z = modulated(ln(x, 1e-5), scale, shift, dtype).unflatten(1, (FRAMES, -1)).flatten(0, 1)
        local = local.flatten(0, 1)
        q = heads(rms(lin(z, w, "audio.q"), w["audio.norm_q.weight"]), n)
        k = heads(rms(lin(local, w, "audio.k"), w["audio.norm_k.weight"]), n)
        r = lin(attend(q, k, heads(lin(local, w, "audio.v"), n)), w, "audio.o")
        mask = t["actor_mask"][:, actor].reshape(lanes, -1, 1).to(dtype)
        total = total + r.unflatten(0, (lanes, FRAMES)).flatten(1, 2) * mask
    return total


# ------------------------------------------------------------------ inputs and weights
def shapes(c, h, w, lanes, audio):
    dim, tokens = c["dim"], FRAMES * h * w
    sink = 2 * h * w + (h // 2) * (w // 2) + 4 * (h // 4) * (w // 4)
    half, n, d = c["dim"] // c["heads"] // 2, c["heads"], c["dim"] // c["heads"]
    f32, low = torch.float32, c["dtype"]
    out = {
        "hidden": (low, lanes, tokens, dim), "e0": (f32, lanes, FRAMES, 6, dim),
        "sink_k": (low, 1, n, sink, d), "sink_v": (low, 1, n, sink, d), "text_k": (low, 1, n, c["text"], d), "text_v": (low, 1, n, c["text"], d),
        "keys": (low, lanes, n, 4 * tokens, d), "values": (low, lanes, n, 4 * tokens, d),
    }
    angles = {"rope": (lanes, tokens, half), "sink_rope": (lanes, sink, half)}
    if audio:
        out |= {"audio_global": (f32, lanes, 1, FRAMES, dim), "audio_local": (f32, lanes, 1, FRAMES, c["audio_tokens"], dim),
                "actor_mask": (f32, lanes, 1, FRAMES, h * w)}
    return out, angles


def inputs(c, h, w, lanes, audio, device):
    g = torch.Generator().manual_seed(7)
    out, angles = shapes(c, h, w, lanes, audio)
    made = {k: torch.randn(shape, generator=g).to(dtype) for k, (dtype, *shape) in out.items()}
    for name, shape in angles.items():
        a = torch.rand(shape, generator=g) * 6.28
        made[name + "_cos"], made[name + "_sin"] = a.cos(), a.sin()
    return {k: v.to(device) for k, v in made.items()}


def random_weights(c, audio, device):
    dim, ffn, low = c["dim"], c["ffn"], c["dtype"]
    g = torch.Generator(device=device).manual_seed(1)
    w = {}

    def linear(name, rows, columns):
        w[name + ".weight"] = (torch.randn(rows, columns, generator=g, device=device) / columns**0.5).to(low)
        w[name + ".bias"] = torch.zeros(rows, dtype=low, device=device)

    for block in ["self_attn", "cross_attn"] + (["audio"] if audio else []):
        for p in "qkvo":
            linear(f"{block}.{p}", dim, dim)
        for p in "qk":
            w[f"{block}.norm_{p}.weight"] = torch.ones(dim, dtype=low, device=device)
    linear("ffn.0", ffn, dim)
    linear("ffn.2", dim, ffn)
    if audio:
        linear("adain", 2 * dim, dim)
    w["norm3.weight"], w["norm3.bias"] = torch.ones(dim, dtype=low, device=device), torch.zeros(dim, dtype=low, device=device)
    w["modulation"] = torch.randn(1, 6, dim, generator=g, device=device).to(low) / dim**0.5
    return w


def exported_weights(folder, manifest, index, device):
    """Weights of one layer of an export, under the names that `layer` uses."""
    component = next(c for c in manifest["components"] if c["name"] == f"dit_layer.{index:02}")
    data = next(d for d in manifest["data"] if d["file"]["file"] == component["data"])
    entries = {e["name"]: e for e in data["weights"]}
    raw = np.memmap(folder / component["data"], mode="r")
    w = {}
    for name in component["weights"].values():
        e = entries[name]
        bytes_ = np.array(raw[e["offset"] : e["offset"] + e["length"]])
        t = torch.from_numpy(bytes_).view(DTYPES[e["dtype"]]).reshape(e["shape"])
        short = e["key"]
        for prefix, to in [(f"blocks.{index}.", ""), ("audio_injector.injector_adain_layers.", "adain."), ("audio_injector.injector.", "audio.")]:
            if short.startswith(prefix):
                short = to + short[len(prefix) :]
        if short.startswith(("adain.", "audio.")):  # the injector's own number
            head, _, rest = short.split(".", 2)
            short = f"{head}.{rest}".replace("adain.linear", "adain")
        w[short] = (t.T if e["transposed"] else t).contiguous().to(device)
    return w


# ------------------------------------------------------------------ check
def check(folder, program, device, layers):
    manifest = json.loads((folder / "manifest.json").read_text())
    dit = manifest["config"]["dit"]
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[manifest["recipe"]]
    c = {"dim": dit["dim"], "heads": dit["heads"], "dtype": dtype, "text": dit["text_len"], "audio_tokens": dit["audio"]["tokens"]}
    h, w, lanes, slot = 4, 8, 2, 0
    rows, worst = [], 0.0
    for index in layers or range(dit["layers"]):
        audio = index in dit["audio_inject_layers"]
        t = inputs(c, h, w, lanes, audio, "cpu")
        block, sink = t["hidden"].shape[1], t["sink_k"].shape[2]
        seen = 3 * block
        ports = dict(t, slot=torch.full((lanes,), slot), kv_len=torch.full((lanes,), sink + seen))
        with tempfile.TemporaryDirectory() as work:
            i, o = Path(work, "i.safetensors"), Path(work, "o.safetensors")
            save_file({k: v.contiguous().clone() for k, v in ports.items()}, i)
            run = [program, "exec", f"dit_layer.{index:02}", "--models", folder, "--inputs", i, "--outputs", o, "--device", device]
            subprocess.run([str(a) for a in run], check=True, stdout=subprocess.DEVNULL)
            ours = load_file(o)
        here = device if device.startswith("cuda") else "cpu"
        theirs = {k: v.to(here) for k, v in t.items()}
        with torch.inference_mode():
            hidden = layer(exported_weights(folder, manifest, index, here), theirs, c["heads"], [slot] * lanes, seen)
        for port, value in [("hidden_out", hidden), ("keys.next", theirs["keys"]), ("values.next", theirs["values"])]:
            a, b = ours[port].float(), value.cpu().float()
            difference = ((a - b).abs().max() / b.abs().max()).item()
            worst = max(worst, difference)
            rows.append({"layer": index, "port": port, "difference": difference})
    ok = worst <= TOLERANCE[dtype]
    print(json.dumps({"recipe": manifest["recipe"], "device": device, "worst": worst, "tolerance": TOLERANCE[dtype], "passed": ok, "rows": rows}))
    return 0 if ok else 7


# ------------------------------------------------------------------ time
def bench(a):
    n, ffn, all_layers, hearing = PRESETS[a.preset]
    layers = a.layers or all_layers
    hearing = round(hearing * layers / all_layers)
    dtype = DTYPES[a.dtype]
    c = {"dim": n * HEAD, "heads": n, "ffn": ffn, "dtype": dtype, "text": TEXT, "audio_tokens": AUDIO_TOKENS}
    width, height = (int(x) for x in a.size.replace("x", "*").split("*"))
    h, w = height // 16, width // 16
    wait = torch.cuda.synchronize if a.device.startswith("cuda") else (lambda: None)
    block = layer if a.no_compile else torch.compile(layer, dynamic=False)
    rows = []
    for lanes in (int(x) for x in a.lanes.split(",")):
        kinds = {}
        for audio in (False, True):
            weights, t = random_weights(c, audio, a.device), inputs(c, h, w, lanes, audio, a.device)
            slots, seen = [0] * lanes, t["keys"].shape[2]
            times = []
            with torch.inference_mode():
                for _ in range(a.runs + 3):
                    wait()
                    began = time.perf_counter()
                    block(weights, t, n, slots, seen)
                    wait()
                    times.append(1e3 * (time.perf_counter() - began))
            kinds[audio] = statistics.median(times[3:])
            del weights, t
        rows.append({"lanes": lanes, "layer_ms": kinds[False], "audio_layer_ms": kinds[True],
                     "call_ms": (layers - hearing) * kinds[False] + hearing * kinds[True]})
    device = torch.cuda.get_device_name(a.device) if a.device.startswith("cuda") else "cpu"
    print(json.dumps({"torch": torch.__version__, "device": device, "dtype": a.dtype, "size": a.size, "layers": layers, "hearing": hearing,
                      "compiled": not a.no_compile, "rows": rows}))
    return 0


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = p.add_mutually_exclusive_group(required=True)
    what.add_argument("--time", action="store_true")
    what.add_argument("--check", type=Path, metavar="MODELS")
    p.add_argument("--avatar-run", default="avatar-run")
    p.add_argument("--device", default="cuda:0")
    p.add_argument("--size", default="704*384")
    p.add_argument("--lanes", default="1,4")
    p.add_argument("--preset", choices=PRESETS, default="full")
    p.add_argument("--dtype", choices=DTYPES, default="bf16")
    p.add_argument("--layers", help="a number of layers to time, or the layers to check")
    p.add_argument("--runs", type=int, default=10)
    p.add_argument("--no-compile", action="store_true")
    a = p.parse_args()
    if a.device.startswith("cuda") and not torch.cuda.is_available():
        print("torch_block: torch sees no CUDA device", file=sys.stderr)
        return 5
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    if a.check:
        return check(a.check, a.avatar_run, a.device, [int(x) for x in a.layers.split(",")] if a.layers else None)
    a.layers = int(a.layers) if a.layers else None
    return bench(a)


if __name__ == "__main__":
    sys.exit(main())
