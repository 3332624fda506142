#!/usr/bin/env python3
"""Checks the licences and sources of all Rust dependencies against deny.toml; stands in where cargo-deny is not installed.

Not cargo-deny: it reads what the crates declare, not their licence files, and knows nothing of advisories or duplicate versions.

  licences.py [--list] [--metadata FILE]     --list: print every crate with its licence; --metadata: output of `cargo metadata` instead of running it

Exit codes: 0 all allowed, 1 something is not, 2 cannot tell (cargo or deny.toml failed).
"""
import argparse
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
REGISTRY = "registry+"


def allowed(expression, allow):
    """Whether an SPDX expression can be met with the allowed licences: OR by any side, AND by both. Old crates write `/` for OR."""
    tokens = re.findall(r"\(|\)|[^\s()]+", expression.replace("/", " OR "))

    def alternatives():
        met = all_of()
        while tokens and tokens[0] == "OR":
            tokens.pop(0)
            met = all_of() or met
        return met

    def all_of():
        met = one()
        while tokens and tokens[0] == "AND":
            tokens.pop(0)
            met = one() and met
        return met

    def one():
        if not tokens:
            raise ValueError("ends too early")
        token = tokens.pop(0)
        if token == "(":
            met = alternatives()
            if not tokens or tokens.pop(0) != ")":
                raise ValueError("has an unclosed bracket")
            return met
        if token in (")", "AND", "OR", "WITH"):
            raise ValueError(f"has {token} where a licence should stand")
        if len(tokens) > 1 and tokens[0] == "WITH":
            token = f"{token} WITH {tokens[1]}"
            del tokens[:2]
        return token in allow

    met = alternatives()
    if tokens:
        raise ValueError(f"goes on with {' '.join(tokens)}")
    return met


def faults_of(package, members, rules):
    """What is wrong with one package of `cargo metadata`."""
    source, licence = package["source"], package["license"]
    if source is None and package["id"] not in members:
        yield "a path dependency outside the workspace"
    elif source is not None and not (source.startswith(REGISTRY) and source.removeprefix(REGISTRY) in rules["sources"]["allow-registry"]):
        yield f"source {source} is not allowed"
    if not licence:
        yield "declares no licence expression"
        return
    try:
        if not allowed(licence, set(rules["licenses"]["allow"])):
            yield f"licence {licence} is not allowed by deny.toml"
    except ValueError as e:
        yield f"licence expression {licence!r} {e}"


def self_check():
    """The evaluator's claims; a wrong evaluator must not pass anything."""
    allow = {"MIT", "Apache-2.0", "Unicode-3.0", "Apache-2.0 WITH LLVM-exception"}
    table = {
        "MIT": True, "GPL-3.0": False, "GPL-3.0 OR MIT": True, "GPL-3.0/MIT": True, "MIT AND GPL-3.0": False,
        "(MIT OR GPL-3.0) AND Unicode-3.0": True, "(MIT OR Apache-2.0) AND GPL-3.0": False, "MIT OR GPL-3.0 AND GPL-2.0": True,
        "Apache-2.0 WITH LLVM-exception": True, "MIT WITH LLVM-exception": False,
    }
    wrong = [e for e, want in table.items() if allowed(e, allow) != want]
    for bad in ("", "MIT OR", "(MIT", "MIT MIT", "OR"):
        try:
            allowed(bad, allow)
            wrong.append(bad)
        except ValueError:
            pass
    if wrong:
        sys.exit(f"licences: the evaluator is wrong about {wrong}")


def metadata(file, rules):
    if file:
        return json.loads(Path(file).read_text(encoding="utf-8"))
    command = ["cargo", "metadata", "--format-version", "1", "--locked", "--all-features"]
    for target in rules["graph"]["targets"]:
        command += ["--filter-platform", target]
    return json.loads(subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE).stdout)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--list", action="store_true")
    p.add_argument("--metadata")
    a = p.parse_args()
    self_check()
    try:
        rules = tomllib.loads((ROOT / "deny.toml").read_text(encoding="utf-8"))
        found = metadata(a.metadata, rules)
    except (OSError, subprocess.CalledProcessError, ValueError) as e:
        print(f"licences: {e}", file=sys.stderr)
        return 2
    members = set(found["workspace_members"])
    used = {n["id"] for n in found["resolve"]["nodes"]}
    packages = sorted((q for q in found["packages"] if q["id"] in used), key=lambda q: (q["name"], q["version"]))
    if a.list:
        for q in packages:
            print(f"{q['name']} {q['version']}: {q['license']}")
    faults = [f"{q['name']} {q['version']}: {f}" for q in packages for f in faults_of(q, members, rules)]
    for f in faults:
        print(f"licences: {f}", file=sys.stderr)
    print(f"licences: {len(packages)} packages, {len(faults)} faults")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
