#!/usr/bin/env python3
"""Kills runs of avatar-run at random moments, lets them go on, and compares the videos with one that never stopped.

  scripts/kill_check.py --models DIR [--program target/release/avatar-run] [--kills 50] [--seed 1] [--mode tpp] [-- FLAGS...]

Each video is killed (SIGKILL, or with --term SIGTERM) until it is whole: first as it is, then with --resume. The file must be that of
the whole run, byte for byte. Exit codes: 0 all are equal, 1 one differs or a run failed.
"""
import argparse
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--models", required=True)
    p.add_argument("--program", default=str(ROOT / "target/release/avatar-run"))
    p.add_argument("--kills", type=int, default=50)
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--term", action="store_true", help="SIGTERM instead of SIGKILL")
    p.add_argument("--keep", help="folder to copy what a failed run left to")
    p.add_argument("flags", nargs="*", help="more flags of generate")
    a = p.parse_args()
    rng = random.Random(a.seed)
    line = [a.program, "generate", "--models", a.models, "--image", str(ROOT / "assets/demo/face.png"), "--audio", str(ROOT / "assets/speech.wav"),
            "--prompt", "A person speaks.", "--size", "64*64", "--preset", "ultrafast", "--keep-state", "0", *a.flags]
    sent = signal.SIGTERM if a.term else signal.SIGKILL
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        whole = folder / "whole.mp4"
        began = time.time()
        subprocess.run([*line, "--out", str(whole)], check=True, capture_output=True)
        seconds = time.time() - began
        kills = videos = resumed = 0
        while kills < a.kills:
            out, tries = folder / "v.mp4", 0
            while not out.exists():
                before = folder / "before"
                if a.keep:
                    shutil.rmtree(before, ignore_errors=True)
                    shutil.copytree(folder, before, ignore=lambda _, names: [n for n in names if n in ("before", "whole.mp4")])
                run = subprocess.Popen([*line, "--out", str(out), *(["--resume"] if tries else [])], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
                try:
                    # Later tries get more time, so that each video ends.
                    run.wait(rng.uniform(0.05, 1.0) * seconds * (1 + tries / 4))
                except subprocess.TimeoutExpired:
                    run.send_signal(sent)
                    run.wait()
                    kills += 1
                told = run.stderr.read().decode()
                resumed += "going on after" in told
                if run.returncode not in (0, -sent, 6):
                    if a.keep:
                        shutil.copytree(before, a.keep, dirs_exist_ok=True)
                    sys.exit(f"try {tries + 1}, exit {run.returncode}: {told}")
                tries += 1
            if out.read_bytes() != whole.read_bytes():
                sys.exit(f"after {tries} tries the video differs")
            videos += 1
            left = sorted(f.name for f in folder.iterdir() if f.name not in ("whole.mp4", "whole.run.json", "v.mp4", "v.run.json", "before"))
            # Without a state a video begins anew, and what there was of it is kept under another name.
            if run.returncode == 0 and [n for n in left if not n.endswith(".mp4")]:
                sys.exit(f"left behind: {left}")
            # A run that was killed behind its last step has its video, and could not tidy up.
            for name in left:
                shutil.rmtree(folder / name) if (folder / name).is_dir() else (folder / name).unlink()
            out.unlink()
            out.with_suffix(".run.json").unlink(missing_ok=True)
        print(f"{kills} kills ({sent.name}) in {videos} videos of {seconds:.1f} s, {resumed} runs went on from a state: every file is that of the whole run")


if __name__ == "__main__":
    main()
