"""The frame of a training stage: its arguments, and files that appear when they are complete."""
import argparse
from pathlib import Path

import torch

HALF = "amx_bf16" in Path("/proc/cpuinfo").read_text()  # matrix units multiply bf16 about seven times as fast


def arguments(doc, *folders, minutes=None):
    """Returns a parser with these folders, `--minutes` (needed, if there is no default) and `--threads`."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    for name, type_ in folders:
        parser.add_argument(name, type=type_)
    parser.add_argument("--minutes", type=float, default=minutes, required=minutes is None)
    parser.add_argument("--threads", type=int, default=1)
    return parser


def parsed(parser):
    """Parses the command line, and sets threads and seed."""
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    torch.set_flush_denormal(True)  # else a sharp attention's backward pass takes ten times as long
    return args


def save(value, file):
    """Writes a file that appears under its name when it is complete."""
    unfinished = file.with_name(file.name + ".new")
    torch.save(value, unfinished)
    unfinished.rename(file)
