//! Upstream's flags that choose devices, and the profiles that honour them.

use std::fmt;

use engines::profile::{Keep, Kind, LanePolicy, Parts, Profile, VaePolicy};

/// Upstream's flags that choose devices. Each flag changes the layout of a profile.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Wishes {
    /// Devices of the transformer, `--num_gpus_dit`.
    pub(crate) dit_devices: Option<usize>,
    /// Whether the weights of all layers stream, `--offload_model`.
    pub(crate) offload: Option<bool>,
    /// The KV rings lie in host memory, `--offload_kv_cache`.
    pub(crate) host_rings: bool,
    /// The VAE decoder has a device of its own, `--enable_vae_parallel`.
    pub(crate) own_vae: bool,
}

impl Wishes {
    /// Returns whether no flag was given.
    pub(crate) fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Counts the devices that the flags need at least.
    pub(crate) fn devices(&self) -> usize {
        self.dit_devices.unwrap_or(1) + usize::from(self.own_vae)
    }

    /// Returns the layouts of `profile` that honour the flags on at most `devices` devices, for a
    /// run of `steps` steps. There are none where it has too few devices, or where its devices
    /// differ.
    pub(crate) fn variants(&self, profile: &Profile, devices: usize, steps: usize) -> Vec<Profile> {
        let one_kind = profile.devices.len() == 1 && profile.devices[0].kind == Kind::Gpu;
        if self.is_empty() || !one_kind {
            return vec![profile.clone()];
        }
        let most = devices.saturating_sub(usize::from(self.own_vae));
        let counts = match self.dit_devices {
            Some(n) if n <= most => n..n + 1,
            Some(_) => 0..0,
            None => 1..most + 1,
        };
        let grids = counts.flat_map(|n| {
            let parts = (1..=n.min(steps)).filter(move |s| n.is_multiple_of(*s));
            parts.map(move |s| (n / s, s))
        });
        let grids = grids.flat_map(|(layers, steps)| {
            let lanes = [LanePolicy::AtMost(1), LanePolicy::Wave];
            lanes.map(|lanes| self.laid_out(profile, layers, steps, lanes))
        });
        grids.collect()
    }

    /// Returns `profile` with these parts of the layers and steps.
    fn laid_out(
        &self,
        profile: &Profile,
        layers: usize,
        steps: usize,
        lanes: LanePolicy,
    ) -> Profile {
        let mut changed = profile.clone();
        let layout = &mut changed.layout;
        let shared = matches!(&layout.layers, Parts::Shares(s) if s.len() == layers);
        if !(shared && layout.steps == steps && !self.own_vae) {
            layout.layers = Parts::Even(layers);
        }
        (layout.steps, layout.lanes) = (steps, lanes);
        layout.vae = match self.own_vae {
            true => VaePolicy::Own,
            false => VaePolicy::LeastLoaded,
        };
        if let Some(offload) = self.offload {
            changed.residency.weights = if offload { Keep::Host } else { Keep::Device };
        }
        if self.host_rings {
            changed.residency.rings = Keep::Host;
        }
        changed.devices[0].count = layers * steps + usize::from(self.own_vae);
        changed
    }
}

impl fmt::Display for Wishes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let flags = [
            self.dit_devices.map(|n| format!("--num_gpus_dit {n}")),
            self.offload.map(|on| {
                let on = if on { "True" } else { "False" };
                format!("--offload_model {on}")
            }),
            self.host_rings.then(|| "--offload_kv_cache".to_owned()),
            self.own_vae.then(|| "--enable_vae_parallel".to_owned()),
        ];
        let given: Vec<String> = flags.into_iter().flatten().collect();
        f.write_str(&given.join(" "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layouts(wishes: Wishes, name: &str, devices: usize) -> Vec<String> {
        let profile = Profile::open(name).unwrap();
        let variants = wishes.variants(&profile, devices, 4);
        let text = |p: &Profile| {
            let l = &p.layout;
            format!(
                "{:?} x {}, {:?}, {:?}, {:?} on {}",
                l.layers,
                l.steps,
                l.lanes,
                l.vae,
                p.residency.weights,
                p.device_count()
            )
        };
        let mut all: Vec<String> = variants.iter().map(text).collect();
        all.retain(|t| !t.contains("Wave"));
        all
    }

    #[test]
    fn without_flags_a_profile_stays_as_it_is() {
        let profile = Profile::open("4x24g").unwrap();
        let variants = Wishes::default().variants(&profile, 4, 4);
        assert_eq!(variants, [profile]);
    }

    #[test]
    fn devices_are_dealt_over_layers_or_steps() {
        let two = Wishes {
            dit_devices: Some(2),
            offload: Some(true),
            ..Wishes::default()
        };
        assert_eq!(
            layouts(two, "4x24g", 4),
            [
                "Even(2) x 1, AtMost(1), LeastLoaded, Host on 2",
                "Even(1) x 2, AtMost(1), LeastLoaded, Host on 2",
            ]
        );
        let upstream = Wishes {
            dit_devices: Some(4),
            own_vae: true,
            ..Wishes::default()
        };
        assert_eq!(
            layouts(upstream, "5x80g", 5),
            [
                "Even(4) x 1, AtMost(1), Own, Device on 5",
                "Even(2) x 2, AtMost(1), Own, Device on 5",
                "Even(1) x 4, AtMost(1), Own, Device on 5",
            ]
        );
        assert_eq!(layouts(upstream, "4x24g", 4), Vec::<String>::new());
        let apart = Wishes {
            own_vae: true,
            ..Wishes::default()
        };
        assert_eq!(
            layouts(apart, "2x24g", 2),
            ["Even(1) x 1, AtMost(1), Own, Device on 2"]
        );
    }

    #[test]
    fn shares_of_a_profile_stay_where_its_parts_do() {
        let four = Wishes {
            dit_devices: Some(4),
            ..Wishes::default()
        };
        let all = layouts(four, "4x24g", 4);
        assert_eq!(
            all[0],
            "Shares([11, 7, 11, 11]) x 1, AtMost(1), LeastLoaded, Device on 4"
        );
    }

    #[test]
    fn flags_are_written_as_users_type_them() {
        let all = Wishes {
            dit_devices: Some(3),
            offload: Some(false),
            host_rings: true,
            own_vae: true,
        };
        assert_eq!(
            all.to_string(),
            "--num_gpus_dit 3 --offload_model False --offload_kv_cache --enable_vae_parallel"
        );
        assert_eq!(all.devices(), 4);
    }
}
