"""Takes a published checkpoint apart into the files of a training, to go on from its weights.

    unpublish.py CKPT OUT      OUT/vae.pth, OUT/hearing.pt, OUT/text.pt and OUT/dit.pt (the LoRA merged)

The optimiser's state is not published, so `train_dit.py OUT --resume` starts it anew.
"""
import argparse
import shutil
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

import dit
from prompts import FOLDER
from stage import save


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("ckpt", "out"):
        parser.add_argument(name, type=Path)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    folder = args.ckpt / FOLDER
    full = lambda tensors: {k: v.float() for k, v in tensors.items()}
    shutil.copy(folder / "Wan2.1_VAE.pth", args.out / "vae.pth")
    save(full(load_file(folder / "wav2vec2-large-xlsr-53-english/model.safetensors")), args.out / "hearing.pt")
    save(full(torch.load(folder / "models_t5_umt5-xxl-enc-bf16.pth", weights_only=True)), args.out / "text.pt")
    weights = full({k: v for shard in folder.glob("diffusion*.safetensors") for k, v in load_file(shard).items()})
    lora = full(load_file(args.ckpt / "LiveAvatar/liveavatar.safetensors"))
    for name in dit.adapted(weights):
        down, up = (lora[f"{name.removesuffix('.weight')}.lora_{c}.default.weight"] for c in "AB")
        weights[name] += dit.LORA_SCALE * (up @ down)
    save(dict(w=weights, lora={}, average=None, state=None, step=0, spent=0.0, rng=np.random.default_rng(2)), args.out / "dit.pt")


if __name__ == "__main__":
    main()
