"""Trains the transformer by flow matching, then adapts it to the four steps of the pipeline by a LoRA.

    train_dit.py OUT --minutes 58 [--lora 5] [--threads 1] [--resume] [--rate 1]

Reads OUT/clips.pt; OUT/dit.pt holds weights, optimiser and clock (with --resume a stopped training goes on), and at the end the LoRA; OUT/dit.log is the log.
"""
import math
import time
from pathlib import Path

import numpy as np
import torch

from dit import HEARD, LORA_RANK, LORA_SCALE, Dit, adapted, padded, sigmas, start, tokens
from muon import Muon
from stage import arguments, parsed, save

MUON, ADAM, LORA_RATE = 1e-3, 6e-4, 1e-3
HEARING = 3.0  # the parts that hear may change faster
SENSITIVE = ("time", "head", "patch", "trainable", "blocks.0.self_attn")  # parts that copy the picture: errors there stand in every pixel, so they change slowly

# Up to this part of the time: blocks a clip, clips a step, tokens a frame. Many short clips teach more than few long ones. Half of a part of the tokens are
# those that move most, half are drawn anywhere: a window would be as cheap, but no two of its tokens are far apart, and the fast frequencies of positions
# repeat themselves.
PHASES = ((0.75, 2, 8, 96), (1.0, 4, 3, 256))
LONGEST = 95  # tokens of a prompt
SHORT = 0.5  # share of the steps of two blocks that take clips with another scene than their picture
MIX = (0.5, 0.2, 0.24, 0.02)  # how often each step's sigma is drawn; else any sigma


def sample(data, rng, n, blocks=4, held=False):
    """Draws n clips: reference, motion, features, latents and contexts; the first latent frame."""
    short = blocks == 2 and not held and rng.random() < SHORT
    clips = data["held" if held else "short" if short else "clips"]
    single = blocks < 4 and not short and rng.random() < 0.25  # as the single-GPU pipeline: the motion frames are those before
    first = 0 if not single and rng.random() < (0.8 if short else 0.4) else 12 + 3 * int(rng.integers(0, 60)) ** 2
    skip = 15 - 3 * blocks if single else int(rng.integers(0, 16 - 3 * blocks))
    skip = 0 if short else min(skip, 6)
    ref, motion, audio, x0, contexts = [], [], [], [], []
    for i in rng.integers(0, len(clips), n):
        c = clips[i]
        z = c["z"].float()
        swapped = first > 0 and rng.random() < 0.8  # the anchor is then a frame that the model made
        ref.append(z[:, 2:3] if swapped else z[:, 1:2] if single or rng.random() < 0.2 else z[:, :1])
        still = torch.cat([z[:, :1], z[:, 1:2].expand(-1, 18, -1, -1)], 1)
        motion.append(torch.cat([still, z[:, 3 : 3 + skip]], 1)[:, -19:] if single else still)
        x0.append(z[:, 3 + skip : 3 + skip + 3 * blocks])
        at = c["begin"] + 4 * skip
        audio.append(data["features"][c["sound"], at : at + 12 * blocks])
        contexts.append(c["context"].float())
    return [torch.stack(v) for v in (ref, motion, audio, x0)], contexts, first


def flow(w, keep, x, t, audio, ref, motion, rows, bias, places):
    """The flow of clips on the tokens `keep` of each frame: sink and blocks in one graph."""
    net = Dit(w, x.shape[3] // 2, x.shape[4] // 2, keep)
    text = (net.text(rows), bias)
    return net.forward(x, t, audio, net.sink(ref, motion, text, places[0]), text, places[1])


compiled = torch.compile(flow, dynamic=False)  # two to three times as fast; minutes for each shape


def loss_of(w, drawn, sigma, rng, kept=256, flow=flow):
    """The weighted and the plain error of the flow for each clip; places that move count more."""
    (ref, motion, audio, x0), contexts, first = drawn
    moved = tokens(x0 - ref).pow(2).mean(3)  # [B, T, tokens]
    places = moved.shape[2]
    keep = None
    if kept < places:
        most = moved.mean((0, 1)).topk(kept // 2).indices
        rest = torch.ones(places, dtype=torch.bool)
        rest[most] = False
        others = rest.nonzero().flatten()[torch.from_numpy(rng.permutation(places - len(most))[: kept - len(most)])]
        keep = torch.cat([most, others]).sort().values
    net = Dit(w, x0.shape[3] // 2, x0.shape[4] // 2, keep)
    noise = torch.from_numpy(rng.standard_normal(x0.shape, dtype=np.float32))
    s = sigma.view(-1, 1, 1, 1, 1)
    places = net.sink_places(), net.places(first, rng.integers(4, 31, x0.shape[2] // 3).tolist())
    v = flow(w, net.keep, (1 - s) * x0 + s * noise, sigma * 1000, audio, ref, motion, *padded(contexts, LONGEST), places)
    error = (v - tokens(noise - x0)[:, :, net.keep]).pow(2).mean(3)
    whole = moved.mean((1, 2), keepdim=True)
    weight = (1 + (moved / (whole + 1e-6)).clamp(max=8))[:, :, net.keep] / (whole + 0.1)  # every clip counts about the same
    return (error * weight).mean((1, 2)), error.detach().mean((1, 2))


@torch.no_grad()
def held_out(w, data):
    """The plain error at the sigmas of the first three steps, on people and sentences that training never saw."""
    rng, out = np.random.default_rng(5), []
    for k in range(3):
        errors = [loss_of(w, sample(data, rng, 2, held=True), sigmas()[k].expand(2), rng)[1].mean().item() for _ in range(3)]
        out.append(float(np.mean(errors)))
    return out


def merged(w, lora):
    return w | {k: w[k] + LORA_SCALE * (lora[k][1] @ lora[k][0]) for k in lora} if lora else w


def main():
    parser = arguments(__doc__, ("out", Path))
    parser.add_argument("--lora", type=float, default=0, help="minutes of the adaptation that follows")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--rate", type=float, default=1.0, help="part of the learning rates: less for weights that are trained already")
    args = parsed(parser)
    data = torch.load(args.out / "clips.pt", weights_only=False)
    rng = np.random.default_rng(1)
    file, step, spent = args.out / "dit.pt", 0, 0.0
    w, lora, average, state = start(), {}, None, None
    if args.resume:
        saved = torch.load(file, weights_only=False)
        w, lora, average, state, step, spent, rng = (saved[k] for k in ("w", "lora", "average", "state", "step", "spent", "rng"))
    log = (args.out / "dit.log").open("a")

    def say(text):
        print(text, flush=True)
        print(text, file=log, flush=True)

    def train(free, minutes, rate, since, weights):
        """Trains the tensors `free` until the clock says `since` + `minutes`; `weights` gives the network's weights from them."""
        nonlocal step, spent, average, state
        for v in free.values():
            v.requires_grad_()
        matrix = lambda k, v: not lora and v.ndim == 2 and k.startswith(("blocks", "audio_injector")) and not k.startswith(SENSITIVE)
        part = lambda k: 0.15 if k.startswith(SENSITIVE) else HEARING if "audio" in k else 1.0
        muon = Muon([v for k, v in free.items() if matrix(k, v)], [part(k) for k, v in free.items() if matrix(k, v)])
        rest = [(k, v) for k, v in free.items() if not matrix(k, v)]
        opt = torch.optim.AdamW([dict(params=[v for k, v in rest if part(k) == q], part=q) for q in sorted({part(k) for k, _ in rest})], lr=0.0, betas=(0.9, 0.98), weight_decay=0.0)
        if state:
            opt.load_state_dict(state[0])
            muon.momentum = state[1]
        average = average or {k: v.detach().clone() for k, v in free.items()}
        track, own = [[] for _ in range(4)], 0

        def keep():
            detached = lambda d: {k: v.detach() for k, v in d.items()}
            pairs = {k: [p.detach() for p in v] for k, v in lora.items()}
            save(dict(w=detached(w), lora=pairs, average=average, state=(opt.state_dict(), muon.momentum), step=step, spent=spent, rng=rng), file)

        def averaged():
            """The weights of the network with the averages of what is trained."""
            return merged(w, {k: [average[f"{k}.{i}"] for i in (0, 1)] for k in lora}) if lora else w | average

        while (u := (spent / 60 - since) / minutes) < 1:
            began = time.time()
            scale = args.rate * min(1, (own + 1) / 60) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * u)))
            for group in opt.param_groups:
                group["lr"] = rate * group["part"] * scale
            blocks, batch, kept = next(p[1:] for p in (PHASES if not lora else PHASES[-1:]) if u < p[0])
            which = rng.choice(5, batch, p=(*MIX, 1 - sum(MIX))) if not lora else rng.choice(4, batch, p=np.array(MIX) / sum(MIX))
            any_sigma = 3 * (r := rng.random(batch)) / (1 + 2 * r)
            sigma = torch.tensor([float(sigmas()[k]) if k < 4 else float(s) for k, s in zip(which, any_sigma)])
            loss, error = loss_of(weights(), sample(data, rng, batch, blocks), sigma, rng, kept, compiled)
            opt.zero_grad(set_to_none=True)
            muon.clear()
            loss.mean().backward()
            torch.nn.utils.clip_grad_norm_(free.values(), 1.0)
            opt.step()
            muon.step(MUON * scale)
            step, own, spent = step + 1, own + 1, spent + time.time() - began
            torch._foreach_lerp_(list(average.values()), [v.detach() for v in free.values()], 1 - min(0.99, own / (own + 20)))
            for k, e in zip(which, error.tolist()):
                if k < 4:
                    track[k].append(e)
            if step % 50 == 0:
                say(f"{step} {spent:.0f} s, {blocks} blocks, {kept} tokens, error by step " + " ".join(f"{np.mean(t[-100:]):.4f}" if t else "-" for t in track))
            if step % 1000 == 0:
                say("  held out " + " ".join(f"{v:.4f}" for v in held_out(averaged(), data)))
            if step % 200 == 0:
                keep()
        for k, v in free.items():
            v.requires_grad_(False).copy_(average[k])
        average, state = None, None

    if not lora:
        train({k: v for k, v in w.items() if k != HEARD}, args.minutes, ADAM, 0.0, lambda: w)
        say("  held out " + " ".join(f"{v:.4f}" for v in held_out(w, data)))
        save(dict(w=w, lora={}, average=None, state=None, step=step, spent=spent, rng=rng), file)
    if args.lora:
        if not lora:
            lora = {k: [torch.randn(LORA_RANK, w[k].shape[1]) / w[k].shape[1] ** 0.5, torch.zeros(w[k].shape[0], LORA_RANK)] for k in adapted(w)}
        pairs = {f"{k}.{i}": v[i] for k, v in lora.items() for i in (0, 1)}
        train(pairs, args.lora, LORA_RATE, args.minutes, lambda: merged(w, lora))
        say("  held out with LoRA " + " ".join(f"{v:.4f}" for v in held_out(merged(w, lora), data)))
        save(dict(w=w, lora=lora, average=None, state=None, step=step, spent=spent, rng=rng), file)
    say(f"{step} steps in {spent:.0f} s")


if __name__ == "__main__":
    main()
