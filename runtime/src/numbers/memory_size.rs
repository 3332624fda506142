//! Reads amounts of memory from flags.

use std::str::FromStr;

/// An amount of memory in bytes. `--device-memory` takes one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemorySize(pub u64);

/// A text that is not an amount of memory.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("memory wants a size such as 24GB, 900MB or 16GiB, got `{got}`")]
pub struct MemorySizeError {
    /// Text that was given.
    pub got: String,
}

impl FromStr for MemorySize {
    type Err = MemorySizeError;

    /// Reads a number and a unit: `B`, `kB`, `MB`, `GB`, `KiB`, `MiB` or `GiB`, in any case.
    fn from_str(text: &str) -> Result<Self, MemorySizeError> {
        let plain = text.trim();
        let at = plain.find(|c: char| c.is_ascii_alphabetic());
        let (number, unit) = plain.split_at(at.unwrap_or(plain.len()));
        let unit = match unit.to_ascii_lowercase().as_str() {
            "" | "b" => 1.0,
            "kb" => 1e3,
            "mb" => 1e6,
            "gb" => 1e9,
            "kib" => f64::from(1 << 10),
            "mib" => f64::from(1 << 20),
            "gib" => f64::from(1 << 30),
            _ => f64::NAN,
        };
        let bytes = number.trim().parse().unwrap_or(f64::NAN) * unit;
        if bytes >= 1.0 && bytes < u64::MAX as f64 {
            Ok(Self(bytes as u64))
        } else {
            Err(MemorySizeError {
                got: text.to_owned(),
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_sizes_are_read_in_both_kinds_of_units() {
        for (text, want) in [
            ("24GB", Some(24_000_000_000)),
            ("1.5 gib", Some(1_610_612_736)),
            ("900kB", Some(900_000)),
            ("4096", Some(4096)),
            ("0GB", None),
            ("-1GB", None),
            ("GB", None),
            ("3 parsecs", None),
            ("", None),
        ] {
            let got = text.parse::<MemorySize>();
            assert_eq!(got.as_ref().ok().map(|m| m.0), want, "{text}");
            assert!(
                want.is_some()
                    || got
                        == Err(MemorySizeError {
                            got: text.to_owned()
                        })
            );
        }
    }
}
