#!/usr/bin/env python3
"""Writes runtime/src/html5_entities.txt: every named character reference of HTML5, name and code points in hex, from Python's own table."""
import html.entities
import pathlib

lines = [f"{name} {' '.join(f'{ord(c):X}' for c in text)}\n" for name, text in sorted(html.entities.html5.items())]
pathlib.Path(__file__).parent.parent.joinpath("runtime/src/html5_entities.txt").write_text("".join(lines), encoding="ascii")
