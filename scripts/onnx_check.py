#!/usr/bin/env python3
"""Checks .onnx files: the ONNX checker, strict shape inference from nothing but the inputs, and the external weights' places.

Not a numeric check and not a runtime: no weight is read. Graphs whose `.data` files are absent are checked too; the checker wants to see the
files, so it gets a copy of the graph beside empty ones (it never looks inside).

  onnx_check.py [--strict] FOLDER_OR_FILE...     --strict: a value whose type or rank inference cannot tell is a failure as well

Exit codes: 0 all pass, 2 usage, 3 nothing to check, 7 some file fails.
"""
import argparse
import sys
import tempfile
from pathlib import Path

import onnx
from onnx import TensorProto, checker, helper, shape_inference

UNTOLD = 5  # names printed of a longer list


def graphs(graph):
    """The graph and every graph inside its nodes."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in ([attribute.g] if attribute.HasField("g") else []) + list(attribute.graphs):
                yield from graphs(inner)


def external(model):
    """(name, file, offset, length or None, bytes by shape and type) of each weight kept outside the file."""
    for graph in graphs(model.graph):
        for t in graph.initializer:
            if t.data_location != TensorProto.EXTERNAL:
                continue
            place = {e.key: e.value for e in t.external_data}
            count = 1
            for d in t.dims:
                count *= d
            size = bits(t.data_type) * count
            yield t.name, place.get("location", ""), int(place.get("offset", 0)), int(place["length"]) if "length" in place else None, (size + 7) // 8


def bits(data_type):
    name = TensorProto.DataType.Name(data_type)
    if name.endswith("INT4") or name == "FLOAT4E2M1":
        return 4
    if name.endswith("INT2"):
        return 2
    return helper.tensor_dtype_to_np_dtype(data_type).itemsize * 8


def weights_in_place(path, model):
    """Faults of the external weights: wrong lengths, places beyond the file, overlaps; and how many files there are and lack."""
    faults, spans, files = [], {}, set()
    for name, location, offset, length, size in external(model):
        file = path.parent / location
        if not location or Path(location).is_absolute() or ".." in Path(location).parts:
            faults.append(f"{name}: external location {location!r} is not a plain relative path")
            continue
        files.add(file)
        if length is not None and length != size:
            faults.append(f"{name}: external length wanted {size}, got {length}")
        if file.is_file() and offset + size > file.stat().st_size:
            faults.append(f"{name}: external bytes {offset}..{offset + size} lie beyond {location} of {file.stat().st_size} bytes")
        spans.setdefault(location, set()).add((offset, offset + size, name))
    for location, found in spans.items():
        ordered = sorted(found)
        for (a0, a1, a), (b0, b1, b) in zip(ordered, ordered[1:]):
            # Two names for the very same bytes are a shared weight.
            if b0 < a1 and (a0, a1) != (b0, b1):
                faults.append(f"{location}: {a} and {b} overlap at byte {b0}")
    return faults, files, {f for f in files if not f.is_file()}


def run_checker(path, model, absent):
    """The ONNX checker with full check, on the file itself or, when weights are absent, on a copy beside empty ones."""
    if not absent:
        checker.check_model(str(path), full_check=True)
        return
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / path.name
        copy.write_bytes(path.read_bytes())
        for location in {place for _, place, *_ in external(model)}:
            file = Path(folder) / location
            file.parent.mkdir(parents=True, exist_ok=True)
            file.touch()
        checker.check_model(str(copy), full_check=True)


def dims(value):
    """The dimensions (int, name or None each) of a value, or None when even the rank is unknown."""
    t = value.type.tensor_type
    if not t.elem_type or not t.HasField("shape"):
        return None
    return [d.dim_value if d.HasField("dim_value") else d.dim_param or None for d in t.shape.dim]


def infer(model):
    """Strict inference with the file's own shape claims taken out first: contradictions, and values that stay unknown."""
    declared = {v.name: v for v in list(model.graph.value_info) + list(model.graph.output)}
    bare = onnx.ModelProto()
    bare.CopyFrom(model)
    del bare.graph.value_info[:]
    for o in bare.graph.output:
        o.type.tensor_type.ClearField("shape")
    inferred = shape_inference.infer_shapes(bare, check_type=True, strict_mode=True, data_prop=True)
    found = {v.name: v for v in list(inferred.graph.value_info) + list(inferred.graph.output)}
    faults = []
    for name, value in declared.items():
        want, got = dims(value), dims(found[name]) if name in found else None
        if want is None or got is None:
            continue
        if value.type.tensor_type.elem_type != found[name].type.tensor_type.elem_type:
            faults.append(f"{name}: declared type differs from the inferred one")
        if len(want) != len(got) or any(isinstance(a, int) and isinstance(b, int) and a != b for a, b in zip(want, got)):
            faults.append(f"{name}: declared shape {want}, inferred {got}")
    outputs = [o for node in model.graph.node for o in node.output if o]
    unknown = [o for o in outputs if o not in found or dims(found[o]) is None]
    return faults, outputs, unknown


def check(path, strict):
    """The faults of one file and a line about it."""
    model = onnx.load(str(path), load_external_data=False)
    faults, files, absent = weights_in_place(path, model)
    line = []
    try:
        run_checker(path, model, absent)
        contradictions, outputs, unknown = infer(model)
        faults += contradictions
        line.append(f"{len(model.graph.node)} nodes, {len(outputs) - len(unknown)} of {len(outputs)} values inferred")
        if strict and unknown:
            faults.append(f"{len(unknown)} values without inferred type and rank: {', '.join(unknown[:UNTOLD])}")
    except (checker.ValidationError, shape_inference.InferenceError) as e:
        faults.append(" ".join(str(e).split()))
    if files:
        line.append(f"weights outside: {len(files) - len(absent)} of {len(files)} files present")
    return faults, "; ".join(line)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--strict", action="store_true")
    p.add_argument("paths", nargs="+", type=Path)
    a = p.parse_args()
    paths = []
    for given in a.paths:
        found = sorted(given.rglob("*.onnx")) if given.is_dir() else [given] if given.is_file() else []
        if not found:
            print(f"onnx_check: no .onnx file in {given}", file=sys.stderr)
            return 3
        paths += found
    failed = []
    for path in paths:
        try:
            faults, line = check(path, a.strict)
        except Exception as e:  # not a protobuf, unreadable, out of memory: a fault of that file, the others are still checked
            faults, line = [f"{type(e).__name__}: {' '.join(str(e).split())}"], ""
        print(f"{'FAIL' if faults else 'ok  '} {path}: {line}")
        for fault in faults:
            print(f"     {fault}")
        if faults:
            failed.append(path)
    print(f"onnx_check: {len(paths)} files, {len(failed)} failed (onnx {onnx.__version__})")
    for path in failed:
        print(f"onnx_check: failed {path}", file=sys.stderr)
    return 7 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
