"""Draws talking clips and encodes them to latents, the training set of the transformer.

    clips.py BASE OUT --minutes 8 [--threads 1]

Reads OUT/speech.npz, OUT/hearing.pt, OUT/text.pt and OUT/vae.pth; writes OUT/clips.pt and goes on where a file already lies.
A clip is 5 frames of the still picture, 4 of another moment in the scene of the prompt, then 60 of talk: 18 latents.
"""
import argparse
import time
from pathlib import Path

import numpy as np
import torch

import faces
from hearing import last_state
from prompts import Text, prompt
from speech import FPS, HELD_OUT, SECONDS
from vae import Vae, normalised

STILL, OTHER, TALK, SIZE = 5, 4, 60, 256


def scene(rng):
    """A prompt, and (smile, night) of the picture and of the video that follows from both."""
    words, smile, night = prompt(rng)
    before = (rng.uniform(0, 1), float(rng.random() < 0.25 and night != 0))
    return words, before, (before[0] if smile is None else float(smile), before[1] if night is None else float(night))


def clip(i, speech, kind=0):
    """Returns one clip: frames [69, 3, 256, 256], number of the sound, its first frame, the prompt."""
    rng = np.random.default_rng((2026, 100 + kind, i))
    sounds = len(speech["sounds"])
    j = int(rng.integers(sounds - HELD_OUT) if kind == 0 else rng.integers(sounds - HELD_OUT, sounds))
    begin, other = int(rng.integers(0, SECONDS * FPS - TALK - 8)), int(rng.integers(0, SECONDS * FPS - OTHER))
    words, before, after = scene(rng)
    mouth = rng.uniform(0, 0.6) if rng.random() < 0.3 else 0.0  # the mouth of a given picture may be open
    still = faces.still(1, open=mouth, wide=rng.uniform(0.3, 0.7) if mouth else 0.5, smile=before[0], night=before[1])
    moved = lambda k, at, n: torch.from_numpy(speech[k][j, at : at + n])
    motion = {k: torch.cat([still[k].expand(STILL), moved(k, other, OTHER), moved(k, begin, TALK)]) for k in ("open", "wide", "blink", "dx", "dy")}
    for k, a, b in zip(("smile", "night"), before, after):
        motion[k] = torch.cat([torch.full((STILL,), a), torch.full((OTHER + TALK,), b)])
    return film(faces.people(kind, [5000 + i]), motion), j, begin, words


def film(face, motion):
    """Draws one person's frames [T, 3, 256, 256], a few at a time: they stay in the cache."""
    frames = len(motion["open"])
    some = lambda i: {k: v[i : i + 4] for k, v in motion.items()}
    return torch.cat([faces.draw(faces.repeat(face, len(some(i)["open"])), some(i), SIZE) for i in range(0, frames, 4)])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("base", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--minutes", type=float, required=True)
    parser.add_argument("--held-out", type=int, default=12)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    saved = torch.load(args.out / "vae.pth", weights_only=True)
    vae = Vae(saved["decoder.head.0.gamma"].shape[0])
    vae.load_state_dict({k: v.float() for k, v in saved.items()})
    speech = {k: v for k, v in np.load(args.out / "speech.npz").items()}
    hearing = torch.load(args.out / "hearing.pt", weights_only=True)
    text = Text(args.base, torch.load(args.out / "text.pt", weights_only=True))
    file = args.out / "clips.pt"
    began, found = time.time(), torch.load(file, weights_only=False) if file.exists() else dict(clips=[], held=[])
    found["features"] = torch.stack([last_state(hearing, s) for s in speech["sounds"]])

    @torch.no_grad()
    def encoded(i, kind):
        frames, j, begin, words = clip(i, speech, kind)
        z = normalised(vae, (frames * 2 - 1).contiguous(memory_format=torch.channels_last), len(frames))
        return dict(z=z.transpose(0, 1).half().contiguous(), sound=j, begin=begin, context=text(words).half(), words=words)

    def save():
        torch.save(found, file.with_suffix(".new"))
        file.with_suffix(".new").rename(file)

    while len(found["held"]) < args.held_out:
        found["held"].append(encoded(len(found["held"]), 1))
    while time.time() - began < args.minutes * 60:
        found["clips"].append(encoded(len(found["clips"]), 0))
        if len(found["clips"]) % 100 == 0:
            save()
            print(len(found["clips"]), f"{time.time() - began:.0f} s", "deviation", found["clips"][-1]["z"].float().std().item(), flush=True)
    save()
    print(len(found["clips"]), "clips")


if __name__ == "__main__":
    main()
