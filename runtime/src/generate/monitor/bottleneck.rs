//! Names the part of a run that limits its speed.

use crate::chain::clock::Busy;

/// Parts that are named besides the busiest one.
const OTHERS: usize = 2;
/// Share of the time below which a part is not worth a word.
const LEAST_SHARE: f64 = 0.01;

/// Describes where `window` seconds went: the busiest part, the next ones, and what makes it
/// shorter. Parts work at the same time, so shares may add up to more than all of it. Returns
/// `None` if nothing was done.
pub(super) fn words(window: f64, busy: &[Busy], writing: f64) -> Option<String> {
    let part = |b: &Busy| {
        (
            b.component,
            format!("{} on {}", b.component, b.device),
            b.seconds,
        )
    };
    let mut parts: Vec<_> = busy.iter().map(part).collect();
    parts.push((WRITING, WRITING.to_owned(), writing));
    parts.sort_by(|a, b| b.2.total_cmp(&a.2));
    let share = |seconds: f64| seconds / window.max(f64::MIN_POSITIVE);
    let percent = |seconds: f64| format!("{:.0} %", 100.0 * share(seconds));
    let ((component, name, seconds), others) = parts.split_first()?;
    if share(*seconds) < LEAST_SHARE {
        return None;
    }
    let others = others
        .iter()
        .take(OTHERS)
        .filter(|p| share(p.2) >= LEAST_SHARE);
    let others: Vec<String> = others
        .map(|(_, name, s)| format!("{name} {}", percent(*s)))
        .collect();
    let others = match others.is_empty() {
        true => String::new(),
        false => format!(" ({})", others.join(", ")),
    };
    Some(format!(
        "bottleneck: {name}, busy {} of the {window:.1} s in which blocks were made{others}; {}",
        percent(*seconds),
        remedy(component)
    ))
}

/// Name of the time of the video encoder and the disk.
const WRITING: &str = "writing";

/// Says what makes a part shorter.
fn remedy(component: &str) -> &'static str {
    match component {
        "transformer" => {
            "a smaller --size, fewer --ring-blocks or more GPUs (--num_gpus_dit) make it faster"
        }
        "VAE decoder" | "VAE encoder" => {
            "a smaller --size or a GPU of its own (--enable_vae_parallel) makes it faster"
        }
        WRITING => "x264's --preset ultrafast or a faster disk makes it faster",
        _ => "a shorter prompt or recording makes it faster",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn busy(component: &'static str, device: &str, seconds: f64) -> Busy {
        Busy {
            component,
            device: device.to_owned(),
            calls: 4,
            seconds,
        }
    }

    #[test]
    fn the_busiest_part_is_named_with_its_share_and_a_remedy() {
        let parts = [
            busy("transformer", "cuda:1", 8.0),
            busy("transformer", "cuda:0", 6.0),
            busy("VAE decoder", "cuda:1", 5.0),
            busy("audio adapter", "cuda:0", 0.01),
        ];
        let text = words(10.0, &parts, 0.5).unwrap();
        assert_eq!(
            text,
            "bottleneck: transformer on cuda:1, busy 80 % of the 10.0 s in which blocks were made \
             (transformer on cuda:0 60 %, VAE decoder on cuda:1 50 %); a smaller --size, fewer \
             --ring-blocks or more GPUs (--num_gpus_dit) make it faster"
        );
        let text = words(10.0, &parts[3..], 9.0).unwrap();
        assert!(text.starts_with("bottleneck: writing, busy 90 %"), "{text}");
        assert!(text.contains("made; x264's"), "{text}");
        assert_eq!(words(10.0, &[], 0.0), None);
    }
}
