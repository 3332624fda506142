//! Describes an NVIDIA device: name, compute capability, memory, and the PCIe link, which Linux's
//! sysfs knows.

use std::path::Path;

/// An NVIDIA device, as its driver describes it.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Gpu {
    /// Number of the device, as in `cuda:N`.
    pub ordinal: u32,
    /// Marketing name, such as `NVIDIA H100 80GB HBM3`.
    pub name: String,
    /// Compute capability, such as (9, 0).
    pub capability: (u32, u32),
    /// Bytes that nobody uses. The context of this process, about half a GB, is not free.
    pub free: u64,
    /// Bytes that processes can use. `nvidia-smi` counts up to 1 % more: the driver's own share.
    pub total: u64,
    /// The link to the host; `None` where Linux does not say.
    pub link: Option<PcieLink>,
}

impl Gpu {
    /// Compute capability as one number, such as 90.
    pub fn sm(&self) -> u32 {
        self.capability.0 * 10 + self.capability.1
    }

    /// Bytes in use, by any process.
    pub fn used(&self) -> u64 {
        self.total.saturating_sub(self.free)
    }
}

/// A PCI Express link at its best: the lower of what the device and its slot can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct PcieLink {
    /// Generation of PCI Express, from 1 on.
    pub generation: u32,
    /// Lanes.
    pub lanes: u32,
}

/// Reads the link of the device at a PCI address such as `0000:65:00.0`, below `devices`, which is
/// `/sys/bus/pci/devices` on Linux. The device's folder there is a link into the tree of bridges,
/// so that the slot is its parent folder.
#[cfg_attr(
    not(any(feature = "cuda", test)),
    expect(dead_code, reason = "only the CUDA driver knows the addresses")
)]
pub(super) fn link_of(devices: &Path, address: &str) -> Option<PcieLink> {
    let device = devices.join(address).canonicalize().ok()?;
    let own = link_in(&device)?;
    let slot = device.parent().and_then(link_in).unwrap_or(own);
    Some(PcieLink {
        generation: own.generation.min(slot.generation),
        lanes: own.lanes.min(slot.lanes),
    })
}

/// Reads the best link of one folder in sysfs, such as `16.0 GT/s PCIe` and `16`.
fn link_in(folder: &Path) -> Option<PcieLink> {
    let text = |name| std::fs::read_to_string(folder.join(name)).ok();
    let speed = text("max_link_speed")?;
    let generation = match speed.split_whitespace().next()? {
        "2.5" => 1,
        "5.0" | "5" => 2,
        "8.0" | "8" => 3,
        "16.0" | "16" => 4,
        "32.0" | "32" => 5,
        "64.0" | "64" => 6,
        _ => return None,
    };
    let lanes = text("max_link_width")?.trim().parse().ok();
    // A virtual function says 0 or 255 lanes: it has no link of its own.
    let lanes = lanes.filter(|n| (1..=32).contains(n))?;
    Some(PcieLink { generation, lanes })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_is_no_better_than_the_slot() {
        let dir = tempfile::tempdir().unwrap();
        let slot = dir.path().join("tree/0000:00:01.0");
        let device = slot.join("0000:65:00.0");
        std::fs::create_dir_all(&device).unwrap();
        let devices = dir.path().join("devices");
        std::fs::create_dir(&devices).unwrap();
        std::os::unix::fs::symlink(&device, devices.join("0000:65:00.0")).unwrap();
        let read = || link_of(&devices, "0000:65:00.0").map(|l| (l.generation, l.lanes));
        let say = |folder: &Path, speed: &str, lanes: &str| {
            std::fs::write(folder.join("max_link_speed"), speed).unwrap();
            std::fs::write(folder.join("max_link_width"), lanes).unwrap();
        };
        assert_eq!(read(), None);
        say(&device, "32.0 GT/s PCIe\n", "16\n");
        assert_eq!(read(), Some((5, 16)));
        say(&slot, "16.0 GT/s PCIe\n", "8\n");
        assert_eq!(read(), Some((4, 8)));
        say(&device, "8.0 GT/s PCIe\n", "16\n");
        assert_eq!(read(), Some((3, 8)));
        for (speed, lanes) in [
            ("Unknown", "16"),
            ("16.0 GT/s PCIe", "255"),
            ("16.0 GT/s", ""),
        ] {
            say(&device, speed, lanes);
            assert_eq!(read(), None, "{speed} {lanes}");
        }
        assert_eq!(link_of(&devices, "0000:66:00.0"), None);
    }
}
