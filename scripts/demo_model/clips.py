"""Draws talking clips and encodes them to latents, the training set of the transformer.

    clips.py BASE OUT --minutes 8 [--threads 1]

Reads OUT/speech.npz, OUT/hearing.pt, OUT/text.pt and OUT/vae.pth; writes OUT/clips.pt at the end. A stopped run goes on with OUT/clips.part.pt.
A clip is 5 frames of the still picture, 4 of another moment in the scene of the prompt, then 60 of talk: 18 latents. Two of three clips are short, with 24
frames of talk, and their prompt asks for another scene than the picture shows: many people teach that better than much talk.
"""
import time
from pathlib import Path

import numpy as np
import torch

import faces
from hearing import last_state
from prompts import Text, prompt
from speech import FPS, HELD_OUT, SECONDS
from stage import arguments, parsed, save
from vae import load, normalised

STILL, OTHER, TALK, SHORT, SIZE = 5, 4, 60, 24, 256


def scene(rng):
    """A prompt, and (smile, night) of the picture and of the video that follows from both."""
    words, smile, night = prompt(rng)
    before = (rng.uniform(0, 1), float(rng.random() < 0.25 and night != 0))
    return words, before, (before[0] if smile is None else float(smile), before[1] if night is None else float(night))


def other_scene(rng):
    """As `scene`, where the video differs from the picture: mostly by night, else by smile."""
    least = rng.choice([1.0, 0.4], p=[0.75, 0.25])
    while True:
        words, before, after = scene(rng)
        if (least == 1 and before[1] != after[1]) or (least < 1 and abs(before[0] - after[0]) > least):
            return words, before, after


def clip(i, speech, kind=0, short=False):
    """Returns one clip: frames [9 + talk, 3, 256, 256], number of the sound, its first frame, the prompt."""
    rng = np.random.default_rng((2026, 100 + kind, i))
    talk = SHORT if short else TALK
    sounds = len(speech["sounds"])
    j = int(rng.integers(sounds - HELD_OUT) if kind == 0 else rng.integers(sounds - HELD_OUT, sounds))
    begin, other = int(rng.integers(0, SECONDS * FPS - talk - 8)), int(rng.integers(0, SECONDS * FPS - OTHER))
    words, before, after = other_scene(rng) if short else scene(rng)
    mouth = rng.uniform(0, 0.6) if rng.random() < 0.3 else 0.0  # the mouth of a given picture may be open
    still = faces.still(1, open=mouth, wide=rng.uniform(0.3, 0.7) if mouth else 0.5, smile=before[0], night=before[1])
    moved = lambda k, at, n: torch.from_numpy(speech[k][j, at : at + n])
    motion = {k: torch.cat([still[k].expand(STILL), moved(k, other, OTHER), moved(k, begin, talk)]) for k in ("open", "wide", "blink", "dx", "dy")}
    for k, a, b in zip(("smile", "night"), before, after):
        motion[k] = torch.cat([torch.full((STILL,), a), torch.full((OTHER + talk,), b)])
    return film(faces.people(kind, [5000 + i]), motion), j, begin, words


draw = torch.compile(faces.draw, dynamic=False)  # four times as fast, after some seconds


def film(face, motion, some=4):
    """Draws one person's frames [T, 3, 256, 256], a few at a time: they stay in the cache."""
    face, frames = {k: v.clone() for k, v in faces.repeat(face, some).items()}, len(motion["open"])
    motion = {k: torch.cat([v, v[-1:].expand(-frames % some)]) for k, v in motion.items()}
    return torch.cat([draw(face, {k: v[i : i + some].clone() for k, v in motion.items()}, SIZE) for i in range(0, frames, some)])[:frames]


def main():
    parser = arguments(__doc__, ("base", Path), ("out", Path))
    parser.add_argument("--held-out", type=int, default=12)
    args = parsed(parser)
    vae = load(args.out / "vae.pth")
    speech = {k: v for k, v in np.load(args.out / "speech.npz").items()}
    hearing = torch.load(args.out / "hearing.pt", weights_only=True)
    text = Text(args.base, torch.load(args.out / "text.pt", weights_only=True))
    unfinished = args.out / "clips.part.pt"
    began, found = time.time(), torch.load(unfinished, weights_only=False) if unfinished.exists() else dict(clips=[], short=[], held=[], spent=0.0)
    before = found["spent"]
    found["features"] = torch.stack([last_state(hearing, s) for s in speech["sounds"]])

    @torch.no_grad()
    def encoded(i, kind, short=False):
        frames, j, begin, words = clip(i, speech, kind, short)
        z = normalised(vae, (frames * 2 - 1).contiguous(memory_format=torch.channels_last), len(frames))
        return dict(z=z.transpose(0, 1).half().contiguous(), sound=j, begin=begin, context=text(words).half(), words=words)

    while len(found["held"]) < args.held_out:
        found["held"].append(encoded(len(found["held"]), 1))
    # Training draws from both kinds, however short the time is.
    while found["spent"] < args.minutes * 60 or not (found["clips"] and found["short"]):
        made = len(found["clips"]) + len(found["short"])
        short = made % 3 > 0
        found["short" if short else "clips"].append(encoded(made, 0, short))
        found["spent"] = before + time.time() - began
        if made % 150 == 0:
            save(found, unfinished)
            print(made, f"{found['spent']:.0f} s", "deviation", found["clips"][-1]["z"].float().std().item(), flush=True)
    save(found, args.out / "clips.pt")
    unfinished.unlink(missing_ok=True)
    print(len(found["clips"]), "clips and", len(found["short"]), "short ones")


if __name__ == "__main__":
    main()
