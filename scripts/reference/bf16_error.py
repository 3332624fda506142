#!/usr/bin/env python3
"""Prints how far the reference's own text encoder and VAE are off in bf16 from themselves in f32, on the inputs of golden sets, beside what each
set states about the transformer. Where the factors in runtime/src/verify/precision.rs come from. Not a generator: it writes nothing.

  bf16_error.py LIVEAVATAR_CHECKOUT SET...      # needs torch, safetensors, einops and what the reference's modules import
"""
import json
import sys
import types
from pathlib import Path

import torch
from safetensors.torch import load_file

# Wan2_1_VAE of the reference.
MEAN = [-0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508, 0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921]
STD = [2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743, 3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160]


def module(path: Path) -> types.ModuleType:
    """A file of the reference alone, without its package: the tokenizer and the GPU are not needed."""
    found = types.ModuleType(path.stem)
    found.__file__ = str(path)
    source = path.read_text(encoding="utf-8").replace("from .tokenizers import HuggingfaceTokenizer", "HuggingfaceTokenizer = None")
    exec(compile(source, str(path), "exec"), found.__dict__)
    return found


def off(got: torch.Tensor, want: torch.Tensor) -> float:
    """Relative root mean square of the difference."""
    want = want.float()
    return ((got.float().reshape(want.shape) - want).pow(2).mean().sqrt() / want.pow(2).mean().sqrt()).item()


@torch.no_grad()
def text_encoder(t5, root: Path, layers: int) -> dict[str, float]:
    weights = torch.load(root / "ckpt/Wan2.2-S2V-14B/models_t5_umt5-xxl-enc-bf16.pth")
    golden = load_file(root / "golden/text.safetensors")
    vocab, dim = weights["token_embedding.weight"].shape
    buckets, heads = weights["blocks.0.pos_embedding.embedding.weight"].shape
    inner, ffn = weights["blocks.0.attn.q.weight"].shape[0], weights["blocks.0.ffn.fc1.weight"].shape[0]
    model = t5.T5Encoder(vocab, dim, inner, ffn, heads, layers, buckets, shared_pos=False, dropout=0.0).eval()
    model.load_state_dict(weights)
    model.to(torch.bfloat16)
    found = {}
    for name in (n for n in golden if n.endswith(".t5")):
        tag = name.removesuffix(".t5")
        ids, mask = (golden[f"{tag}.{what}"].long().reshape(1, -1) for what in ("ids", "mask"))
        rows = model(ids, mask)[0, : int(mask.sum())]
        want = golden[name].reshape(-1, dim)
        found[name] = off(rows[: want.shape[0]], want)
    return found


@torch.no_grad()
def vae(net, root: Path, width: int) -> dict[str, float]:
    golden = load_file(root / "golden/vae.safetensors")
    model = net.WanVAE_(dim=width, z_dim=16, dim_mult=[1, 2, 4, 4], num_res_blocks=2, attn_scales=[], temperal_downsample=[False, True, True], dropout=0.0).eval()
    model.load_state_dict(torch.load(root / "ckpt/Wan2.2-S2V-14B/Wan2.1_VAE.pth"))
    scale = [torch.tensor(MEAN), 1 / torch.tensor(STD)]
    found = {}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for name, want in golden.items():
            frames = name.removeprefix("encode.latents")
            if frames.isdigit():
                found[name] = off(model.encode(golden["encode.video"][None][:, :, : int(frames)], scale), want)
            latents = name.removeprefix("decode.frames")
            if latents.isdigit():
                decoded = model.decode(golden["decode.latents"][None][:, :, : int(latents)], scale)
                found[name] = off(decoded.float().clamp(-1, 1), want)
    return found


def main(checkout: Path, sets: list[Path]) -> None:
    torch.cuda.current_device = lambda: 0  # a default argument of the reference asks for it
    folder = checkout / "liveavatar/models/wan/wan_2_2/modules"
    t5, net = module(folder / "t5.py"), module(folder / "vae2_1.py")
    for root in sets:
        manifest = json.loads((root / "golden/manifest.json").read_text(encoding="utf-8"))
        stated = manifest["values"]["bf16_vs_f32"]["noise_pred_rel_rms"]
        print(f"{root}: transformer {stated:.5f}")
        found = text_encoder(t5, root, manifest["config"]["t5_layers"]) | vae(net, root, manifest["config"]["vae_dim"])
        for name, error in found.items():
            print(f"  {name:20} {error:.5f}  {error / stated:.2f} of the transformer's")


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    main(Path(sys.argv[1]), [Path(p) for p in sys.argv[2:]])
