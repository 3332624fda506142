"""Folds the statistics of the trained latents into the VAE and rounds it to bf16: OUT/vae.pt -> OUT/vae.pth, as published.

    fold_vae.py OUT
"""
import sys
from pathlib import Path

import numpy as np
import torch

import train_vae
from stage import save
from vae import Vae, load


def main():
    out = Path(sys.argv[1])
    saved = torch.load(out / "vae.pt", weights_only=False)
    vae = Vae(saved["dim"])
    vae.load_state_dict(saved["vae"])
    rng = np.random.default_rng(3)
    with torch.no_grad():
        z = torch.cat([vae.encode(train_vae.batch(rng, 8, 9, train_vae.SIZE)[0], 9) for _ in range(4)])
        vae.fold(z.mean((0, 2, 3)), z.std((0, 2, 3)))
        vae.rest()
    print("channels of the latents deviate by", " ".join(f"{v:.2f}" for v in z.std((0, 2, 3))))
    save({k: v.to(torch.bfloat16).contiguous() for k, v in vae.state_dict().items()}, out / "vae.pth")
    print("in bf16: all %.2f dB, mouth and eyes %.2f dB" % train_vae.held_out(load(out / "vae.pth")))


if __name__ == "__main__":
    main()
