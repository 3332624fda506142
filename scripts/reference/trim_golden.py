#!/usr/bin/env python3
"""Copies a golden set made by make_golden.py, leaving out what the repository's small set does without.

Not a generator: it changes no number. Files, tensors and manifest.json stay in agreement.

  trim_golden.py SOURCE TARGET      # needs safetensors and torch (bf16 tensors)
"""
import json
import shutil
import sys
from pathlib import Path

from safetensors.torch import load_file, save_file

# Whole files.
FILES = ["ckpt/Wan2.2-S2V-14B/wav2vec2-large-xlsr-53-english/model.safetensors"]

# Tensors: file -> name prefixes. Each is either implied by a tensor that stays or much like it.
TENSORS = {
    "framepack": ["motion25."],
    "e2e_tpp": ["frame008", "frame009", "frame044", "frame045"],
    "e2e_tpp_steps": ["block1."],
    "e2e_single": ["frame_last"],
    "e2e_single_online": ["frame_last"],
    "rng": ["seed421.f32", "seed421.bf16"],
    "audio": ["a44k.input_values", "a44k.bucket"],
    "image": ["area24576.resized_u8"],
}
# Kept although a prefix above matches.
KEEP = {"seed421.f32_small"}


def main(source: Path, target: Path) -> None:
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target)
    for name in FILES:
        (target / name).unlink()
    manifest_path = target / "golden" / "manifest.json"
    manifest = json.loads(manifest_path.read_text(encoding="utf-8"))
    for name in FILES:
        if name.startswith("golden/"):
            manifest["files"].pop(Path(name).name)
    for stem, prefixes in TENSORS.items():
        path = target / "golden" / f"{stem}.safetensors"
        tensors = load_file(path)
        gone = [n for n in tensors if n not in KEEP and any(n.startswith(p) for p in prefixes)]
        missing = [p for p in prefixes if not any(n.startswith(p) for n in gone)]
        if missing:
            sys.exit(f"{stem}: nothing to leave out starts with {missing}")
        for n in gone:
            del tensors[n], manifest["files"][path.name][n]
        save_file(tensors, path)
        path.chmod(0o644)
    manifest_path.write_text(json.dumps(manifest, indent=1, ensure_ascii=False), encoding="utf-8")
    agree(target, manifest)
    size = sum(p.stat().st_size for p in target.rglob("*") if p.is_file())
    print(f"{target}: {size} bytes, {sum(map(len, manifest['files'].values()))} tensors in {len(manifest['files'])} files")


def agree(target: Path, manifest: dict) -> None:
    """Stops unless manifest.json and the files list the same tensors with the same shapes and dtypes."""
    found = {p.name for p in (target / "golden").glob("*.safetensors")}
    if found != set(manifest["files"]):
        sys.exit(f"files and manifest differ: {sorted(found ^ set(manifest['files']))}")
    for name, entries in manifest["files"].items():
        tensors = load_file(target / "golden" / name)
        if set(tensors) != set(entries):
            sys.exit(f"{name}: tensors and manifest differ: {sorted(set(tensors) ^ set(entries))}")
        for key, t in tensors.items():
            e = entries[key]
            if list(t.shape) != e["shape"] or str(t.dtype).removeprefix("torch.") != e["dtype"]:
                sys.exit(f"{name}: {key} is {list(t.shape)} {t.dtype}, manifest says {e['shape']} {e['dtype']}")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(Path(sys.argv[1]), Path(sys.argv[2]))
