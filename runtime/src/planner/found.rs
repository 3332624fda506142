//! The devices that this machine has: NVIDIA's by `nvidia-smi`, which comes with every driver; otherwise the CPU. And which built-in profile
//! is for them. The only part of the planner that looks at anything.

use std::process::Command;

use engines::manifest::ModelConfig;
use engines::profile::{Device, GIB, Kind, Profile};
use engines::recipe::Recipe;

use super::{Ask, Planned, PlannerError, plan};

/// One NVIDIA device, as its driver describes it.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub(crate) struct Card {
    pub name: String,
    pub memory_gib: f64,
    pub free_gib: f64,
    pub sm: u32,
    /// Of the slot, in GB/s one way.
    pub host_link_gbs: f64,
}

/// What a plan can be made for here.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub(crate) struct Machine {
    pub cards: Vec<Card>,
    pub cores: usize,
    pub memory_gib: f64,
    /// Why no card was looked at, if none was.
    pub no_cards: Option<String>,
}

const QUERY: &str =
    "name,memory.total,memory.free,compute_cap,pcie.link.gen.max,pcie.link.width.max";

impl Machine {
    /// Looks.
    pub(crate) fn look() -> Self {
        let (cards, no_cards) = match smi() {
            Ok(text) => {
                let cards: Vec<Card> = text.lines().filter_map(card).collect();
                let none = cards
                    .is_empty()
                    .then(|| "nvidia-smi lists no device".to_owned());
                (cards, none)
            }
            Err(reason) => (Vec::new(), Some(reason)),
        };
        let memory = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
        Self {
            cards,
            no_cards,
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            memory_gib: meminfo(&memory),
        }
    }

    /// In one line.
    pub(crate) fn describe(&self) -> String {
        match &self.no_cards {
            Some(why) => format!(
                "no NVIDIA device ({why}); {} cores, {:.0} GiB",
                self.cores, self.memory_gib
            ),
            None => {
                let cards: Vec<String> = self
                    .cards
                    .iter()
                    .map(|c| format!("{} {:.0} GiB", c.name, c.memory_gib))
                    .collect();
                format!("{} ({})", cards.len(), cards.join(", "))
            }
        }
    }

    /// A profile with this machine's figures in place of its own.
    pub(crate) fn fitted(&self, profile: &Profile) -> Profile {
        let mut p = profile.clone();
        p.host.memory_gib = self.memory_gib;
        p.host.reserve_gib = p.host.reserve_gib.min(0.25 * self.memory_gib);
        p.host.pinned_gib = p.host.pinned_gib.min(0.8 * self.memory_gib);
        for (i, d) in p.devices.iter_mut().enumerate() {
            match d.kind {
                Kind::Cpu => {
                    let scale = self.cores as f64 / d.cores as f64;
                    d.cores = self.cores;
                    d.tflops.fp32 *= scale;
                    d.memory_gib = self.memory_gib;
                    d.reserve_gib = d.reserve_gib.min(0.25 * self.memory_gib);
                }
                Kind::Gpu => {
                    if let Some(card) = self.cards.get(i) {
                        measure(d, card);
                    }
                }
            }
        }
        p
    }

    /// The fastest built-in profile for these devices that fits `ask`.
    ///
    /// # Errors
    /// The refusal of the profile that comes nearest, where none fits.
    pub(crate) fn plan(&self, config: &ModelConfig, ask: &Ask) -> Result<Planned, PlannerError> {
        let mut best: Option<Planned> = None;
        let mut refusal = None;
        for profile in Profile::built_in()?.into_iter().filter(|p| self.suits(p)) {
            match plan(&self.fitted(&profile), config, ask) {
                Ok(p) if best.as_ref().is_none_or(|b| p.speed.fps > b.speed.fps) => best = Some(p),
                Ok(_) => {}
                Err(e) => refusal = Some(e),
            }
        }
        best.ok_or_else(|| refusal.unwrap_or_else(|| self.nothing_suits()))
    }

    fn nothing_suits(&self) -> PlannerError {
        PlannerError::Devices {
            profile: "auto".to_owned(),
            wanted: 1,
            memory_gib: 16.0,
            found: self.describe(),
            instead: "none; write one and name it by --profile".to_owned(),
        }
    }

    /// Whether a profile is for a machine like this and can run today.
    fn suits(&self, profile: &Profile) -> bool {
        if profile.recipe == Recipe::Fp8 {
            return false;
        }
        let gpu = profile.devices.iter().any(|d| d.kind == Kind::Gpu);
        if self.cards.is_empty() || !gpu {
            return self.cards.is_empty() && !gpu;
        }
        self.lacks(profile).is_none()
    }

    /// What this machine lacks for a profile: devices, or memory of one.
    fn lacks(&self, profile: &Profile) -> Option<()> {
        let wanted: Vec<f64> = profile
            .each_device()
            .filter(|d| d.kind == Kind::Gpu)
            .map(|d| d.memory_gib)
            .collect();
        // A card of 24 GB says 23.99, or 22.5 where it corrects errors in its memory.
        let enough = |(have, want): (&Card, &f64)| have.memory_gib >= 0.93 * want;
        let all = self.cards.len() >= wanted.len() && self.cards.iter().zip(&wanted).all(enough);
        (!all).then_some(())
    }

    /// Refuses a plan for more devices than there are, or with less free memory than it needs.
    ///
    /// # Errors
    /// [`PlannerError::Devices`], [`PlannerError::Occupied`].
    pub(crate) fn check(&self, planned: &Planned) -> Result<(), PlannerError> {
        let profile = &planned.profile;
        let instead = || {
            let all = Profile::built_in().unwrap_or_default();
            let names: Vec<String> = all
                .into_iter()
                .filter(|p| p.name != profile.name && self.suits(p))
                .map(|p| p.name)
                .collect();
            if names.is_empty() {
                "none".to_owned()
            } else {
                names.join(", ")
            }
        };
        if self.lacks(profile).is_some() {
            return Err(PlannerError::Devices {
                profile: profile.name.clone(),
                wanted: profile.device_count(),
                memory_gib: profile
                    .each_device()
                    .map(|d| d.memory_gib)
                    .fold(0.0, f64::max),
                found: self.describe(),
                instead: instead(),
            });
        }
        for (i, (budget, card)) in planned.devices.iter().zip(&self.cards).enumerate() {
            let needed_gib = budget.peak() as f64 / GIB;
            if profile
                .each_device()
                .nth(i)
                .is_some_and(|d| d.kind == Kind::Gpu)
                && needed_gib > card.free_gib
            {
                return Err(PlannerError::Occupied {
                    device: format!("{} ({})", device_name(profile, i), card.name),
                    profile: profile.name.clone(),
                    free_gib: card.free_gib,
                    needed_gib,
                    instead: instead(),
                });
            }
        }
        Ok(())
    }
}

/// The data sheet of a card that some profile knows, with what the driver says in place of the rest.
fn measure(d: &mut Device, card: &Card) {
    let all = Profile::built_in().unwrap_or_default();
    let known = all.iter().flat_map(|p| &p.devices).find(|k| {
        let words = |t: &str| t.replace("GeForce ", "").replace("NVIDIA ", "");
        words(&card.name).starts_with(words(&k.card).split(" 4").next().unwrap_or_default())
            && words(&card.name) == words(&k.card)
    });
    if let Some(known) = known {
        let count = d.count;
        *d = Device {
            count,
            ..known.clone()
        };
    }
    d.card.clone_from(&card.name);
    d.sm = card.sm;
    d.memory_gib = card.memory_gib;
    if card.host_link_gbs > 0.0 {
        d.host_link_gbs = card.host_link_gbs;
    }
}

/// `cuda:1`, or `cpu:0`.
pub(crate) fn device_name(profile: &Profile, device: usize) -> String {
    match profile.each_device().nth(device).map(|d| d.kind) {
        Some(Kind::Gpu) => format!("cuda:{device}"),
        _ => format!("cpu:{device}"),
    }
}

fn smi() -> Result<String, String> {
    let query = format!("--query-gpu={QUERY}");
    let run = Command::new("nvidia-smi")
        .args([query.as_str(), "--format=csv,noheader,nounits"])
        .output();
    match run {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            Err("nvidia-smi is not installed; it comes with NVIDIA's driver".to_owned())
        }
        Err(e) => Err(format!("nvidia-smi: {e}")),
        Ok(out) if !out.status.success() => {
            let said = String::from_utf8_lossy(&out.stdout).into_owned()
                + &String::from_utf8_lossy(&out.stderr);
            let line = said
                .lines()
                .find(|l| !l.trim().is_empty())
                .unwrap_or("no reason given");
            Err(format!("nvidia-smi: {}", line.trim()))
        }
        Ok(out) => Ok(String::from_utf8_lossy(&out.stdout).into_owned()),
    }
}

/// One line of `nvidia-smi`. Fields that the driver does not know are `[N/A]`.
fn card(line: &str) -> Option<Card> {
    let fields: Vec<&str> = line.split(',').map(str::trim).collect();
    let [name, total, free, cap, generation, width] = fields[..] else {
        return None;
    };
    let gib = |mib: &str| mib.parse::<f64>().ok().map(|n| n / 1024.0);
    let memory_gib = gib(total)?;
    let (major, minor) = cap.split_once('.')?;
    let lanes: f64 = width.parse().unwrap_or(0.0);
    // GB/s of a lane that pinned copies reach: about 80 % of the line rate.
    let lane = match generation.parse().unwrap_or(0) {
        0..=2 => 0.0,
        3 => 0.75,
        4 => 1.5,
        _ => 3.1,
    };
    Some(Card {
        name: name.to_owned(),
        memory_gib,
        free_gib: gib(free).unwrap_or(memory_gib),
        sm: major.parse::<u32>().ok()? * 10 + minor.parse::<u32>().ok()?,
        host_link_gbs: lane * lanes,
    })
}

fn meminfo(text: &str) -> f64 {
    let total = text.lines().find_map(|l| l.strip_prefix("MemTotal:"));
    let kib = total.and_then(|t| t.trim().trim_end_matches(" kB").parse::<f64>().ok());
    kib.unwrap_or(0.0) * 1024.0 / GIB
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::numbers::size::Size;
    use engines::components::preset::Preset;
    use engines::error_kind::ErrorKind;

    fn machine(lines: &[&str]) -> Machine {
        Machine {
            cards: lines.iter().filter_map(|l| card(l)).collect(),
            cores: 16,
            memory_gib: 128.0,
            no_cards: lines.is_empty().then(|| "as planned".to_owned()),
        }
    }

    fn ask() -> Ask {
        Ask {
            size: Size {
                width: 704,
                height: 384,
            },
            steps: 4,
            infer_frames: 48,
            clips: None,
        }
    }

    const R4090: &str = "NVIDIA GeForce RTX 4090, 24564, 24111, 8.9, 4, 16";
    const H200: &str = "NVIDIA H200, 143771, 143000, 9.0, 5, 16";

    #[test]
    fn a_line_of_nvidia_smi_is_read_and_a_field_that_is_not_known_is_left_out() {
        let read = card(R4090).unwrap();
        assert_eq!(
            (read.name.as_str(), read.sm),
            ("NVIDIA GeForce RTX 4090", 89)
        );
        assert!((read.memory_gib - 23.99).abs() < 0.01 && read.host_link_gbs == 24.0);
        let odd = card("NVIDIA GB10, 122570, [N/A], 12.1, [N/A], [N/A]").unwrap();
        assert_eq!((odd.sm, odd.host_link_gbs), (121, 0.0));
        assert_eq!(odd.free_gib, odd.memory_gib);
        for line in [
            "",
            "No devices were found",
            "a, b, c, d, e, f",
            "x, 1, 1, nine, 4, 16",
        ] {
            assert_eq!(card(line), None, "{line}");
        }
    }

    #[test]
    fn auto_takes_the_fastest_profile_that_the_cards_carry() {
        let config = Preset::Full.config();
        for (cards, want) in [
            (&[R4090][..], "1x24g-offload"),
            (&[R4090; 2], "2x24g-offload"),
            (&[R4090; 4], "4x24g"),
            (&[H200], "1x141g"),
            (&[H200; 5], "5x80g"),
        ] {
            let planned = machine(cards).plan(&config, &ask()).unwrap();
            assert_eq!(planned.profile.name, want, "{cards:?}");
            assert_eq!(planned.profile.devices[0].sm, machine(cards).cards[0].sm);
        }
        let small = Ask {
            size: Size {
                width: 256,
                height: 256,
            },
            ..ask()
        };
        let planned = machine(&[]).plan(&Preset::Small.config(), &small).unwrap();
        assert_eq!(
            (
                planned.profile.name.as_str(),
                planned.profile.devices[0].cores
            ),
            ("cpu", 16)
        );
    }

    #[test]
    fn more_devices_than_there_are_and_memory_that_is_taken_are_refused() {
        let config = Preset::Full.config();
        let profile = Profile::open("4x24g").unwrap();
        let planned = plan(&profile, &config, &ask()).unwrap();
        let error = machine(&[R4090; 2]).check(&planned).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Resources);
        assert_eq!(
            error.to_string(),
            "profile 4x24g is for 4 devices of 24 GiB, this machine has 2 (NVIDIA GeForce RTX 4090 24 GiB, NVIDIA GeForce RTX 4090 24 GiB); \
             profiles for it: 2x24g-offload, 1x24g-offload, 1x16g-offload"
        );
        let error = machine(&[]).check(&planned).unwrap_err().to_string();
        assert!(error.contains("this machine has no NVIDIA device (as planned); 16 cores, 128 GiB; profiles for it: cpu"), "{error}");
        let busy = R4090.replace("24111", "8000");
        let mut cards = [R4090; 4].to_vec();
        cards[2] = &busy;
        let error = machine(&cards).check(&planned).unwrap_err().to_string();
        assert!(error.starts_with("cuda:2 (NVIDIA GeForce RTX 4090) has 7.8 GiB free, profile 4x24g plans 20.1; end what else uses it"), "{error}");
        assert!(machine(&[R4090; 4]).check(&planned).is_ok());
    }

    #[test]
    fn memory_of_the_host_is_read() {
        assert_eq!(
            meminfo("MemTotal:       16777216 kB\nMemFree: 3 kB\n"),
            16.0
        );
        assert_eq!(meminfo("nonsense"), 0.0);
    }
}
