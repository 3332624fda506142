"""Trains the VAE on drawn people: pictures first, then clips, at last the decoder alone. Every step draws new people.

    train_vae.py OUT --minutes 33 [--dim 8] [--threads 1] [--resume]

OUT/vae.pt holds weights, optimiser and clock: with --resume a stopped training goes on. OUT/vae.log says how far it is.
"""
import math
import time
from pathlib import Path

import numpy as np
import torch

import faces
from muon import Muon
from stage import arguments, parsed, save
from vae import Vae, start

SIZE, CROP = 256, 96
MUON, ADAM = 4e-3, 1.5e-3
PICTURES, CLIPS = 0.35, 0.9  # parts of the time: pictures up to the first, clips up to the second, then the decoder alone


def batch(rng, n, t, side=CROP):
    """Windows of n new people, t frames each: pictures [n*t, 3, side, side] in -1..1 and weights."""
    numbers = rng.integers(0, 1 << 40, n)
    face = faces.people(0, numbers)
    if t == 1:
        motion = faces.wander(rng, n)
    else:
        a, b = faces.wander(rng, n), faces.wander(rng, n)  # from one pose to another at some speed, as a mouth moves
        b["night"], b["smile"] = a["night"], a["smile"]
        speed = torch.from_numpy(rng.uniform(0, 2.5, (n, 1)).astype(np.float32) * (rng.random((n, 1)) < 0.85))
        phase = torch.from_numpy(rng.uniform(0, 6.3, (n, 1)).astype(np.float32))
        u = 0.5 - 0.5 * torch.cos(phase + speed * torch.arange(t) / 2)
        motion = {k: ((1 - u) * a[k][:, None] + u * b[k][:, None]).flatten() for k in a}
        face = {k: v.repeat_interleave(t, 0) for k, v in face.items()}
    centre = [0.56, 0.5]
    free = rng.random((n, 1)) < 0.3
    corner = np.where(free, rng.uniform(0, SIZE - side, (n, 2)), rng.normal(np.array(centre) * SIZE - side / 2, 22, (n, 2)))
    corner = torch.from_numpy(np.clip(np.round(corner), 0, SIZE - side).astype(np.float32)).repeat_interleave(t, 0)
    window = (corner[:, 0], corner[:, 1], side)
    return faces.draw(face, motion, SIZE, window) * 2 - 1, faces.attention(face, SIZE, window)


def loss_of(y, x, weight, t):
    d = y - x
    across = ((d[..., 1:] - d[..., :-1]).abs() * weight[..., 1:]).mean() + ((d[..., 1:, :] - d[..., :-1, :]).abs() * weight[..., 1:, :]).mean()
    d, weight = d.unflatten(0, (-1, t)), weight.unflatten(0, (-1, t))
    along = ((d[:, 1:] - d[:, :-1]).abs() * weight[:, 1:]).mean() if t > 1 else 0.0  # else all frames of a latent look alike
    return (d.abs() * weight).mean() + 0.5 * across + along + 0.5 * (d * d * weight).mean()


@torch.no_grad()
def held_out(vae):
    """PSNR over whole pictures of people that training never draws: all pixels, and those around mouth and eyes."""
    rng = np.random.default_rng(9)
    face = faces.people(1, range(12))
    x, weight = faces.draw(face, faces.wander(rng, 12), SIZE) * 2 - 1, faces.attention(face, SIZE)
    error = ((vae.decode(vae.encode(x, 1), 1).clamp(-1, 1) - x) / 2).pow(2)
    db = lambda v: -10 * math.log10(v)
    return db(error.mean().item()), db(((error.mean(1, keepdim=True) * (weight > 1.8)).sum() / (weight > 1.8).sum()).item())


def main():
    parser = arguments(__doc__, ("out", Path))
    parser.add_argument("--dim", type=int, default=8)
    parser.add_argument("--resume", action="store_true")
    args = parsed(parser)
    args.out.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    vae = Vae(args.dim)
    small = lambda name, p: p.ndim < 4 or p[0].numel() == 1 or name.startswith("conv") or "head.2" in name or "time_conv" in name
    named = [(n, p) for n, p in vae.named_parameters() if p.requires_grad]
    muon = Muon([p for n, p in named if not small(n, p)])
    adam = torch.optim.Adam([p for n, p in named if small(n, p)], lr=0.0, betas=(0.9, 0.97))
    file, step, spent, total, count = args.out / "vae.pt", 0, 0.0, 0.0, 0
    if args.resume:
        saved = torch.load(file, weights_only=False)
        vae.load_state_dict(saved["vae"])
        adam.load_state_dict(saved["adam"])
        muon.momentum = saved["momentum"]
        step, spent, rng = saved["step"], saved["spent"], saved["rng"]
    else:
        start(vae, batch(rng, 64, 1)[0])
    log = (args.out / "vae.log").open("a")

    def say(text):
        print(text, flush=True)
        print(text, file=log, flush=True)

    def keep():
        save(dict(vae=vae.state_dict(), adam=adam.state_dict(), momentum=muon.momentum, step=step, spent=spent, rng=rng, dim=args.dim), file)

    say("start: all %.2f dB, mouth and eyes %.2f dB" % held_out(vae))
    while (u := spent / 60 / args.minutes) < 1:
        began = time.time()
        alone = u >= CLIPS
        for p in [*vae.encoder.parameters(), *vae.conv1.parameters()]:
            p.grad = None
        scale = min(1, (step + 1) / 60) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * u)))
        t = 1 if u < PICTURES or step % 3 == 0 else 9 if step % 8 == 1 else 5
        x, weight = batch(rng, {1: 10, 5: 3, 9: 2}[t], t)
        with torch.set_grad_enabled(not alone):
            z = vae.encode(x.contiguous(memory_format=torch.channels_last), t)
        mean, std = z.mean((0, 2, 3)), z.std((0, 2, 3))
        unit = 0.0 if alone else (mean**2).mean() + (torch.log(std + 1e-4) ** 2).mean()
        # The transformer's latents are not perfect; the decoder should bear it.
        noise = (0.08 if alone else 0.04) * std.detach().view(1, -1, 1, 1) * torch.randn_like(z)
        loss = loss_of(vae.decode(z + noise, 1 + (t - 1) // 4), x, weight, t)
        adam.zero_grad(set_to_none=True)
        muon.clear()
        (loss + 0.01 * unit).backward()
        torch.nn.utils.clip_grad_norm_(adam.param_groups[0]["params"], 1.0)
        adam.param_groups[0]["lr"] = ADAM * scale
        adam.step()
        muon.step(MUON * scale)
        vae.rest()
        step, total, count, spent = step + 1, total + loss.item(), count + 1, spent + time.time() - began
        if step % 100 == 0:
            say(f"{step} {spent:.0f} s, loss {total / count:.4f}, all %.2f dB, mouth and eyes %.2f dB" % held_out(vae))
            total, count = 0.0, 0
            keep()
    keep()
    say(f"{step} steps in {spent:.0f} s: all %.2f dB, mouth and eyes %.2f dB" % held_out(vae))


if __name__ == "__main__":
    main()
