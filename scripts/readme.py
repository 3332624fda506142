#!/usr/bin/env python3
"""Runs the commands of README.md in the order in which they are printed.

Every code block that begins with ```sh is run by bash from the folder of the repository; a command
that fails ends the check. A block that needs what this machine may lack (a GPU, the published
files) begins with ```bash, and is not run. `scripts/test` and `scripts/demo` are not run: the
first calls this check, the second has run before it.

  readme.py [--list]     with --list, prints the commands and runs none

The programs are installed for the check into a folder that is removed afterwards. What the commands
write goes to out/try, which is removed before them.
Exit codes: 0 every command succeeded, 1 one failed, 2 there is nothing to run.
"""
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BLOCK = re.compile(r"^```sh\n(.*?)^```$", re.DOTALL | re.MULTILINE)
# Run before this check, or calls it.
ELSEWHERE = ("scripts/demo", "scripts/test")


def commands(text: str) -> list[str]:
    """Lists the commands of every block. A line that ends with a backslash goes on."""
    found = []
    for block in BLOCK.findall(text):
        for line in block.replace("\\\n", " ").splitlines():
            command = re.sub(r"\s+#\s.*$", "", line).strip()
            if command and not command.startswith(ELSEWHERE):
                found.append(command)
    return found


def main() -> int:
    found = commands((ROOT / "README.md").read_text(encoding="utf-8"))
    if not found:
        print("readme: README.md has no command to run", file=sys.stderr)
        return 2
    if sys.argv[1:] == ["--list"]:
        print("\n".join(found))
        return 0
    shutil.rmtree(ROOT / "out/try", ignore_errors=True)
    with tempfile.TemporaryDirectory() as prefix:
        path = f"{prefix}/bin{os.pathsep}{os.environ['PATH']}"
        environment = os.environ | {"PREFIX": prefix, "PATH": path}
        for command in found:
            print(f"readme: {command}", flush=True)
            ended = subprocess.run(
                ["bash", "-euo", "pipefail", "-c", command],
                cwd=ROOT,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            if ended.returncode != 0:
                print(ended.stdout, end="", file=sys.stderr)
                print(f"readme: exit code {ended.returncode}: {command}", file=sys.stderr)
                return 1
    print(f"readme: {len(found)} commands ran")
    return 0


if __name__ == "__main__":
    sys.exit(main())
