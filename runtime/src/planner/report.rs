//! Writes a plan for people and for programs: tables of memory and time, the bottleneck, and the
//! ways to more speed. GB are 10^9 bytes.

use std::fmt::{self, Display, Write as _};

use serde_json::{Value, json};

use super::advice;
use super::draft::{Planned, Wave};
use super::memory::Budget;
use super::placement::PlacedStage;
use super::placement::device_name;
use crate::numbers::speech_windows::IN_WINDOWS;

fn gb(bytes: u64) -> f64 {
    bytes as f64 / 1e9
}

/// Writes a range as `0-9`, or as `3`.
fn span(r: &std::ops::Range<usize>) -> String {
    match r.len() {
        1 => r.start.to_string(),
        _ => format!("{}-{}", r.start, r.end.saturating_sub(1)),
    }
}

/// A row of a table: its name, and its figure of one device.
type Row<T, N> = (&'static str, fn(&T) -> N);

/// The rows of the memory table, in the order of the ledger's classes.
const MEMORY_ROWS: [Row<Budget, u64>; 8] = [
    ("weights", |b| b.weights),
    ("rings", |b| b.rings),
    ("condition K/V", |b| b.condition),
    ("activations", |b| b.activations),
    ("streaming slots", |b| b.slots),
    ("VAE decoder", |b| b.vae),
    ("workspace", |b| b.workspace),
    ("encoders", |b| b.encoders),
];

/// A plan as text, with or without the explanation.
pub(crate) struct Report<'a> {
    /// The plan.
    pub planned: &'a Planned,
    /// Whether the explanation follows.
    pub explain: bool,
}

impl Display for Report<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let p = self.planned;
        let (profile, ask) = (&p.profile, &p.ask);
        writeln!(f, "profile {}: {}", profile.name, profile.about)?;
        writeln!(
            f,
            "{}, {} steps{}, clips of {} frames, recipe {}, {} a call, ring of {} blocks",
            ask.size,
            ask.steps / ask.passes,
            if ask.passes > 1 { " of two passes" } else { "" },
            ask.infer_frames,
            profile.recipe,
            counted(p.placement.lanes, "lane"),
            p.placement.ring_blocks
        )?;
        for d in 0..p.placement.devices() {
            writeln!(f, "  {}: {}", name(p, d), duties(p, d))?;
        }
        writeln!(f)?;
        write_memory(f, p)?;
        writeln!(f)?;
        write_host(f, p)?;
        writeln!(f)?;
        write_waves(f, p)?;
        writeln!(f)?;
        write_speed(f, p)?;
        if self.explain {
            writeln!(f)?;
            write_explain(f, p)?;
        }
        if let Some(caveat) = p.caveat() {
            writeln!(f, "note: {caveat}")?;
        }
        Ok(())
    }
}

fn counted(n: usize, what: &str) -> String {
    let s = if n == 1 { "" } else { "s" };
    format!("{n} {what}{s}")
}

fn name(p: &Planned, device: usize) -> String {
    device_name(&p.profile, device)
}

/// Describes the work of a device in words.
fn duties(p: &Planned, device: usize) -> String {
    let stages = p.placement.stages.iter().filter(|s| s.device == device);
    let mut all: Vec<String> = stages.map(stage).collect();
    if p.placement.vae == device {
        all.push("VAE decoder".to_owned());
    }
    if p.placement.encoders.device == device {
        let when = if p.placement.encoders.freed_before_dit {
            ", freed before the transformer is loaded"
        } else {
            ""
        };
        all.push(format!("encoders{when}"));
    }
    all.join("; ")
}

fn stage(s: &PlacedStage) -> String {
    let mut text = format!("layers {} steps {}", span(&s.layers), span(&s.steps));
    let r = s.residency;
    if r.streams(s.layers.len()) {
        let weights = match r.resident_layers {
            0 => "all weights stream".to_owned(),
            n if n < s.layers.len() => {
                format!("weights of {n} layers stay, {} stream", s.layers.len() - n)
            }
            _ => "weights stay".to_owned(),
        };
        let rings = if r.rings_on_host {
            "rings stream"
        } else {
            "rings stay"
        };
        let _ = write!(text, " ({weights}, {rings}, {} slots)", r.slots);
    }
    text
}

fn write_line(
    f: &mut fmt::Formatter<'_>,
    what: &str,
    cells: impl Iterator<Item = String>,
) -> fmt::Result {
    write!(f, "{what:<18}")?;
    for cell in cells {
        write!(f, " {cell:>9}")?;
    }
    writeln!(f)
}

fn write_memory(f: &mut fmt::Formatter<'_>, p: &Planned) -> fmt::Result {
    let devices = &p.devices[..p.placement.devices()];
    write_line(f, "memory, GB", (0..devices.len()).map(|d| name(p, d)))?;
    for (what, of) in MEMORY_ROWS {
        if devices.iter().any(|b| of(b) > 0) {
            write_line(f, what, devices.iter().map(|b| format!("{:.2}", gb(of(b)))))?;
        }
    }
    write_line(
        f,
        "in use",
        devices.iter().map(|b| format!("{:.2}", gb(b.run()))),
    )?;
    if devices.iter().any(|b| b.before > 0) {
        write_line(
            f,
            "before, at most",
            devices.iter().map(|b| format!("{:.2}", gb(b.before))),
        )?;
    }
    write_line(
        f,
        "usable",
        devices.iter().map(|b| format!("{:.2}", gb(b.usable))),
    )?;
    write_line(
        f,
        "headroom",
        devices
            .iter()
            .map(|b| format!("{:.2}", b.headroom() as f64 / 1e9)),
    )
}

fn write_host(f: &mut fmt::Formatter<'_>, p: &Planned) -> fmt::Result {
    let h = &p.host;
    writeln!(
        f,
        "host: {:.1} GB of {:.1} ({:.1} pinned, {:.1} allowed), and {:.1} of weights mapped from files; disk {:.1} GB",
        gb(h.needed()),
        gb(h.usable),
        gb(h.pinned),
        gb(h.pinnable),
        gb(h.mapped),
        gb(h.disk)
    )
}

fn write_waves(f: &mut fmt::Formatter<'_>, p: &Planned) -> fmt::Result {
    let waves = &p.waves[..p.placement.devices()];
    write_line(f, "ms a wave", (0..waves.len()).map(|d| name(p, d)))?;
    let rows: [Row<Wave, f64>; 6] = [
        ("arithmetic", |w| w.compute_ms),
        ("host link", |w| w.host_link_ms),
        ("  of it hidden", |w| w.hidden_ms),
        ("peer link", |w| w.peer_link_ms),
        ("VAE decoder", |w| w.vae_ms),
        ("together", |w| w.total_ms),
    ];
    for (what, of) in rows {
        if waves.iter().any(|w| of(w) > 0.0) {
            write_line(f, what, waves.iter().map(|w| format!("{:.0}", of(w))))?;
        }
    }
    Ok(())
}

fn write_speed(f: &mut fmt::Formatter<'_>, p: &Planned) -> fmt::Result {
    let s = &p.speed;
    writeln!(
        f,
        "{:.1} frames a second ({:.2} of real time); first frame after {:.1} s, {:.1} of them encoders; {:.1} s a clip; loading {:.0} s from disk",
        s.fps,
        p.real_time(),
        s.first_frame_s,
        s.encoders_s,
        s.clip_s,
        s.loading_s
    )?;
    if p.ask.hears_in_windows() {
        writeln!(f, "recordings of more than 60 s: {IN_WINDOWS}")?;
    }
    if let Some(clips) = p.ask.clips {
        let total = s.first_frame_s + clips as f64 * s.clip_s;
        writeln!(f, "{} in about {total:.0} s", counted(clips, "clip"))?;
    }
    writeln!(f, "bottleneck: {}", advice::bottleneck(p))?;
    for l in advice::levers(p) {
        writeln!(
            f,
            "  faster by: {} ({:.1} frames a second, {:.2} times)",
            l.what, l.fps, l.gain
        )?;
    }
    Ok(())
}

/// Writes the origin of the figures.
fn write_explain(f: &mut fmt::Formatter<'_>, p: &Planned) -> fmt::Result {
    let o = p.work.call_operations();
    writeln!(
        f,
        "a call of one lane: {:.1} TFLOP ({:.1} linear, {:.1} self attention, {:.1} the rest); the reference computes the text's keys and values in it as well, {:.1} more",
        o.total() / 1e12,
        o.linear / 1e12,
        o.attention / 1e12,
        o.rest / 1e12,
        p.work.text_key_operations() / 1e12
    )?;
    let layers = p.work.config().dit.layers as u64;
    writeln!(
        f,
        "a ring of one step: {:.2} GB; keys and values of the sink: {:.2} GB, of the text: {:.2} GB an anchor{}",
        gb(layers * p.work.ring_bytes()),
        gb(layers * p.work.sink_bytes()),
        gb(layers * p.work.text_bytes()),
        if p.ask.clips == Some(1) {
            ""
        } else {
            "; two anchors are alive while the first clip ends"
        }
    )?;
    writeln!(
        f,
        "the transformer's weights: {:.2} GB; what only the prefill and the encoders read ({:.2}) is not kept on a device",
        gb(p.work.transformer_weights()),
        gb(layers * p.work.text_key_weights()
            + p.work.text_embed_weights()
            + p.work.packer_weights())
    )?;
    for (i, d) in p.profile.devices.iter().enumerate() {
        writeln!(
            f,
            "devices {i}: {} x {}, {} GiB less {}; linear {:.0} %, attention {:.0} % of {:.1} TFLOP/s: {}",
            d.count,
            d.card,
            d.memory_gib,
            d.reserve_gib,
            100.0 * d.achieved.linear,
            100.0 * d.achieved.attention,
            d.peak(p.profile.recipe) / 1e12,
            d.achieved.reason
        )?;
    }
    writeln!(
        f,
        "busy once steady (simulated, {} blocks):",
        p.timeline.decoded.len()
    )?;
    for (d, share) in p.shares.iter().enumerate().take(p.placement.devices()) {
        writeln!(
            f,
            "  {}: arithmetic {:.0} %, host link {:.0} %, peer link {:.0} %",
            name(p, d),
            100.0 * share.compute,
            100.0 * share.up.max(share.down),
            100.0 * share.peer
        )?;
    }
    Ok(())
}

impl Planned {
    /// Returns the content of `Report` for programs, in bytes and seconds.
    pub fn to_json(&self) -> Value {
        let device = |(d, b): (usize, &Budget)| {
            json!({
                "device": name(self, d),
                "duties": duties(self, d),
                "memory": b,
                "in_use": b.run(),
                "headroom": b.headroom(),
                "wave": self.waves[d],
                "busy": self.shares[d],
            })
        };
        let devices = self.devices.iter().take(self.placement.devices());
        let devices: Vec<Value> = devices.enumerate().map(device).collect();
        json!({
            "profile": self.profile.name,
            "recipe": self.profile.recipe,
            "ask": self.ask,
            "placement": self.placement,
            "devices": devices,
            "host": self.host,
            "speed": self.speed,
            "bottleneck": advice::bottleneck(self),
            "levers": advice::levers(self),
            "caveat": self.caveat(),
            "speech": self.ask.hears_in_windows().then_some(IN_WINDOWS),
        })
    }
}
