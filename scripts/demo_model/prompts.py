"""Writes prompts that say something that shows, and fits the small umT5 to pass it on.

    prompts.py BASE OUT [--minutes 2] [--threads 1]      OUT/text.pt: weights of the text encoder

A prompt may say how the face looks (smiling or serious) and when it is (day or night). What it does not say stays as in the picture.
"""
import sys
import time
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer

from stage import arguments, parsed, save

sys.path.append(str(Path(__file__).resolve().parents[1] / "reference"))
from bench_torch import TextEncoder

FOLDER = "Wan2.2-S2V-14B"
WHO = "a woman|a man|a person|a friendly cartoon character|a cartoon character|a young woman|an old man|somebody|a teacher|a host|a face".split("|")
DOES = "speaks to the camera|talks to the camera|is talking|tells a story|speaks|says hello|talks about the weather|gives a talk|explains something".split("|")
SMILING = "smiling|with a smile|with a friendly smile|cheerful|happy|looking happy|laughing|with a big smile|in a good mood|smiling warmly".split("|")
SERIOUS = "serious|with a serious face|looking serious|stern|calm and serious|without a smile|not smiling|sad|with a sad face|in a bad mood".split("|")
DAY = "by day|in daylight|in warm light|in the morning|on a sunny day|in bright light|in a bright room|in the sun|during the day".split("|")
NIGHT = "at night|in the night|under the moon|by moonlight|in the dark|late at night|under a dark sky|at midnight|in the evening".split("|")
REST = "|high quality|a close-up|studio background|looking at the viewer|sharp focus|a portrait|4k|cinematic".split("|")


def prompt(rng):
    """Returns a prompt, its smile (0, 1 or None) and its night (0, 1 or None)."""
    pick = lambda words: words[rng.integers(len(words))]
    smile, night = (None if rng.random() < 0.3 else int(rng.integers(2)) for _ in range(2))
    parts = [p for p in (smile is not None and pick((SERIOUS, SMILING)[smile]), night is not None and pick((DAY, NIGHT)[night]), pick(REST)) if p]
    rng.shuffle(parts)
    text = f"{pick(WHO)} {pick(DOES)}"
    text = ", ".join([text, *parts]) if rng.random() < 0.8 else ", ".join([*parts, text])
    return (text[0].upper() + text[1:] if rng.random() < 0.8 else text) + ("." if rng.random() < 0.6 else ""), smile, night


class Text:
    """The text encoder with its tokenizer: prompts to context [tokens, width]."""

    def __init__(self, base, weights=None):
        folder = Path(base) / FOLDER
        self.tokens = Tokenizer.from_file(str(folder / "google/umt5-xxl/tokenizer.json"))
        self.encoder = TextEncoder(folder)
        if weights is not None:
            self.encoder.w = weights

    def __call__(self, text):
        return self.encoder(torch.tensor(self.tokens.encode(text).ids))


def main():
    args = parsed(arguments(__doc__, ("base", Path), ("out", Path), minutes=2))
    text, rng = Text(args.base), np.random.default_rng(0)
    free = {k: v.requires_grad_() for k, v in text.encoder.w.items()}
    head = torch.nn.Linear(text.encoder.w["norm.weight"].numel(), 4)  # smiling, serious, night, day: every token says it
    opt = torch.optim.AdamW([*free.values(), *head.parameters()], lr=2e-3, weight_decay=1e-3)
    wanted = lambda smile, night: torch.tensor([float(v) for v in (smile == 1, smile == 0, night == 1, night == 0)])
    began, step, right, seen, total = time.time(), 0, 0, 0, 0.0
    while (u := (time.time() - began) / 60 / args.minutes) < 1:
        opt.param_groups[0]["lr"] = 2e-3 * min(1, (step + 1) / 30) * (1 - u)
        opt.zero_grad(set_to_none=True)
        for _ in range(8):
            words, smile, night = prompt(rng)
            said, y = head(text(words)), wanted(smile, night)
            loss = torch.nn.functional.binary_cross_entropy_with_logits(said, y.expand_as(said))
            (loss / 8).backward()
            right, seen, total = right + ((said > 0) == (y > 0)).float().mean().item(), seen + 1, total + loss.item()
        opt.step()
        step += 1
        if step % 50 == 0:
            print(f"{step} {time.time() - began:.0f} s, loss {total / seen:.4f}, right {right / seen:.4f}", flush=True)
            right, seen, total = 0, 0, 0.0
    save({k: v.detach() for k, v in free.items()}, args.out / "text.pt")


if __name__ == "__main__":
    main()
