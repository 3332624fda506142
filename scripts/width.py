#!/usr/bin/env python3
"""Checks that no line of Rust and no line of prose is wider than 100 columns.

Looks at every .rs file of the repository, README.md, CHANGELOG.md and docs/*.md. Four kinds of
line may be wider, because a break would harm them:
  - a line with a URL, if the line is narrow enough without the URL;
  - in Rust, a line that holds one string literal alone, with the closing marks after it (`)?;`): a
    message stays whole, so that a search finds it. A long literal gets a line of its own;
  - in Rust, a line inside of a literal that began on an earlier line;
  - in Markdown, a row of a table and a line of a code block.

  width.py [FOLDER]     the repository to check, by default this one

Exit codes: 0 all lines fit, 1 some do not, 2 there is nothing to check.
"""
import re
import sys
import unicodedata
from pathlib import Path

COLUMNS = 100
URL = re.compile(r"https?://\S+")
LITERAL = r'b?c?(?:r(#*)".*?"\1|"(?:[^"\\]|\\.)*")'
ALONE = re.compile(rf"\s*{LITERAL}[)\]}}?]*[,;]?")
# What a Rust file consists of, as far as strings go. A quote may be a lifetime: no string starts.
TOKEN = re.compile(
    rf"""//[^\n]*|/\*.*?\*/|(?<!\w){LITERAL}|'(?:\\.[^'\n]*|[^'\\\n])'""", re.DOTALL
)


def width(line):
    """Columns of a terminal: letters of East Asia take two, combining marks none."""
    wide = sum(unicodedata.east_asian_width(c) in "WF" for c in line)
    return len(line) + wide - sum(unicodedata.combining(c) > 0 for c in line)


def too_wide(line):
    return width(line) > COLUMNS and width(URL.sub("", line)) > COLUMNS


def rust_lines(text):
    """(number, line) of the lines that must fit."""
    inside = set()
    for token in TOKEN.finditer(text):
        if '"' in token[0][:9] and not token[0].startswith("/"):
            first = text.count("\n", 0, token.start()) + 1
            inside.update(range(first + 1, first + 1 + token[0].count("\n")))
    for number, line in enumerate(text.splitlines(), 1):
        if number not in inside and not ALONE.fullmatch(line):
            yield number, line


def prose_lines(text):
    fenced = False
    for number, line in enumerate(text.splitlines(), 1):
        if line.lstrip().startswith("```"):
            fenced = not fenced
        elif not fenced and not line.lstrip().startswith("|"):
            yield number, line


def self_check():
    """The claims about the exemptions; a check that exempts everything must not pass anything."""
    long = "word " * 20
    table = {
        rust_lines: {
            f"// {long}": 1, f'    "{long}"': 0, f'    r#"{long}"#)?;': 0, f'    "{long}", 1,': 1,
            f'let a = "{long}";': 1, f'let a = r"\n{long}\n{long}";': 0,
            f'let a = "\\\n{long}";': 0,
            f"let a = '\"';\n// {long}": 1, f"fn f<'a>(a: &'a str) {{}} // {long}": 1,
            f'#[error("{long}")]': 1, f"/* \" {long} \" */": 1, f'let a = "\\"";\n// {long}': 1,
            f"/// https://example.com/{'x' * 100}": 0, f"/// {long} https://example.com/": 1,
            f"// {'光' * 49}": 1, f"// {'光' * 48}": 0, "x" * 100: 0, "x" * 101: 1,
        },
        prose_lines: {
            long * 2: 1, f"| {long} |": 0, f"```\n{long}x\n```\n{long}x": 1, f"- {long}": 1,
        },
    }
    for lines, cases in table.items():
        for text, want in cases.items():
            got = sum(too_wide(line) for _, line in lines(text))
            if got != want:
                sys.exit(f"width: {lines.__name__} finds {got} faults, not {want}, in {text!r}")


def main():
    self_check()
    root = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parent.parent
    packages = sorted(p.parent for p in root.glob("*/Cargo.toml"))
    rust = [f for p in packages for f in sorted(p.rglob("*.rs"))]
    prose = [root / "README.md", root / "CHANGELOG.md", *sorted(root.glob("docs/*.md"))]
    if not rust:
        print(f"width: no Rust file in {root}", file=sys.stderr)
        return 2
    faults = 0
    for files, lines in ((rust, rust_lines), (prose, prose_lines)):
        for file in files:
            for number, line in lines(file.read_text(encoding="utf-8")):
                if too_wide(line):
                    faults += 1
                    place = f"{file.relative_to(root)}:{number}"
                    print(f"{place}: {width(line)} columns, wants {COLUMNS}", file=sys.stderr)
    print(f"width: {len(rust) + len(prose)} files, {faults} lines over {COLUMNS} columns")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
