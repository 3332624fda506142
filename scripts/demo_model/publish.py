"""Writes the trained parts as a checkpoint in the published layout.

    publish.py BASE OUT CKPT      CKPT/Wan2.2-S2V-14B and CKPT/LiveAvatar

BASE (of `avatar-export synth --preset tiny`) gives the tokenizer and the small files; OUT gives the weights, all stored in bf16.
A list SHA256SUMS lies in both folders; `avatar-export` holds the files against it.
"""
import argparse
import hashlib
import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file

import dit
from prompts import FOLDER

SHARDS = 2


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("base", "out", "ckpt"):
        parser.add_argument(name, type=Path)
    args = parser.parse_args()
    half = lambda t: t.to(torch.bfloat16).contiguous()
    whole, args.ckpt = args.ckpt, args.ckpt.with_name(args.ckpt.name + ".new")  # the folder gets its name when it is complete
    base, folder = args.base / FOLDER, args.ckpt / FOLDER
    shutil.rmtree(args.ckpt, ignore_errors=True)
    shutil.copytree(base, folder, ignore=shutil.ignore_patterns("diffusion*", "model.safetensors", "*.pth"))
    (args.ckpt / "LiveAvatar").mkdir()

    config = json.loads((base / "config.json").read_text())
    config |= dict(dim=dit.DIM, num_heads=dit.HEADS, ffn_dim=dit.FFN, num_layers=dit.LAYERS, audio_inject_layers=list(dit.INJECT), audio_dim=dit.AUDIO)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")

    saved = torch.load(args.out / "dit.pt", weights_only=False)
    # A training that still runs has the average beside; while the LoRA trains, that of the LoRA only.
    weights = saved["w"] if saved["lora"] or saved["average"] is None else saved["w"] | saved["average"]
    shapes = dit.shapes()
    assert {k: tuple(v.shape) for k, v in weights.items()} == {k: tuple(s) for k, s in shapes.items()}, "shapes"
    names, index, total = sorted(shapes), {}, 0
    for i in range(SHARDS):
        part = {k: half(weights[k]) for k in names[i * len(names) // SHARDS : (i + 1) * len(names) // SHARDS]}
        file = f"diffusion_pytorch_model-{i + 1:05}-of-{SHARDS:05}.safetensors"
        save_file(part, folder / file, metadata={"format": "pt"})
        index |= dict.fromkeys(part, file)
        total += sum(2 * v.numel() for v in part.values())
    (folder / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(dict(metadata=dict(total_size=total), weight_map=index), indent=2) + "\n")

    lora = saved["lora"] or {k: [torch.zeros(dit.LORA_RANK, weights[k].shape[1]), torch.zeros(weights[k].shape[0], dit.LORA_RANK)] for k in dit.adapted(weights)}
    pairs = {f"{k.removesuffix('.weight')}.lora_{'AB'[i]}.default.weight": half(v[i]) for k, v in lora.items() for i in (0, 1)}
    save_file(pairs, args.ckpt / "LiveAvatar/liveavatar.safetensors", metadata={"format": "pt"})

    hearing = torch.load(args.out / "hearing.pt", weights_only=True)
    save_file({k: half(v) for k, v in hearing.items()}, folder / "wav2vec2-large-xlsr-53-english/model.safetensors", metadata={"format": "pt"})
    text = torch.load(args.out / "text.pt", weights_only=True)
    torch.save({k: half(v) for k, v in text.items()}, folder / "models_t5_umt5-xxl-enc-bf16.pth")
    shutil.copy(args.out / "vae.pth", folder / "Wan2.1_VAE.pth")
    for listed in (folder, args.ckpt / "LiveAvatar"):
        files = sorted(str(f.relative_to(listed)) for f in listed.rglob("*") if f.is_file())
        (listed / "SHA256SUMS").write_text("".join(f"{hashlib.sha256((listed / f).read_bytes()).hexdigest()}  {f}\n" for f in files))
    shutil.rmtree(whole, ignore_errors=True)
    args.ckpt.rename(whole)
    print(sum(f.stat().st_size for f in whole.rglob("*") if f.is_file()), "bytes")


if __name__ == "__main__":
    main()
