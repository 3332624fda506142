//! Reads the structure of the crates from their `use` lines. The rooms of `runtime` form a stair,
//! and no two files need each other.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use tests::golden::workspace;

/// The rooms of `runtime` from the ground up. A room uses only rooms before it.
const ROOMS: [&str; 9] = [
    "numbers",
    "media",
    "inputs",
    "placement",
    "chain",
    "generate",
    "planner",
    "checks",
    "commands",
];

/// Rooms that a room may use, where that is less than all before it.
const ONLY: [(&str, &[&str]); 4] = [
    ("media", &["numbers"]),
    ("inputs", &["numbers", "media"]),
    ("placement", &["numbers"]),
    ("planner", &["numbers", "placement"]),
];

/// Lists the Rust files below a folder.
fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
    found.sort();
    found
}

/// Returns a file without its tests and comments.
fn code(path: &Path) -> String {
    let text = fs::read_to_string(path).unwrap();
    let text = text.split("mod tests {").next().unwrap();
    let lines = text.lines().filter(|l| !l.trim_start().starts_with("//"));
    lines.collect::<Vec<_>>().join("\n")
}

/// Returns the module path of a file below `src`, such as `["chain", "executor", "worker"]`.
fn module(src: &Path, path: &Path) -> Vec<String> {
    let path = path.strip_prefix(src).unwrap().with_extension("");
    let mut parts: Vec<String> = path
        .iter()
        .map(|p| p.to_str().unwrap().to_owned())
        .collect();
    // Stand-ins of a build without a feature take the place of the real file.
    parts.retain(|p| p != "absent");
    if matches!(parts.last().map(String::as_str), Some("lib" | "main")) {
        parts.pop();
    }
    parts
}

/// Finds every path that starts with `crate::` or `super::`, as the module that it names. The
/// result spells braces out.
fn paths(text: &str, own: &[String]) -> BTreeSet<Vec<String>> {
    let mut found = BTreeSet::new();
    for (root, base) in [("crate::", Vec::new()), ("super::", parent(own))] {
        for (at, _) in text.match_indices(root) {
            let before = text[..at].chars().last();
            if before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == ':') {
                continue;
            }
            spell(&text[at + root.len()..], &base, &mut found);
        }
    }
    found
}

/// Finds the modules inside this file's own that it names for its own use. A child's items that the
/// file only passes on to others do not count.
fn children(text: &str, own: &[String], modules: &BTreeSet<Vec<String>>) -> BTreeSet<Vec<String>> {
    let lines = text.lines().map(str::trim_start);
    let lines: Vec<&str> = lines.filter(|l| !l.starts_with("pub")).collect();
    let below = modules
        .iter()
        .filter(|m| m.len() == own.len() + 1 && m.starts_with(own));
    let named = |m: &&Vec<String>| {
        let name = format!("{}::", m[own.len()]);
        let starts = |line: &str, at: usize| {
            let before = line[..at].chars().last();
            before.is_none_or(|c| !c.is_alphanumeric() && c != '_' && c != ':')
        };
        let mut lines = lines.iter();
        lines.any(|l| l.match_indices(&name).any(|(at, _)| starts(l, at)))
    };
    below.filter(named).cloned().collect()
}

fn parent(own: &[String]) -> Vec<String> {
    own[..own.len().saturating_sub(1)].to_vec()
}

/// Adds what stands after a `::`: one path, or several in braces.
fn spell(text: &str, base: &[String], found: &mut BTreeSet<Vec<String>>) {
    let mut here = base.to_vec();
    let mut rest = text;
    loop {
        if let Some(inside) = rest.strip_prefix('{') {
            for part in split(inside) {
                spell(part.trim(), &here, found);
            }
            return;
        }
        let end = rest.find(|c: char| !c.is_alphanumeric() && c != '_');
        let (name, tail) = rest.split_at(end.unwrap_or(rest.len()));
        match name {
            "self" | "" => {}
            "super" => drop(here.pop()),
            name => here.push(name.to_owned()),
        }
        match tail.strip_prefix("::") {
            Some(tail) => rest = tail,
            None => break,
        }
    }
    found.insert(here);
}

/// Splits a group in braces at its own level.
fn split(text: &str) -> Vec<&str> {
    let (mut depth, mut start, mut parts) = (0, 0, Vec::new());
    for (at, c) in text.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => {
                parts.push(&text[start..at]);
                return parts;
            }
            '}' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(&text[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    parts
}

/// Lists for every file of a crate the files that it names.
fn arrows(krate: &str) -> BTreeMap<Vec<String>, BTreeSet<Vec<String>>> {
    let src = workspace().join(krate).join("src");
    let all: Vec<PathBuf> = files(&src);
    let modules: BTreeSet<Vec<String>> = all.iter().map(|p| module(&src, p)).collect();
    let mut arrows: BTreeMap<Vec<String>, BTreeSet<Vec<String>>> = BTreeMap::new();
    for path in &all {
        let own = module(&src, path);
        if own.first().is_some_and(|m| m == "fixtures") || own.last().is_some_and(|m| m == "tests")
        {
            continue;
        }
        let code = code(path);
        let named = paths(&code, &own).into_iter();
        for named in named.chain(children(&code, &own, &modules)) {
            // The longest beginning of a path that is a file names that file.
            let file = (1..=named.len()).rev().map(|n| named[..n].to_vec());
            let file = file.into_iter().find(|p| modules.contains(p));
            if let Some(file) = file.filter(|f| *f != own) {
                arrows.entry(own.clone()).or_default().insert(file);
            }
        }
    }
    arrows
}

#[test]
fn a_room_uses_only_rooms_below_it() {
    let mut wrong = Vec::new();
    let mut seen = 0;
    for (from, all) in arrows("runtime") {
        let Some(room) = from.first() else { continue };
        let Some(floor) = ROOMS.iter().position(|r| r == room) else {
            assert!(from.is_empty(), "{} is in no room", from.join("::"));
            continue;
        };
        let only = ONLY.iter().find(|(r, _)| r == room).map(|(_, only)| *only);
        let may = only.unwrap_or(&ROOMS[..floor]);
        for to in all.iter().filter(|to| to[0] != *room) {
            seen += 1;
            if !may.contains(&to[0].as_str()) {
                wrong.push(format!("{} -> {}", from.join("::"), to.join("::")));
            }
        }
    }
    assert_eq!(wrong, Vec::<String>::new());
    assert!(
        seen > 100,
        "{seen} arrows between rooms: are the files read?"
    );
}

#[test]
fn no_files_need_each_other() {
    let mut found = Vec::new();
    for krate in ["engines", "exporter", "runtime"] {
        let arrows = arrows(krate);
        assert!(arrows.len() > 20, "{krate}: are the files read?");
        found.extend(
            circles(&arrows)
                .into_iter()
                .map(|c| format!("{krate}: {c}")),
        );
    }
    assert_eq!(found, Vec::<String>::new());
}

/// Finds every file that can reach itself, with one way there.
fn circles(arrows: &BTreeMap<Vec<String>, BTreeSet<Vec<String>>>) -> Vec<String> {
    let none = BTreeSet::new();
    let mut found = Vec::new();
    for start in arrows.keys() {
        let mut seen: BTreeMap<&Vec<String>, &Vec<String>> = BTreeMap::new();
        let mut queue = vec![start];
        while let Some(at) = queue.pop() {
            for to in arrows.get(at).unwrap_or(&none) {
                if !seen.contains_key(to) {
                    seen.insert(to, at);
                    queue.push(to);
                }
            }
        }
        if seen.contains_key(start) {
            let (mut at, mut way) = (seen[start], vec![start.join("::")]);
            while at != start {
                way.push(at.join("::"));
                at = seen[at];
            }
            way.push(start.join("::"));
            way.reverse();
            found.push(way.join(" -> "));
        }
    }
    found
}

#[test]
fn paths_are_read_out_of_use_lines() {
    let own = ["chain", "executor", "worker"].map(str::to_owned);
    let text = "use crate::a::{b::{C, d}, self};\nuse super::{Job, x::Y};\nlet z = crate::q::R;";
    let found: Vec<String> = paths(text, &own).iter().map(|p| p.join("::")).collect();
    let wanted = [
        "a",
        "a::b::C",
        "a::b::d",
        "chain::executor::Job",
        "chain::executor::x::Y",
        "q::R",
    ];
    assert_eq!(found, wanted);
    let circle: BTreeMap<Vec<String>, BTreeSet<Vec<String>>> = [("a", "b"), ("b", "c"), ("c", "a")]
        .map(|(from, to)| (vec![from.to_owned()], BTreeSet::from([vec![to.to_owned()]])))
        .into();
    assert_eq!(circles(&circle).len(), 3);
}
