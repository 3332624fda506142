//! Lists the devices of this machine, NVIDIA's or otherwise the CPU, and chooses a built-in profile
//! for them. This is the only part of the planner that looks at a machine.

use engines::device::{self, Gpu, PcieLink};
use engines::manifest::ModelConfig;
use engines::memory::MemoryError;
use engines::profile::{Device, GIB, Kind, Profile};
use engines::recipe::Recipe;

use super::ask::Ask;
use super::draft::Planned;
use super::error::PlannerError;
use super::placement::device_name;
use super::plan;
use super::wishes::Wishes;

/// Share of a profile's nominal memory that a card must have. A card of 24 GiB that corrects errors
/// in its memory has 22.0 to 22.5 GiB, which is 92 %; the next smaller kind has 20 GiB, which is 83
/// %.
const LEAST_OF_NOMINAL: f64 = 0.91;

/// One NVIDIA device in the units of a profile.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub(crate) struct Card {
    /// Marketing name.
    pub(crate) name: String,
    /// Memory that processes can use.
    pub(crate) memory_gib: f64,
    /// Memory that no process uses.
    pub(crate) free_gib: f64,
    /// Compute capability as one number, such as 89.
    pub(crate) sm: u32,
    /// Rate of the PCIe link in GB/s, one way; 0 where Linux does not know the link.
    pub(crate) host_link_gbs: f64,
}

/// The hardware that a plan is made for.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub(crate) struct Machine {
    /// NVIDIA devices, in the driver's order.
    pub(crate) cards: Vec<Card>,
    /// Cores of the processor.
    pub(crate) cores: usize,
    /// Memory of the host.
    pub(crate) memory_gib: f64,
    /// Explains why there are no cards, where there are none.
    pub(crate) no_cards: Option<String>,
}

impl Machine {
    /// Asks the driver and the system about this machine. A driver that is missing or refuses is no
    /// error: such a machine has no cards.
    pub(crate) fn look() -> Self {
        let memory = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Self::of(device::gpus(), cores, meminfo(&memory))
    }

    /// Returns the machine with the devices that a driver listed.
    fn of(gpus: Result<Vec<Gpu>, MemoryError>, cores: usize, memory_gib: f64) -> Self {
        let (cards, no_cards) = match gpus {
            Ok(gpus) if gpus.is_empty() => (Vec::new(), Some("the driver lists none".to_owned())),
            Ok(gpus) => (gpus.iter().map(Card::new).collect(), None),
            Err(reason) => (Vec::new(), Some(reason.to_string())),
        };
        Self {
            cards,
            cores,
            memory_gib,
            no_cards,
        }
    }

    /// Describes the machine in one line.
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

    /// Returns a profile with this machine's figures in place of its own.
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

    /// Plans with the fastest built-in profile for these devices that fits `ask` and honours
    /// `wishes`.
    ///
    /// # Errors
    /// No profile fits: the refusal of the last one. The wishes need more devices than there are.
    pub(crate) fn plan(
        &self,
        config: &ModelConfig,
        ask: &Ask,
        wishes: &Wishes,
    ) -> Result<Planned, PlannerError> {
        let cards = self.cards.len();
        if cards > 0 && wishes.devices() > cards {
            return Err(PlannerError::Flags {
                flags: wishes.to_string(),
                wanted: wishes.devices(),
                found: self.describe(),
            });
        }
        let layouts = Profile::built_in()?
            .into_iter()
            .flat_map(|p| wishes.variants(&p, cards, ask.steps))
            .filter(|p| self.suits(p))
            .map(|p| self.fitted(&p));
        fastest(layouts, config, ask)?.ok_or_else(|| self.nothing_suits())
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

    /// Returns whether a profile is for a machine like this and can run today.
    fn suits(&self, profile: &Profile) -> bool {
        if profile.recipe == Recipe::Fp8 {
            return false;
        }
        let gpu = profile.devices.iter().any(|d| d.kind == Kind::Gpu);
        if self.cards.is_empty() || !gpu {
            return self.cards.is_empty() && !gpu;
        }
        self.has_devices_of(profile)
    }

    /// Returns whether this machine has a profile's devices, each with enough memory.
    fn has_devices_of(&self, profile: &Profile) -> bool {
        let wanted: Vec<f64> = profile
            .each_device()
            .filter(|d| d.kind == Kind::Gpu)
            .map(|d| d.memory_gib)
            .collect();
        let enough = |(have, want): (&Card, &f64)| have.memory_gib >= LEAST_OF_NOMINAL * want;
        self.cards.len() >= wanted.len() && self.cards.iter().zip(&wanted).all(enough)
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
        if !self.has_devices_of(profile) {
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

/// Plans with the fastest of `layouts` that fits. Returns `None` if there are no layouts.
///
/// # Errors
/// No layout fits: the refusal of the last one.
pub(crate) fn fastest(
    layouts: impl IntoIterator<Item = Profile>,
    config: &ModelConfig,
    ask: &Ask,
) -> Result<Option<Planned>, PlannerError> {
    let mut best: Option<Planned> = None;
    let mut refusal = None;
    for profile in layouts {
        match plan(&profile, config, ask) {
            Ok(p) if best.as_ref().is_none_or(|b| p.speed.fps > b.speed.fps) => best = Some(p),
            Ok(_) => {}
            Err(e) => refusal = Some(e),
        }
    }
    match (best, refusal) {
        (None, Some(refusal)) => Err(refusal),
        (best, _) => Ok(best),
    }
}

/// Replaces the figures of a device by those of its card: the data sheet if a profile knows the
/// card, and the driver's figures.
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

impl Card {
    fn new(gpu: &Gpu) -> Self {
        Self {
            name: gpu.name.clone(),
            memory_gib: gpu.total as f64 / GIB,
            free_gib: gpu.free as f64 / GIB,
            sm: gpu.sm(),
            host_link_gbs: gpu.link.map_or(0.0, link_gbs),
        }
    }
}

/// Returns the rate that pinned copies reach on a link, in GB/s one way: about 80 % of the line
/// rate.
fn link_gbs(link: PcieLink) -> f64 {
    let lane = match link.generation {
        0..=2 => 0.0,
        3 => 0.75,
        4 => 1.5,
        _ => 3.1,
    };
    lane * f64::from(link.lanes)
}

/// Returns the bytes of memory that a process may take now, where Linux says so.
pub(crate) fn free_memory() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|l| l.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().trim_end_matches("kB").trim().parse().ok()?;
    Some(kib * 1024)
}

/// Reads the whole memory in GiB from the text of `/proc/meminfo`; 0 where the text does not say.
fn meminfo(text: &str) -> f64 {
    let total = text.lines().find_map(|l| l.strip_prefix("MemTotal:"));
    let kib = total.and_then(|t| t.trim().trim_end_matches(" kB").parse::<f64>().ok());
    kib.unwrap_or(0.0) * 1024.0 / GIB
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::numbers::size::Size;
    use crate::placement::plan::Latency;
    use engines::components::preset::Preset;
    use engines::error_kind::ErrorKind;

    /// A machine with cards of `(name, total MiB, free MiB, capability, generation of PCIe)`.
    fn machine(cards: &[Listed]) -> Machine {
        let gpu = |(ordinal, &(name, total, free, capability, generation)): (usize, &Listed)| Gpu {
            ordinal: ordinal as u32,
            name: name.to_owned(),
            capability,
            free: free << 20,
            total: total << 20,
            link: generation.map(|generation| PcieLink {
                generation,
                lanes: 16,
            }),
        };
        Machine::of(Ok(cards.iter().enumerate().map(gpu).collect()), 16, 128.0)
    }

    fn ask() -> Ask {
        Ask {
            size: Size {
                width: 704,
                height: 384,
            },
            steps: 4,
            passes: 1,
            infer_frames: 48,
            latency: Latency::default(),
            clips: None,
        }
    }

    type Listed = (&'static str, u64, u64, (u32, u32), Option<u32>);

    const R4090: Listed = ("NVIDIA GeForce RTX 4090", 24_564, 24_111, (8, 9), Some(4));
    const H200: Listed = ("NVIDIA H200", 143_771, 143_000, (9, 0), Some(5));

    #[test]
    fn a_card_has_what_the_driver_says_and_no_link_where_none_is_known() {
        let cards = machine(&[R4090, ("NVIDIA GB10", 122_570, 99_000, (12, 1), None)]).cards;
        let got: Vec<_> = cards
            .iter()
            .map(|c| (&*c.name, c.sm, c.host_link_gbs))
            .collect();
        assert_eq!(
            got,
            [
                ("NVIDIA GeForce RTX 4090", 89, 24.0),
                ("NVIDIA GB10", 121, 0.0)
            ]
        );
        assert!((cards[0].memory_gib - 23.99).abs() < 0.01);
        assert!((cards[0].free_gib - 23.55).abs() < 0.01);
    }

    #[test]
    fn a_machine_without_a_driver_has_no_cards_and_says_why() {
        let missing = MemoryError::NoDriver {
            reason: "libcuda.so.1 is missing".to_owned(),
        };
        let machine = Machine::of(Err(missing.clone()), 2, 8.0);
        assert_eq!(machine.cards, []);
        assert_eq!(machine.no_cards, Some(missing.to_string()));
        assert_eq!(
            Machine::of(Ok(Vec::new()), 2, 8.0).describe(),
            "no NVIDIA device (the driver lists none); 2 cores, 8 GiB"
        );
    }

    #[test]
    fn a_card_that_corrects_errors_in_its_memory_is_as_large_as_its_kind() {
        let profile = Profile::open("1x24g-offload").unwrap();
        for (total, suits) in [(24_564, true), (22_520, true), (20_470, false)] {
            let card = ("NVIDIA L4", total, total, (8, 9), Some(4));
            assert_eq!(machine(&[card]).suits(&profile), suits, "{total}");
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
            let planned = machine(cards)
                .plan(&config, &ask(), &Wishes::default())
                .unwrap();
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
        let planned = machine(&[])
            .plan(&Preset::Small.config(), &small, &Wishes::default())
            .unwrap();
        assert_eq!(
            (
                planned.profile.name.as_str(),
                planned.profile.devices[0].cores
            ),
            ("cpu", 16)
        );
    }

    #[test]
    fn upstreams_flags_choose_among_the_cards() {
        let config = Preset::Full.config();
        let three_and_vae = Wishes {
            dit_devices: Some(3),
            own_vae: true,
            ..Wishes::default()
        };
        let planned = machine(&[R4090; 4])
            .plan(&config, &ask(), &three_and_vae)
            .unwrap();
        let devices = |p: &Planned| {
            let stages = p.placement.stages.iter().map(|s| s.device);
            (stages.collect::<Vec<_>>(), p.placement.vae)
        };
        assert_eq!(devices(&planned), (vec![0, 1, 2], 3));
        let upstream = Wishes {
            dit_devices: Some(4),
            ..three_and_vae
        };
        let planned = machine(&[H200; 5])
            .plan(&config, &ask(), &upstream)
            .unwrap();
        assert_eq!(devices(&planned), (vec![0, 1, 2, 3], 4));
        let offloaded = Wishes {
            dit_devices: Some(1),
            offload: Some(true),
            ..Wishes::default()
        };
        let planned = machine(&[R4090; 2])
            .plan(&config, &ask(), &offloaded)
            .unwrap();
        assert_eq!(devices(&planned), (vec![0], 0));
        assert_eq!(planned.placement.stages[0].residency.resident_layers, 0);
        let error = machine(&[R4090; 4])
            .plan(&config, &ask(), &upstream)
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Resources);
        let cards = "NVIDIA GeForce RTX 4090 24 GiB";
        assert_eq!(
            error.to_string(),
            format!(
                "--num_gpus_dit 4 --enable_vae_parallel wants 5 devices, there are 4 ({cards}, \
                 {cards}, {cards}, {cards}); name fewer, or leave the flags out and let the \
                 profile choose"
            )
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
            "profile 4x24g is for 4 devices of 24 GiB, this machine has 2 \
             (NVIDIA GeForce RTX 4090 24 GiB, NVIDIA GeForce RTX 4090 24 GiB); \
             profiles for it: 2x24g-offload, 1x24g-offload, 1x16g-offload"
        );
        let error = machine(&[]).check(&planned).unwrap_err().to_string();
        let none = "this machine has no NVIDIA device (the driver lists none); \
                    16 cores, 128 GiB; profiles for it: cpu";
        assert!(error.contains(none), "{error}");
        let mut cards = [R4090; 4];
        cards[2].2 = 8_000;
        let error = machine(&cards).check(&planned).unwrap_err().to_string();
        let occupied = "cuda:2 (NVIDIA GeForce RTX 4090) has 7.8 GiB free, \
                        profile 4x24g plans 20.2; end what else uses it";
        assert!(error.starts_with(occupied), "{error}");
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
