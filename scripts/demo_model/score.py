"""Scores what `avatar-run` makes of the demo's model against the drawn truth, on people and sentences that training never saw.

    score.py draw OUT                       OUT/person0.png, OUT/person0.wav ...
    score.py demo FACE.png SOUND.wav TRUTH.json   the demo's picture, and what its video of that sound should show
    score.py run OUT --models M [--name N] [--people 0,1,2] [-- options of avatar-run generate]
    score.py long OUT --models M --minutes 10
    score.py prompts OUT --models M
    score.py codec OUT --ckpt CKPT          the VAE alone

Needs torch, numpy, scipy, pillow, soundfile, av; `avatar-run` from PATH or AVATAR_RUN. Results go to OUT/scores.json and are printed.
"""
import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import soundfile
import torch
from PIL import Image

import faces
from clips import film
from speech import FPS, HELD_OUT, RATE, UNHEARD, UNHEARD_VOICES, motion_of, talk

SIZE, PEOPLE, DEMO, SMILE = 256, 6, 917, 0.4
RUN = os.environ.get("AVATAR_RUN", "avatar-run")
PROMPT = "A cartoon character speaks to the camera."


# ------------------------------------------------------------------ truth
def person(i):
    """Person i of the held-out ones, and a sound of two sentences that training never heard."""
    rng = np.random.default_rng((2026, 9, i))
    sound = talk(rng, [UNHEARD[(2 * i) % HELD_OUT], UNHEARD[(2 * i + 1) % HELD_OUT]], UNHEARD_VOICES)
    return faces.people(1, [900 + i]), sound


def motion(sound, frames, smile=SMILE, night=0.0):
    m = motion_of(sound, frames)
    return m | dict(smile=torch.full((frames,), smile), night=torch.full((frames,), night))


def draw(out):
    out.mkdir(parents=True, exist_ok=True)
    for i in range(PEOPLE):
        face, sound = person(i)
        picture = faces.draw(face, faces.still(1, smile=SMILE), SIZE)[0]
        Image.fromarray((picture.permute(1, 2, 0) * 255).round().byte().numpy()).save(out / f"person{i}.png")
        soundfile.write(out / f"person{i}.wav", sound, RATE, subtype="PCM_16")


def demo(picture, sound, truth):
    """Draws the demo's person, whom training never saw, and writes the opening of the mouth for each frame of a sound as it is read from the pixels."""
    from scipy.signal import resample_poly

    face = faces.people(1, [DEMO])
    drawn = faces.draw(face, faces.still(1, smile=SMILE), SIZE)[0]
    Image.fromarray((drawn.permute(1, 2, 0) * 255).round().byte().numpy()).save(picture, optimize=True)
    x, rate = soundfile.read(sound, dtype="float32")
    x = resample_poly(x, RATE, rate).astype(np.float32)
    frames = film(face, motion(x, round(len(x) / RATE * FPS), smile=1.0))
    cx, cy, half = (float(v) for v in faces.mouth_of(face))
    Path(truth).write_text(json.dumps(dict(
        about="The opening of the mouth in each frame, as a part of the picture: the height of what is no skin in a column. Made by scripts/demo_model/score.py demo.",
        column=dict(top=round(cy - 0.07, 5), bottom=round(cy + 0.15, 5), left=round(cx - 0.2 * half, 5), right=round(cx + 0.2 * half, 5)),
        skin=[round(float(v), 5) for v in face["skin"][0]], opening=[round(float(v), 4) for v in faces.openness(frames, face)],
    )) + "\n")


# ------------------------------------------------------------------ measures
def frames_of(video, some=64):
    """Yields the frames of a video as [n, 3, H, W] in 0..1, some at a time."""
    rows = []
    with av.open(str(video)) as file:
        for frame in file.decode(video=0):
            rows.append(torch.from_numpy(frame.to_ndarray(format="rgb24")))
            if len(rows) == some:
                yield torch.stack(rows).permute(0, 3, 1, 2).float() / 255
                rows = []
    if rows:
        yield torch.stack(rows).permute(0, 3, 1, 2).float() / 255


def decibels(mse):
    return float(-10 * torch.log10(torch.as_tensor(mse)))


def ssim(a, b):
    """Structural similarity of grey frames [n, 3, H, W] (Wang 2004: a Gaussian of 11 pixels and 1.5 deviation)."""
    grey = lambda v: (v * torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)).sum(1, keepdim=True)
    g = torch.exp(-((torch.arange(11) - 5.0) ** 2) / 4.5)
    g = g / g.sum()
    blur = lambda v: torch.nn.functional.conv2d(torch.nn.functional.conv2d(v, g.view(1, 1, 1, 11)), g.view(1, 1, 11, 1))
    a, b = grey(a), grey(b)
    ma, mb = blur(a), blur(b)
    va, vb, cov = blur(a * a) - ma**2, blur(b * b) - mb**2, blur(a * b) - ma * mb
    c1, c2 = 0.01**2, 0.03**2
    return ((2 * ma * mb + c1) * (2 * cov + c2) / ((ma**2 + mb**2 + c1) * (va + vb + c2))).mean((1, 2, 3))


def correlation(a, b):
    return float(np.corrcoef(a, b)[0, 1])


def lags(a, b, most=4):
    """Correlations of a with b by how many frames a is late."""
    n = len(a)
    return {d: correlation(a[max(0, d) : n + min(0, d)], b[max(0, -d) : n - max(0, d)]) for d in range(-most, most + 1)}


def against_truth(video, face, sound, smile=SMILE, night=0.0):
    """Scores of a video whose truth is known."""
    count = sum(len(f) for f in frames_of(video))
    m = motion(sound, count, smile, night)
    at, error, similar, read, true = 0, [], [], [], []
    for f in frames_of(video):
        truth = film(face, {k: v[at : at + len(f)] for k, v in m.items()})
        at += len(f)
        error.append((f - truth).pow(2).mean((1, 2, 3)))
        similar.append(ssim(f, truth))
        read.append(faces.openness(f, face))
        true.append(faces.openness(truth, face))
    error, similar, read, true = (torch.cat(v) for v in (error, similar, read, true))
    by_lag = lags(read.numpy(), true.numpy())
    best = max(by_lag, key=by_lag.get)
    shut = m["open"] < 0.02
    quiet = torch.stack([shut.roll(k) for k in range(-2, 3)]).all(0)
    talks = m["open"] > 0.3
    return dict(
        frames=count, psnr=float((-10 * torch.log10(error)).mean()), ssim=float(similar.mean()), mouth=by_lag[0], lag=best, at_lag=by_lag[best],
        gain=float(np.polyfit(true.numpy(), read.numpy(), 1)[0]),
        # Pixels of opening: in silence the mouth of the truth is a line of lips.
        silence=float((read[quiet] - true[quiet]).mean() * SIZE) if quiet.any() else None, talk=float((true[talks].mean() - true[shut].mean()) * SIZE),
    ), read.numpy()


def generate(models, out, picture, sound, prompt, options):
    command = [RUN, "generate", "--models", models, "--image", picture, "--audio", sound, "--prompt", prompt, "--size", f"{SIZE}*{SIZE}", "--out", out, "--overwrite", *options]
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    return done.stdout + done.stderr


def keep(out, name, result):
    file = out / "scores.json"
    all_results = json.loads(file.read_text()) if file.exists() else {}
    all_results[name] = result
    file.write_text(json.dumps(all_results, indent=1) + "\n")
    print(name, json.dumps(result), flush=True)


def run(args):
    """Every asked person with its own sound; then each video's mouth against another person's sound, which must be near zero."""
    each, control = [], []
    for i in args.people:
        face, sound = person(i)
        video = args.out / f"{args.name}{i}.mp4"
        generate(args.models, video, args.out / f"person{i}.png", args.out / f"person{i}.wav", PROMPT, args.options)
        score, read = against_truth(video, face, sound)
        other = motion_of(person((i + 1) % PEOPLE)[1], len(read))["open"].numpy()
        control.append(correlation(read, other))
        print(" ", i, json.dumps(score), "wrong sound %.2f" % control[-1], flush=True)
        each.append(score)
    mean = {k: float(np.mean([s[k] for s in each if s[k] is not None])) for k in each[0]}
    keep(args.out, args.name, mean | dict(worst_mouth=min(s["mouth"] for s in each), worst_psnr=min(s["psnr"] for s in each), lags=[s["lag"] for s in each], wrong_sound=float(np.mean(control))))


def codec(args):
    """The VAE alone, on the frames that the videos should show."""
    from train_vae import held_out
    from vae import load, normalised, pictures

    vae = load(args.ckpt / "Wan2.2-S2V-14B/Wan2.1_VAE.pth")
    whole, parts, mouths = [], [], []
    with torch.no_grad():
        for i in range(PEOPLE):
            face, sound = person(i)
            truth = film(face, motion(sound, 65))
            seen = pictures(vae, normalised(vae, truth * 2 - 1, 65), 17)
            error, weight = (seen - truth).pow(2), faces.attention(face, SIZE) > 1.8
            whole.append(decibels(error.mean()))
            parts.append(decibels((error.mean(1, keepdim=True) * weight).sum() / weight.sum() / 65))
            mouths.append(correlation(faces.openness(seen, face).numpy(), faces.openness(truth, face).numpy()))
        pictures_alone = held_out(vae)
    keep(args.out, "codec", dict(psnr=float(np.mean(whole)), mouth_and_eyes=float(np.mean(parts)), mouth=float(np.mean(mouths)), pictures=pictures_alone))


def long(args):
    """Colour, sharpness and identity of each minute of a long video, relative to the first minute's; and whether they drift."""
    from vae import load, normalised

    face, sound = person(0)
    words = np.tile(sound, int(args.minutes * 60 * RATE / len(sound)) + 1)[: int(args.minutes * 60 * RATE)]
    soundfile.write(args.out / "long.wav", words, RATE, subtype="PCM_16")
    video = args.out / f"{args.name}.mp4"
    generate(args.models, video, args.out / "person0.png", args.out / "long.wav", PROMPT, args.options)
    vae = load(args.ckpt / "Wan2.2-S2V-14B/Wan2.1_VAE.pth")
    encode = lambda x: normalised(vae, x * 2 - 1, 1)
    picture = torch.from_numpy(np.asarray(Image.open(args.out / "person0.png").convert("RGB"))).permute(2, 0, 1)[None].float() / 255
    rows, psnr, at = [], [], 0
    m = motion(words, int(args.minutes * 60 * FPS) + 64)
    with torch.no_grad():
        anchor = encode(picture)
        for f in frames_of(video):
            sharp = torch.nn.functional.conv2d(f.mean(1, keepdim=True), torch.tensor([[[[0.0, 1, 0], [1, -4, 1], [0, 1, 0]]]])).pow(2).mean((1, 2, 3)).sqrt()
            apart = (encode(f[::8]) - anchor).pow(2).mean().sqrt()
            rows.append((at / FPS, *f.mean((0, 2, 3)).tolist(), float(sharp.mean()), float(apart)))
            truth = film(face, {k: v[at : at + len(f)] for k, v in m.items()}) if len(rows) % 8 == 0 else None
            if truth is not None:
                psnr.append((at / FPS, decibels((f - truth).pow(2).mean())))
            at += len(f)
    rows, psnr = np.array(rows), np.array(psnr)
    first, last = rows[rows[:, 0] < 60], rows[rows[:, 0] >= args.minutes * 60 - 60]
    names = ("red", "green", "blue", "sharpness", "distance")
    result = {n: float(last[:, i + 1].mean() / first[:, i + 1].mean()) for i, n in enumerate(names)}
    slope = {n: float(np.polyfit(rows[:, 0] / 60, rows[:, i + 1], 1)[0] / rows[:, i + 1].mean()) for i, n in enumerate(names)}
    keep(args.out, args.name, dict(seconds=at / FPS, last_to_first=result, slope_a_minute=slope, psnr_first=float(psnr[psnr[:, 0] < 60][:, 1].mean()), psnr_last=float(psnr[psnr[:, 0] >= args.minutes * 60 - 60][:, 1].mean())))


def prompts(args):
    """What a prompt changes: each video is compared with the truth of its own prompt and of the others'."""
    asked = {"smiling": ("A cartoon character speaks to the camera, smiling.", 1.0, 0.0), "serious": ("A cartoon character speaks to the camera, with a serious face.", 0.0, 0.0), "night": ("A cartoon character speaks to the camera, at night.", SMILE, 1.0)}
    table = {}
    for i in args.people:
        face, sound = person(i)
        for name, (words, _, _) in asked.items():
            video = args.out / f"{args.name}_{name}{i}.mp4"
            generate(args.models, video, args.out / f"person{i}.png", args.out / f"person{i}.wav", words, args.options)
            for other, (_, smile, night) in asked.items():
                table.setdefault(f"{name} against {other}", []).append(against_truth(video, face, sound, smile, night)[0]["psnr"])
    keep(args.out, args.name, {k: float(np.mean(v)) for k, v in table.items()})


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("draw", "demo", "run", "codec", "long", "prompts"))
    parser.add_argument("out", type=Path, nargs="+")
    parser.add_argument("--models", type=Path)
    parser.add_argument("--ckpt", type=Path)
    parser.add_argument("--name")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--people", type=lambda v: [int(i) for i in v.split(",")], default=list(range(PEOPLE)))
    parser.add_argument("--threads", type=int, default=2)
    own, options = sys.argv[1:], []
    if "--" in own:
        own, options = own[: own.index("--")], own[own.index("--") + 1 :]
    args = parser.parse_args(own)
    args.options = options
    torch.set_num_threads(args.threads)
    args.name = args.name or args.what
    if args.what == "demo":
        return demo(*args.out)
    args.out = args.out[0]
    if args.what == "draw":
        draw(args.out)
    else:
        dict(run=run, codec=codec, long=long, prompts=prompts)[args.what](args)


if __name__ == "__main__":
    main()
