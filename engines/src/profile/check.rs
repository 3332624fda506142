//! Checks of a profile's numbers: each alone, and those that only fit together.

use super::keys::Places;
use super::{Device, Keep, Kind, LanePolicy, Profile, ProfileError, VaePolicy};
use crate::recipe::Recipe;

impl Profile {
    /// Checks every number. `places` says where each field stands in the profile's text.
    pub(super) fn check(&self, places: &Places) -> Result<(), ProfileError> {
        let check = Check { places };
        if self.devices.is_empty() {
            return Err(check.field("devices", "one device or more", "none"));
        }
        for (i, d) in self.devices.iter().enumerate() {
            d.check(&check, &format!("devices[{i}]"), self.recipe)?;
        }
        let h = &self.host;
        check.positive("host.memory_gib", h.memory_gib)?;
        check.within(
            "host.reserve_gib",
            h.reserve_gib,
            "host.memory_gib",
            h.memory_gib,
        )?;
        check.within(
            "host.pinned_gib",
            h.pinned_gib,
            "host.memory_gib",
            h.memory_gib,
        )?;
        check.positive("host.disk_gbs", h.disk_gbs)?;
        self.check_layout(&check)?;
        self.check_sizes(&check)?;
        for (name, mib) in [
            ("builder.workspace_mib", self.builder.workspace_mib),
            ("builder.scratch_mib", self.builder.scratch_mib),
        ] {
            check.count(name, mib, 1, 1 << 20)?;
        }
        check.count(
            "builder.optimization_level",
            self.builder.optimization_level,
            0,
            5,
        )
    }

    fn check_layout(&self, check: &Check<'_>) -> Result<(), ProfileError> {
        let l = &self.layout;
        check.count("layout.steps", l.steps, 1, 1000)?;
        check.count("layout.ring_blocks", l.ring_blocks, 1, 64)?;
        check.count("residency.slots", self.residency.slots, 2, 64)?;
        if let LanePolicy::AtMost(n) = l.lanes {
            check.count("layout.lanes", n, 1, 64)?;
        }
        let parts = l.layers.count();
        let (stages, own) = (parts.saturating_mul(l.steps), l.vae == VaePolicy::Own);
        let (wanted, have) = (stages + usize::from(own), self.device_count());
        if wanted > have {
            let vae = if own { " and one for the VAE" } else { "" };
            let want = format!(
                "{wanted} devices ({parts} parts of the layers x {} of the steps{vae})",
                l.steps
            );
            return Err(check.field("devices", &want, &have.to_string()));
        }
        let used = self.each_device().take(wanted);
        if self.residency.slots > 0 && self.streams() {
            let link = used
                .filter(|d| d.kind == Kind::Gpu)
                .find(|d| d.host_link_gbs <= 0.0);
            if let Some(d) = link {
                let got = format!("{} with residency {:?}", d.host_link_gbs, self.residency);
                return Err(check.field(
                    "devices.host_link_gbs",
                    "a rate above 0 to stream over",
                    &got,
                ));
            }
        }
        Ok(())
    }

    fn streams(&self) -> bool {
        self.residency.weights != Keep::Device || self.residency.rings != Keep::Device
    }

    fn check_sizes(&self, check: &Check<'_>) -> Result<(), ProfileError> {
        let s = &self.sizes;
        for (name, extent) in [
            ("sizes.min", s.min),
            ("sizes.opt", s.opt),
            ("sizes.max", s.max),
        ] {
            let fits = |n: usize| (64..=8192).contains(&n) && n.is_multiple_of(16);
            if !fits(extent.width) || !fits(extent.height) {
                let want = "multiples of 16 from 64 to 8192";
                return Err(check.field(name, want, &extent.to_string()));
            }
        }
        if s.min.area() > s.opt.area() || s.opt.area() > s.max.area() {
            let got = format!("{}, {}, {}", s.min, s.opt, s.max);
            return Err(check.field("sizes", "min, opt and max of ascending area", &got));
        }
        Ok(())
    }
}

impl Device {
    fn check(&self, check: &Check<'_>, at: &str, recipe: Recipe) -> Result<(), ProfileError> {
        let field = |name: &str| format!("{at}.{name}");
        check.count(&field("count"), self.count, 1, 64)?;
        check.positive(&field("memory_gib"), self.memory_gib)?;
        check.within(
            &field("reserve_gib"),
            self.reserve_gib,
            &field("memory_gib"),
            self.memory_gib,
        )?;
        check.positive(&field("bandwidth_gbs"), self.bandwidth_gbs)?;
        for (name, rate) in [
            ("tflops.fp32", self.tflops.fp32),
            ("tflops.bf16", self.tflops.bf16),
            ("tflops.fp8", self.tflops.fp8),
            ("host_link_gbs", self.host_link_gbs),
            ("peer_link_gbs", self.peer_link_gbs),
        ] {
            check.not_negative(&field(name), rate)?;
        }
        if self.peak(recipe) <= 0.0 {
            let name = if recipe == Recipe::Fp32 {
                "tflops.fp32"
            } else {
                "tflops.bf16"
            };
            let want = format!("a rate above 0 for recipe {recipe}");
            return Err(check.field(&field(name), &want, "0"));
        }
        for (name, share) in [
            ("achieved.linear", self.achieved.linear),
            ("achieved.attention", self.achieved.attention),
            ("achieved.convolution", self.achieved.convolution),
            ("achieved.memory", self.achieved.memory),
        ] {
            if !(share > 0.0 && share <= 1.0) {
                return Err(check.field(
                    &field(name),
                    "a share above 0 and at most 1",
                    &share.to_string(),
                ));
            }
        }
        match (self.kind, self.sm, self.cores) {
            (Kind::Gpu, 0, _) => {
                Err(check.field(&field("sm"), "a compute capability such as 89", "0"))
            }
            (Kind::Cpu, _, 0) => {
                Err(check.field(&field("cores"), "the cores that tflops stands for", "0"))
            }
            _ => Ok(()),
        }
    }
}

/// Checks single fields.
struct Check<'a> {
    places: &'a Places,
}

impl Check<'_> {
    fn field(&self, field: &str, want: &str, got: &str) -> ProfileError {
        ProfileError::Field {
            at: self.places.of(field),
            field: field.to_owned(),
            want: want.to_owned(),
            got: got.to_owned(),
        }
    }

    fn require(&self, ok: bool, field: &str, want: &str, got: f64) -> Result<(), ProfileError> {
        if ok {
            Ok(())
        } else {
            Err(self.field(field, want, &got.to_string()))
        }
    }

    fn positive(&self, field: &str, got: f64) -> Result<(), ProfileError> {
        self.require(got.is_finite() && got > 0.0, field, "a number above 0", got)
    }

    fn not_negative(&self, field: &str, got: f64) -> Result<(), ProfileError> {
        self.require(
            got.is_finite() && got >= 0.0,
            field,
            "a number of 0 or more",
            got,
        )
    }

    fn within(&self, field: &str, got: f64, of: &str, most: f64) -> Result<(), ProfileError> {
        self.not_negative(field, got)?;
        let want = format!("less than {of} = {most}");
        let equal_is_fine = field.ends_with("pinned_gib");
        self.require(
            got < most || (equal_is_fine && got <= most),
            field,
            &want,
            got,
        )
    }

    fn count(
        &self,
        field: &str,
        got: usize,
        least: usize,
        most: usize,
    ) -> Result<(), ProfileError> {
        if (least..=most).contains(&got) {
            return Ok(());
        }
        let want = format!("a whole number from {least} to {most}");
        Err(self.field(field, &want, &got.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use crate::profile::tests::changed;

    #[test]
    fn impossible_numbers_are_named_with_what_was_wanted() {
        for (from, to, want) in [
            (
                "memory_gib = 24",
                "memory_gib = 0",
                "12:1: field devices[0].memory_gib: wanted a number above 0, got 0",
            ),
            (
                "memory_gib = 24",
                "memory_gib = -24",
                "12:1: field devices[0].memory_gib: wanted a number above 0, got -24",
            ),
            (
                "memory_gib = 24",
                "memory_gib = nan",
                "12:1: field devices[0].memory_gib: wanted a number above 0, got NaN",
            ),
            (
                "memory_gib = 24",
                "memory_gib = inf",
                "12:1: field devices[0].memory_gib: wanted a number above 0, got inf",
            ),
            (
                "reserve_gib = 1.25",
                "reserve_gib = 25.0",
                "13:1: field devices[0].reserve_gib: wanted less than devices[0].memory_gib = 24, \
                 got 25",
            ),
            (
                "reserve_gib = 1.25",
                "reserve_gib = -1.0",
                "13:1: field devices[0].reserve_gib: wanted a number of 0 or more, got -1",
            ),
            (
                "bf16 = 165.2",
                "bf16 = 0.0",
                "17:25: field devices[0].tflops.bf16: wanted a rate above 0 for recipe bf16, got 0",
            ),
            (
                "linear = 0.85",
                "linear = 1.5",
                "20:1: field devices[0].achieved.linear: wanted a share above 0 and at most 1, got \
                 1.5",
            ),
            (
                "host_link_gbs = 24",
                "host_link_gbs = -1",
                "15:1: field devices[0].host_link_gbs: wanted a number of 0 or more, got -1",
            ),
            (
                "count = 4",
                "count = 3",
                "6:3: field devices: wanted 4 devices (4 parts of the layers x 1 of the steps), \
                 got 3",
            ),
            (
                "count = 4",
                "count = 0",
                "7:1: field devices[0].count: wanted a whole number from 1 to 64, got 0",
            ),
            (
                "vae = \"least-loaded\"",
                "vae = \"own\"",
                "6:3: field devices: wanted 5 devices (4 parts of the layers x 1 of the steps and \
                 one for the VAE), got 4",
            ),
            (
                "ring_blocks = 4",
                "ring_blocks = 0",
                "36:1: field layout.ring_blocks: wanted a whole number from 1 to 64, got 0",
            ),
            (
                "slots = 2",
                "slots = 1",
                "43:1: field residency.slots: wanted a whole number from 2 to 64, got 1",
            ),
            (
                "pinned_gib = 16",
                "pinned_gib = 65",
                "29:1: field host.pinned_gib: wanted less than host.memory_gib = 64, got 65",
            ),
            (
                "max = \"720*400\"",
                "max = \"256*240\"",
                "45:2: field sizes: wanted min, opt and max of ascending area, got 256*256, \
                 704*384, 256*240",
            ),
            (
                "max = \"720*400\"",
                "max = \"720*401\"",
                "48:1: field sizes.max: wanted multiples of 16 from 64 to 8192, got 720*401",
            ),
            (
                "optimization_level = 3",
                "optimization_level = 6",
                "53:1: field builder.optimization_level: wanted a whole number from 0 to 5, got 6",
            ),
            (
                "sm = 89",
                "sm = 0",
                "11:1: field devices[0].sm: wanted a compute capability such as 89, got 0",
            ),
        ] {
            let error = changed(from, to).expect_err(to).to_string();
            assert_eq!(error, format!("my.toml:{want}"), "{to}");
        }
    }
}
