//! Element types of checkpoints, and their conversion to f32. The element types of graph ports are
//! in `engines`.

use std::fmt;

use half::{bf16, f16};

/// The element type of a stored tensor. Elements are little-endian on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[expect(missing_docs, reason = "the variants are safetensors' own names")]
pub enum StoredDType {
    Bool,
    U8,
    I8,
    F8E4M3,
    F8E5M2,
    I16,
    U16,
    F16,
    BF16,
    I32,
    U32,
    F32,
    F64,
    I64,
    U64,
}

impl StoredDType {
    const ALL: [StoredDType; 15] = [
        Self::Bool,
        Self::U8,
        Self::I8,
        Self::F8E4M3,
        Self::F8E5M2,
        Self::I16,
        Self::U16,
        Self::F16,
        Self::BF16,
        Self::I32,
        Self::U32,
        Self::F32,
        Self::F64,
        Self::I64,
        Self::U64,
    ];

    /// Returns the bytes of one element.
    pub fn size(self) -> usize {
        match self {
            Self::Bool | Self::U8 | Self::I8 | Self::F8E4M3 | Self::F8E5M2 => 1,
            Self::I16 | Self::U16 | Self::F16 | Self::BF16 => 2,
            Self::I32 | Self::U32 | Self::F32 => 4,
            Self::F64 | Self::I64 | Self::U64 => 8,
        }
    }

    /// Returns the name in safetensors, for example `BF16`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Bool => "BOOL",
            Self::U8 => "U8",
            Self::I8 => "I8",
            Self::F8E4M3 => "F8_E4M3",
            Self::F8E5M2 => "F8_E5M2",
            Self::I16 => "I16",
            Self::U16 => "U16",
            Self::F16 => "F16",
            Self::BF16 => "BF16",
            Self::I32 => "I32",
            Self::U32 => "U32",
            Self::F32 => "F32",
            Self::F64 => "F64",
            Self::I64 => "I64",
            Self::U64 => "U64",
        }
    }

    /// Returns the type with this name in safetensors.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|d| d.name() == name)
    }

    /// Returns the type of a torch storage class, for example `BFloat16Storage`.
    pub(super) fn from_storage_class(class: &str) -> Option<Self> {
        Some(match class {
            "BoolStorage" => Self::Bool,
            "ByteStorage" => Self::U8,
            "CharStorage" => Self::I8,
            "ShortStorage" => Self::I16,
            "HalfStorage" => Self::F16,
            "BFloat16Storage" => Self::BF16,
            "IntStorage" => Self::I32,
            "FloatStorage" => Self::F32,
            "DoubleStorage" => Self::F64,
            "LongStorage" => Self::I64,
            _ => return None,
        })
    }

    /// Returns the type of a torch dtype, for example `bfloat16`.
    pub(super) fn from_torch(name: &str) -> Option<Self> {
        Some(match name {
            "bool" => Self::Bool,
            "uint8" => Self::U8,
            "int8" => Self::I8,
            "float8_e4m3fn" => Self::F8E4M3,
            "float8_e5m2" => Self::F8E5M2,
            "int16" => Self::I16,
            "uint16" => Self::U16,
            "float16" => Self::F16,
            "bfloat16" => Self::BF16,
            "int32" => Self::I32,
            "uint32" => Self::U32,
            "float32" => Self::F32,
            "float64" => Self::F64,
            "int64" => Self::I64,
            "uint64" => Self::U64,
            _ => return None,
        })
    }

    /// Returns whether the type is floating point of 16 bits or more, which this crate converts.
    pub(crate) fn is_float(self) -> bool {
        matches!(self, Self::F16 | Self::BF16 | Self::F32 | Self::F64)
    }

    /// Returns the bytes of a tensor of this type, or `None` when they do not fit a `usize`.
    pub fn bytes_of(self, shape: &[usize]) -> Option<usize> {
        shape.iter().try_fold(self.size(), |n, &d| n.checked_mul(d))
    }

    /// Converts little-endian `bytes` to f32, as [`Self::extend_f32`] does.
    pub(super) fn to_f32(self, bytes: &[u8]) -> Option<Vec<f32>> {
        let mut out = Vec::with_capacity(bytes.len() / self.size());
        self.extend_f32(bytes, &mut out).then_some(out)
    }

    /// Rounds each element to the nearest value of this type, ties to even. Types other than f16
    /// and bf16 change nothing.
    pub(super) fn round_all(self, values: &mut [f32]) {
        match self {
            Self::BF16 => values
                .iter_mut()
                .for_each(|x| *x = bf16::from_f32(*x).to_f32()),
            Self::F16 => values
                .iter_mut()
                .for_each(|x| *x = f16::from_f32(*x).to_f32()),
            _ => {}
        }
    }

    /// Appends little-endian `bytes` as f32 and returns true; f64 is rounded. For a type that is
    /// not floating point of 16 bits or more, it appends nothing and returns false.
    pub(super) fn extend_f32(self, bytes: &[u8], out: &mut Vec<f32>) -> bool {
        match self {
            Self::F32 => extend(bytes, f32::from_le_bytes, out),
            Self::BF16 => extend(bytes, |b| bf16::from_le_bytes(b).to_f32(), out),
            Self::F16 => extend(bytes, |b| f16::from_le_bytes(b).to_f32(), out),
            Self::F64 => extend(bytes, |b| f64::from_le_bytes(b) as f32, out),
            _ => return false,
        }
        true
    }
}

fn extend<const N: usize>(bytes: &[u8], f: impl Fn([u8; N]) -> f32, out: &mut Vec<f32>) {
    out.extend(bytes.as_chunks::<N>().0.iter().map(|b| f(*b)));
}

impl fmt::Display for StoredDType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_reads_back() {
        for d in StoredDType::ALL {
            assert_eq!(StoredDType::from_name(d.name()), Some(d));
        }
        assert_eq!(StoredDType::from_name("F32 "), None);
    }

    #[test]
    fn floats_convert_and_integers_do_not() {
        let cases: [(StoredDType, &[u8], Option<f32>); 5] = [
            (StoredDType::F32, &1.5f32.to_le_bytes(), Some(1.5)),
            (StoredDType::BF16, &[0xC0, 0x3F], Some(1.5)),
            (StoredDType::F16, &[0x00, 0x3E], Some(1.5)),
            (StoredDType::F64, &1.5f64.to_le_bytes(), Some(1.5)),
            (StoredDType::I64, &[0; 8], None),
        ];
        for (dtype, bytes, want) in cases {
            assert_eq!(dtype.to_f32(bytes), want.map(|x| vec![x]), "{dtype}");
        }
    }

    #[test]
    fn bf16_rounds_to_nearest_even() {
        let rounded = |dtype: StoredDType| {
            let mut x = [1.0 + 1.0 / 256.0, 1.0 + 3.0 / 256.0];
            dtype.round_all(&mut x);
            x
        };
        assert_eq!(rounded(StoredDType::BF16), [1.0, 1.0 + 4.0 / 256.0]);
        assert_eq!(
            rounded(StoredDType::F32),
            [1.0 + 1.0 / 256.0, 1.0 + 3.0 / 256.0]
        );
    }
}
