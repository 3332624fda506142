//! The NVIDIA driver, the devices, and how they reach each other.

use engines::device;
use engines::nvml::Nvml;

use super::report::Line;
use crate::planner::found::{Card, Machine};

/// Free memory that a card should have, as a part of its memory.
const MOSTLY_FREE: f64 = 0.9;
/// CUDA that ONNX Runtime's provider and TensorRT are built for.
const CUDA: u32 = 13;

/// Checks the driver and every device.
pub(super) fn lines(machine: &Machine) -> Vec<Line> {
    if let Some(why) = &machine.no_cards {
        // The rest of the text is a remedy.
        let why = why.split("; ").next().unwrap_or_default();
        let text = format!("no NVIDIA device ({why}); the CPU computes");
        let remedy = "for a GPU: install the NVIDIA driver 580 or later (Debian: libcuda1 and \
                      nvidia-driver); in a container, start it with --gpus all";
        return vec![Line::warning("driver", text, remedy)];
    }
    let mut lines = vec![driver(), management()];
    lines.extend(machine.cards.iter().enumerate().map(card));
    if machine.cards.len() > 1 {
        lines.push(peers(device::strangers().map_err(|e| e.to_string())));
    }
    lines
}

fn driver() -> Line {
    let newer = "install the NVIDIA driver 580 or later";
    match device::driver_cuda() {
        Ok((major, minor)) if major < CUDA => {
            let text = format!("serves CUDA {major}.{minor}; the libraries want CUDA {CUDA}");
            Line::warning("driver", text, newer)
        }
        Ok((major, minor)) => Line::ok("driver", format!("serves CUDA {major}.{minor}")),
        Err(error) => Line::warning("driver", error.to_string(), newer),
    }
}

fn management() -> Line {
    match Nvml::load().and_then(|nvml| nvml.driver()) {
        Ok(version) => Line::ok("NVML", format!("driver {version}")),
        Err(error) => Line::warning(
            "NVML",
            error.to_string(),
            "--metrics counts this program's own memory only; install libnvidia-ml1, or give the \
             container the capability `utility`",
        ),
    }
}

fn card((ordinal, card): (usize, &Card)) -> Line {
    let subject = format!("cuda:{ordinal}");
    let sm = card.sm;
    let link = match card.host_link_gbs {
        rate if rate > 0.0 => format!(", {rate:.0} GB/s to the host"),
        _ => String::new(),
    };
    let text = format!(
        "{}, SM {}.{}, {:.1} of {:.1} GiB free{link}",
        card.name,
        sm / 10,
        sm % 10,
        card.free_gib,
        card.memory_gib
    );
    if sm < 80 {
        return Line::warning(
            subject,
            text,
            "bf16 wants SM 8.0 or later; use another card",
        );
    }
    if card.free_gib < MOSTLY_FREE * card.memory_gib {
        let remedy =
            "another process uses the card (nvidia-smi lists it); end it, or plan for less";
        return Line::warning(subject, text, remedy);
    }
    Line::ok(subject, text)
}

fn peers(strangers: Result<Vec<(u32, u32)>, String>) -> Line {
    let remedy = "copies between these cards go through the host and are slower; put them below \
                  one PCIe switch or use NVLink";
    match strangers {
        Ok(none) if none.is_empty() => {
            Line::ok("peer access", "every card reads every other card's memory")
        }
        Ok(pairs) => {
            let pairs: Vec<String> = pairs
                .iter()
                .map(|(a, b)| format!("cuda:{a} -> cuda:{b}"))
                .collect();
            let text = format!("missing for {}", pairs.join(", "));
            Line::warning("peer access", text, remedy)
        }
        Err(reason) => Line::warning("peer access", reason, remedy),
    }
}

#[cfg(test)]
mod tests {
    use super::super::report::Level;
    use super::*;

    fn of(sm: u32, free_gib: f64) -> Line {
        let listed = Card {
            name: "NVIDIA L4".to_owned(),
            memory_gib: 22.0,
            free_gib,
            sm,
            host_link_gbs: 24.0,
        };
        card((1, &listed))
    }

    #[test]
    fn an_old_card_and_a_card_in_use_are_warnings() {
        assert_eq!(
            of(89, 21.5),
            Line::ok(
                "cuda:1",
                "NVIDIA L4, SM 8.9, 21.5 of 22.0 GiB free, 24 GB/s to the host"
            )
        );
        for (line, remedy) in [
            (of(75, 21.5), "bf16 wants"),
            (of(89, 9.0), "another process"),
        ] {
            assert_eq!(line.level, Level::Warning);
            assert!(line.remedy.unwrap().starts_with(remedy));
        }
    }

    #[test]
    fn cards_that_cannot_reach_each_other_are_named() {
        assert_eq!(peers(Ok(Vec::new())).level, Level::Ok);
        let line = peers(Ok(vec![(0, 1), (1, 0)]));
        assert_eq!(line.text, "missing for cuda:0 -> cuda:1, cuda:1 -> cuda:0");
        assert_eq!(line.level, Level::Warning);
    }
}
