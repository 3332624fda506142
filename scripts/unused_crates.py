#!/usr/bin/env python3
"""Checks that every package uses its dependencies, and that some package inherits each dependency
that the workspace declares.

A package uses a dependency where its Rust code names the crate: `name::`, `use name`,
`extern crate name` or `#[name`. Comments do not count. [dependencies] need a use in src/ outside of
test modules, [build-dependencies] in build.rs, [dev-dependencies] anywhere in the package.

  unused_crates.py [FOLDER]     the workspace to check, by default this one

Exit codes: 0 all are used, 1 some are not, 2 a manifest cannot be read.
"""
import re
import sys
import tomllib
from pathlib import Path

# (package, dependency): the reason why no code names it. A row without a need is a fault too.
ALLOWED = {}


def uncommented(text):
    """The code without comments. A `//` after a colon is taken for a URL."""
    return re.sub(r"/\*.*?\*/|(?<!:)//[^\n]*", "", text, flags=re.DOTALL)


def sources(package, kind):
    place = {"dependencies": "src", "build-dependencies": "build.rs", "dev-dependencies": "."}[kind]
    path = package / place
    return [path] if path.is_file() else sorted(path.rglob("*.rs"))


def shipped(text):
    """The code without its test module, which stands last in a file."""
    return re.split(r"#\[cfg\((?:all\()?test\b[^\n]*\n(?:#[^\n]*\n)*mod \w+ \{", text)[0]


def named(crate, texts):
    name = re.escape(crate.replace("-", "_"))
    use = re.compile(
        rf"(?<![\w:])(?:::)?{name}::|\buse\s+(?:::)?{name}\b"
        rf"|\bextern crate {name}\b|#!?\[{name}\b"
    )
    return any(use.search(t) for t in texts)


def tables(manifest):
    """Every table of dependencies, those for one target included: (kind, table)."""
    for part in [manifest, *manifest.get("target", {}).values()]:
        for kind in ("dependencies", "dev-dependencies", "build-dependencies"):
            yield kind, part.get(kind, {})


def check(root):
    """Returns the faults and the number of dependencies that were looked at."""
    workspace = manifest_of(root)["workspace"]
    faults, count, excused, inherited = [], 0, set(), set()
    for member in workspace["members"]:
        for kind, table in tables(manifest_of(root / member)):
            files = sources(root / member, kind)
            texts = [uncommented(f.read_text(encoding="utf-8")) for f in files]
            if kind == "dependencies":
                texts = [shipped(t) for t in texts]
            for crate, value in table.items():
                count += 1
                if isinstance(value, dict) and value.get("workspace"):
                    inherited.add(crate)
                if named(crate, texts):
                    continue
                if (member, crate) in ALLOWED:
                    excused.add((member, crate))
                else:
                    faults.append(f"{member}/Cargo.toml: no code uses {crate} of [{kind}]")
    for crate in sorted(set(workspace["dependencies"]) - inherited):
        faults.append(f"Cargo.toml: no package inherits {crate} of [workspace.dependencies]")
    for member, crate in sorted(set(ALLOWED) - excused):
        faults.append(f"unused_crates.py: ALLOWED excuses {crate} of {member} without a need")
    return faults, count


def manifest_of(folder):
    return tomllib.loads((folder / "Cargo.toml").read_text(encoding="utf-8"))


def self_check():
    """The pattern's claims; a pattern that matches everything must not pass anything."""
    table = {
        "use serde_json::Value;": True,
        "use serde_json as json;": True,
        "let v = serde_json::json!(1);": True,
        "::serde_json::to_string(v)": True,
        "#[serde_json(x)]": True,
        "use serde_json::Value;\n#[cfg(test)]\nmod tests {": True,
        "#[cfg(test)]\nmod tests {\nuse serde_json::Value;": False,
        "// serde_json::Value": False,
        "/* use serde_json::Value; */": False,
        "use my_serde_json::Value;": False,
        "crate::serde_json::read()": False,
        "let serde_json = 1;": False,
        "": False,
    }
    seen = {code: named("serde-json", [shipped(uncommented(code))]) for code in table}
    wrong = [code for code, want in table.items() if seen[code] != want]
    if wrong:
        sys.exit(f"unused_crates: the pattern is wrong about {wrong}")


def main():
    self_check()
    root = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parent.parent
    try:
        faults, count = check(root)
    except (OSError, KeyError, ValueError) as e:
        print(f"unused_crates: {e!r}", file=sys.stderr)
        return 2
    for fault in faults:
        print(f"unused_crates: {fault}", file=sys.stderr)
    print(f"unused_crates: {count} dependencies, {len(faults)} faults")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
