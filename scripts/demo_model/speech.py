"""Speaks sentences with espeak-ng, and says what a face does at each moment of a sound.

    speech.py OUT [--files 160]      OUT/speech.npz: sounds [N, seconds * 16000] with the motion of each, training first, held-out sentences last
"""
import argparse
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import torch

FPS, RATE, SECONDS = 25, 16000, 8
HELD_OUT = 12
WORDS = """the a quick brown fox jumps over lazy dog hello world today we will talk about music and weather people know that every story
has begin end maybe one more time please listen carefully to my voice it is quite amazing how machines learn speak sing laugh open mouth
wide yes no really why how many apples oranges bananas moon river mountain house window garden summer winter morning evening beautiful
yellow purple elephant computer picture video sound motion wonderful together number seven eleven twenty""".split()
UNHEARD = """My neighbour keeps three grey horses behind the old mill.
Could somebody bring us another pot of tea?
Every Thursday the library opens until half past eight!
Nobody believed that such a tiny engine could pull the train.
She wrote a long letter, folded it twice, and threw it away.
Our teacher collects shells, stamps, and broken clocks.
Follow this path until you reach the bridge, then turn left.
What a strange idea, to paint the kitchen ceiling green!
The captain smiled, because the storm had passed at last.
Fresh bread smells better than any perfume that I know.
If you ask me, both answers are a little bit wrong.
Keep your ticket safe; they will check it on the boat.""".splitlines()
VOICES = "en en-us en-gb-scotland en+f1 en+f2 en-us+f3 en-us+f4 en+m1 en-us+m3 en+m7 de fr es it nl pt".split()
UNHEARD_VOICES = "en-gb+f5 en-us+m2 en-gb-x-rp en-us+f2 en+m4".split()


# ------------------------------------------------------------------ sounds
def said(text, rng, voices=VOICES):
    """Returns the sentence as 16 kHz samples, in a voice, a speed and a pitch that the generator picks."""
    import soundfile
    from scipy.signal import resample_poly

    with tempfile.NamedTemporaryFile(suffix=".wav") as file:
        options = dict(v=rng.choice(voices), s=rng.integers(110, 200), p=rng.integers(20, 80), g=rng.integers(0, 12), w=file.name)
        subprocess.run(["espeak-ng", *(str(v) for k, o in options.items() for v in (f"-{k}", o)), text], check=True)
        x, rate = soundfile.read(file.name, dtype="float32")
    x = resample_poly(x, RATE, rate).astype(np.float32)
    return x / (np.abs(x).max() + 1e-6) * rng.uniform(0.4, 0.9)


def talk(rng, sentences=None, voices=VOICES, seconds=SECONDS):
    """Returns sentences with pauses between; room noise on most, true silence in some."""
    parts, total, next_one = [np.zeros(int(RATE * rng.uniform(0, 0.5)), np.float32)], 0, 0
    while total < seconds * RATE:
        if sentences is None:
            text = " ".join(rng.choice(WORDS, rng.integers(2, 9))) + str(rng.choice([",", ".", "?", "!"]))
        else:
            text, next_one = sentences[next_one % len(sentences)], next_one + 1
        parts += [said(text, rng, voices), np.zeros(int(RATE * rng.uniform(0.15, 0.9)), np.float32)]
        total = sum(map(len, parts))
    x = np.concatenate(parts)[: int(seconds * RATE)]
    tail = int(RATE * rng.uniform(0, 1.5))
    x[len(x) - tail :] = 0
    return x + (rng.random() < 0.7) * rng.normal(0, 10 ** rng.uniform(-4.5, -2.7), len(x)).astype(np.float32)


def no_speech(rng, seconds=SECONDS):
    """Returns noise or a few notes: a mouth stays shut."""
    n = seconds * RATE
    if rng.random() < 0.5:
        x = np.convolve(rng.normal(0, 1, n + 64), np.hanning(rng.integers(3, 40)), "same")[:n]
        x *= 0.6 + 0.4 * np.sin(np.arange(n) / RATE * rng.uniform(0.5, 6))
    else:
        x, at = np.zeros(n), 0
        while at < n:
            length = int(RATE * rng.uniform(0.15, 0.6))
            time = np.arange(length) / RATE
            note = 110 * 2 ** (rng.integers(0, 36) / 12)
            sound = sum(np.sin(2 * np.pi * note * k * time) / k**2 for k in (1, 2, 3, 4)) * np.exp(-3 * time)
            x[at : at + length] += sound[: n - at]
            at += int(length * rng.uniform(0.5, 1))
    return (x / np.abs(x).max() * rng.uniform(0.2, 0.8)).astype(np.float32)


# ------------------------------------------------------------------ sound to motion
def motion_of(x, frames):
    """Returns what the face does in each video frame of a 16 kHz sound: open, wide, blink (0..1) and dx, dy (parts of the picture), [frames] each.

    The mouth opens with the loudness, and less for hissing sounds; it is wide where the spectrum is high. The head nods with the sentence; a blink
    follows the end of a phrase. Loudness is relative to the whole sound's level, as the speech encoder hears it.
    """
    hop = RATE // FPS
    x = np.concatenate([x, np.zeros(max(0, frames * hop + 1024 - len(x)), np.float32)])
    x = x / (x.std() + 1e-6)
    window = np.hanning(1024).astype(np.float32)
    centres = np.arange(frames) * hop + hop // 2
    padded = np.pad(x, 512)
    power = np.abs(np.fft.rfft(np.stack([padded[i : i + 1024] for i in centres]) * window)) ** 2
    band, hz = power[:, 6:260], np.fft.rfftfreq(1024, 1 / RATE)[6:260]
    energy = band.sum(1) / (window**2).sum() / 512
    loud = np.clip((10 * np.log10(energy + 1e-9) + 24) / 26, 0, 1)
    centroid = (band * hz).sum(1) / (band.sum(1) + 1e-9)

    def smooth(v, kernel):
        kernel = np.asarray(kernel, float) / np.sum(kernel)
        return np.convolve(np.pad(v, len(kernel) // 2, mode="edge"), kernel, "valid")[: len(v)]

    short, long = np.hanning(9), np.hanning(21)  # a jaw is not as quick as a sound; a latent has four frames
    opened = smooth(loud**1.3 * (1 - 0.55 * np.clip((centroid - 1800) / 1500, 0, 1)), short)
    wide = smooth(0.5 + (np.clip((centroid - 350) / 900, 0, 1) - 0.5) * np.clip(loud * 2, 0, 1), short)
    blink = np.zeros(frames)
    quiet = np.pad(smooth(loud, (1, 1, 1)) < 0.12, (5, 5), constant_values=False)
    for i in range(frames):
        if not quiet[i : i + 5].any() and quiet[i + 5 : i + 10].all():  # five loud frames, then five quiet ones
            blink[i : i + 4] = np.maximum(blink[i : i + 4], (0.6, 1, 1, 0.5)[: frames - i])
    pose = dict(open=opened, wide=wide, blink=blink, dx=0.016 * (smooth(wide, long) - 0.5), dy=0.014 * smooth(loud, long))
    return {k: torch.from_numpy(v[:frames].astype(np.float32)) for k, v in pose.items()}


def shut(frames):
    """The motion of a face that hears nothing to say."""
    return {k: torch.full((frames,), 0.5 if k == "wide" else 0.0) for k in ("open", "wide", "blink", "dx", "dy")}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--files", type=int, default=160)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    sounds, motions = [], []
    for i in range(args.files):
        rng = np.random.default_rng((2026, 7, i))
        speechless = i % 10 == 9
        x = no_speech(rng) if speechless else talk(rng)
        sounds.append(x)
        motions.append(shut(SECONDS * FPS) if speechless else motion_of(x, SECONDS * FPS))
    for i in range(HELD_OUT):
        rng = np.random.default_rng((2026, 8, i))
        x = talk(rng, [UNHEARD[i], UNHEARD[(i + 5) % HELD_OUT]], UNHEARD_VOICES)
        sounds.append(x)
        motions.append(motion_of(x, SECONDS * FPS))
    np.savez(args.out / "speech.npz", sounds=np.stack(sounds).astype(np.float32), **{k: np.stack([m[k].numpy() for m in motions]) for k in motions[0]})


if __name__ == "__main__":
    main()
