//! Draws a timeline: a row for the work of each device, and a row for each link in use, coloured by
//! denoising step. The picture is one file without a script. A browser explains a piece of work
//! under the pointer.

use std::fmt::Write as _;

use super::{Span, Task, Timeline};

/// Colours of the steps, then of the other work. People who do not see red or green can tell them
/// apart.
const STEPS: [&str; 6] = [
    "#1b6ca8", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00",
];
const PREFILL: &str = "#5b5b5b";
const DECODE: &str = "#9a7fd1";
const ENCODE: &str = "#b5b5a8";
const LINK: &str = "#8fb8a8";

const LEFT: f64 = 130.0;
const WIDTH: f64 = 1180.0;
const ROW: f64 = 30.0;
const LINK_ROW: f64 = 12.0;
const GAP: f64 = 12.0;
const TOP: f64 = 84.0;
/// A label needs this much room, in pixels.
const LABEL: f64 = 12.0;

/// One row of the picture.
struct Row {
    name: String,
    y: f64,
    height: f64,
}

/// Draws `timeline`. `names` are the names of the devices.
pub(crate) fn draw(timeline: &Timeline, title: &str, names: &[String]) -> String {
    let seconds = timeline.seconds.max(f64::MIN_POSITIVE);
    let x = |t: f64| LEFT + WIDTH * t / seconds;
    let (mut body, mut rows, mut y) = (String::new(), Vec::new(), TOP);
    for (device, name) in names.iter().enumerate() {
        let spans: Vec<&Span> = timeline
            .spans
            .iter()
            .filter(|s| s.device == device)
            .collect();
        rows.push(Row {
            name: name.clone(),
            y,
            height: ROW,
        });
        spans.iter().for_each(|s| piece(&mut body, s, y, &x));
        y += ROW + 3.0;
        for (what, of) in [
            (
                "host link",
                (|s: &Span| s.spent.up.max(s.spent.down)) as fn(&Span) -> f64,
            ),
            ("peer link", |s| s.spent.peer),
        ] {
            if spans.iter().any(|s| of(s) > 0.0) {
                rows.push(Row {
                    name: what.to_owned(),
                    y,
                    height: LINK_ROW,
                });
                spans.iter().for_each(|s| link(&mut body, s, of(s), y, &x));
                y += LINK_ROW + 3.0;
            }
        }
        y += GAP;
    }
    let blocks = markers(timeline, y, &x);
    page(
        title,
        seconds,
        y,
        &rows,
        &format!("{body}{blocks}"),
        timeline,
    )
}

fn page(
    title: &str,
    seconds: f64,
    bottom: f64,
    rows: &[Row],
    body: &str,
    timeline: &Timeline,
) -> String {
    let (width, height) = (LEFT + WIDTH + 30.0, bottom + 48.0);
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width:.0} {height:.0}\" \
         width=\"{width:.0}\" height=\"{height:.0}\" \
         font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n\
         <text x=\"16\" y=\"26\" font-size=\"17\" font-weight=\"bold\">{}</text>\n",
        escaped(title)
    );
    legend(&mut out, timeline);
    for row in rows {
        let (size, colour) = if row.height < ROW {
            (10, "#777777")
        } else {
            (13, "#222222")
        };
        let middle = row.y + row.height / 2.0 + 4.0;
        let _ = writeln!(
            out,
            "<rect x=\"{LEFT}\" y=\"{:.1}\" width=\"{WIDTH}\" height=\"{}\" fill=\"#f3f3f1\"/><text x=\"{:.1}\" y=\"{middle:.1}\" text-anchor=\"end\" font-size=\"{size}\" fill=\"{colour}\">{}</text>",
            row.y,
            row.height,
            LEFT - 10.0,
            escaped(&row.name)
        );
    }
    axis(&mut out, seconds, bottom);
    out + body + "</svg>\n"
}

fn legend(out: &mut String, timeline: &Timeline) {
    let steps = timeline.spans.iter().filter_map(|s| match &s.what {
        Task::Call { items } => items.iter().map(|i| i.1).max(),
        _ => None,
    });
    let mut entries: Vec<(String, &str)> = (0..=steps.max().unwrap_or(0))
        .map(|s| (format!("step {s}"), STEPS[s % STEPS.len()]))
        .collect();
    entries.extend([
        ("encoders".to_owned(), ENCODE),
        ("prefill".to_owned(), PREFILL),
        ("VAE decoder".to_owned(), DECODE),
    ]);
    let mut x = LEFT;
    for (name, colour) in entries {
        let _ = writeln!(
            out,
            "<rect x=\"{x:.0}\" y=\"42\" width=\"13\" height=\"13\" rx=\"2\" fill=\"{colour}\"/><text x=\"{:.0}\" y=\"53\">{name}</text>",
            x + 18.0
        );
        x += 36.0 + 7.0 * name.len() as f64;
    }
    let _ = writeln!(
        out,
        "<text x=\"{x:.0}\" y=\"53\" fill=\"#777777\">a number is a block; a lane is a stripe</text>"
    );
}

/// Ticks at round seconds.
fn axis(out: &mut String, seconds: f64, bottom: f64) {
    let raw = seconds / 12.0;
    let power = 10f64.powf(raw.log10().floor());
    let tick = [1.0, 2.0, 5.0, 10.0]
        .into_iter()
        .map(|m| m * power)
        .find(|t| *t >= raw)
        .unwrap_or(raw);
    let decimals = usize::from(tick < 1.0) + usize::from(tick < 0.1);
    let mut t = 0.0;
    while t <= seconds {
        let x = LEFT + WIDTH * t / seconds;
        let _ = writeln!(
            out,
            "<line x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{:.1}\" y2=\"{bottom:.1}\" stroke=\"#dddddd\"/><text x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\" fill=\"#777777\" font-size=\"11\">{t:.decimals$} s</text>",
            TOP - 8.0,
            TOP - 12.0
        );
        t += tick;
    }
}

/// A piece of work: a stripe for each lane.
fn piece(out: &mut String, span: &Span, y: f64, x: &impl Fn(f64) -> f64) {
    let (left, right) = (x(span.start), x(span.end));
    let width = (right - left).max(0.4);
    let (stripes, label): (Vec<&str>, String) = match &span.what {
        Task::Call { items } => {
            let colour = |i: &(usize, usize)| STEPS[i.1 % STEPS.len()];
            let label = match items[..] {
                [(block, _)] => block.to_string(),
                _ => format!("{}–{}", items[items.len() - 1].0, items[0].0),
            };
            (items.iter().map(colour).collect(), label)
        }
        Task::Prefill { .. } => (vec![PREFILL], "sink".to_owned()),
        Task::Prime => (vec![DECODE], String::new()),
        Task::Decode { block } => (vec![DECODE], block.to_string()),
        Task::Encode { what } => (vec![ENCODE], (*what).to_owned()),
    };
    let height = ROW / stripes.len() as f64;
    let _ = write!(out, "<g><title>{}</title>", told(span));
    for (i, colour) in stripes.iter().enumerate() {
        let _ = write!(
            out,
            "<rect x=\"{left:.2}\" y=\"{:.2}\" width=\"{width:.2}\" height=\"{height:.2}\" fill=\"{colour}\" stroke=\"#ffffff\" stroke-width=\"0.6\"/>",
            y + i as f64 * height
        );
    }
    if width >= LABEL.max(7.0 * label.chars().count() as f64 + 4.0) {
        let _ = write!(
            out,
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\" fill=\"#ffffff\" font-size=\"11\">{label}</text>",
            left + width / 2.0,
            y + ROW / 2.0 + 4.0
        );
    }
    out.push_str("</g>\n");
}

/// What a pointer that rests on a piece is told.
fn told(span: &Span) -> String {
    let what = match &span.what {
        Task::Call { items } => items
            .iter()
            .map(|(block, step)| format!("block {block} step {step}"))
            .collect::<Vec<_>>()
            .join(", "),
        Task::Prefill { anchor } => format!("prefill of anchor {anchor}"),
        Task::Prime => "decoder before the first block".to_owned(),
        Task::Decode { block } => format!("decoding block {block}"),
        Task::Encode { what } => format!("encoding the {what}"),
    };
    format!("{what}: {:.2}–{:.2} s", span.start, span.end)
}

/// The part of a call that a link is in use: at its start, where what is first needed crosses.
fn link(out: &mut String, span: &Span, busy: f64, y: f64, x: &impl Fn(f64) -> f64) {
    if busy > 0.0 {
        let end = (span.start + busy).min(span.end);
        let _ = writeln!(
            out,
            "<rect x=\"{:.2}\" y=\"{y:.2}\" width=\"{:.2}\" height=\"{LINK_ROW}\" fill=\"{LINK}\"/>",
            x(span.start),
            (x(end) - x(span.start)).max(0.4)
        );
    }
}

/// When each block's frames are there.
fn markers(timeline: &Timeline, bottom: f64, x: &impl Fn(f64) -> f64) -> String {
    let mut out = format!(
        "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\" fill=\"#777777\" font-size=\"10\">frames of block</text>",
        LEFT - 10.0,
        bottom + 14.0
    );
    let mut free = 0.0;
    for (block, t) in timeline.decoded.iter().enumerate() {
        let at = x(*t);
        let _ = write!(
            out,
            "<path d=\"M{at:.1} {bottom:.1} l-4 8 h8 z\" fill=\"#222222\"/>"
        );
        if at > free {
            let _ = write!(
                out,
                "<text x=\"{at:.1}\" y=\"{:.1}\" text-anchor=\"middle\" font-size=\"10\">{block}</text>",
                bottom + 20.0
            );
            free = at + 18.0;
        }
    }
    out.push('\n');
    out
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}
