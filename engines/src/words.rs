//! What errors say about texts that people wrote: where the fault is, and which word was meant.

/// Returns line and column, from 1 on, of a byte of a text.
///
/// ```
/// assert_eq!(engines::words::line_and_column("a\nbc", 3), (2, 2));
/// ```
pub fn line_and_column(text: &str, at: usize) -> (usize, usize) {
    let before = text.get(..at).unwrap_or(text);
    let line = before.rfind('\n').map_or(0, |n| n + 1);
    let lines = before.matches('\n').count() + 1;
    (lines, before[line..].chars().count() + 1)
}

/// Returns the known name with the fewest edits, or `None` when that is a different word.
///
/// ```
/// let known = ["recipe", "lanes"];
/// assert_eq!(engines::words::nearest("reciep", known.into_iter()).as_deref(), Some("recipe"));
/// assert_eq!(engines::words::nearest("zzz", known.into_iter()), None);
/// ```
pub fn nearest<'a>(got: &str, known: impl Iterator<Item = &'a str>) -> Option<String> {
    let best = known.map(|k| (edits(got, k), k)).min()?;
    (best.0 <= got.len().max(best.1.len()) / 2).then(|| best.1.to_owned())
}

/// Levenshtein's distance: the least number of edits that turn `a` into `b`.
fn edits(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let change = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = change.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}
