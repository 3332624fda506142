//! Reads the header of one safetensors file and checks all of it before any tensor is used. Each
//! fault names its key. The module reads no tensor data.
//!
//! It is stricter than the format's own reader in one point: a tensor must start at a multiple of
//! its element size.

use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};

use super::dtype::StoredDType;
use super::error::SafetensorsFault as Fault;

/// The limit of the `safetensors` crate.
const HEADER_LIMIT: usize = 100_000_000;

/// A tensor of the file; `start` counts from the beginning of the file.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Located {
    pub(super) key: String,
    pub(super) dtype: StoredDType,
    pub(super) shape: Vec<usize>,
    pub(super) start: usize,
    pub(super) len: usize,
    /// Elements between neighbours of each dimension, where the tensor is not row-major without
    /// gaps. Its elements then lie anywhere in the `len` bytes.
    pub(super) strides: Option<Vec<usize>>,
}

/// Reads the header of a whole file, given as `bytes`.
pub(super) fn read(bytes: &[u8]) -> Result<Vec<Located>, Vec<Fault>> {
    let (header, data_start) = header(bytes).map_err(|f| vec![f])?;
    let Entries(entries) = serde_json::from_slice(header).map_err(|e| {
        vec![Fault::Header {
            reason: e.to_string(),
        }]
    })?;
    let data = bytes.len() - data_start;
    let mut faults = Vec::new();
    let mut tensors = Vec::new();
    for (key, value) in entries {
        if key == "__metadata__" {
            continue;
        }
        match locate(key, value, data) {
            Ok(t) => tensors.push(t),
            Err(f) => faults.push(f),
        }
    }
    // A faulty entry leaves a hole, so the coverage is checked only when no entry has a fault.
    if faults.is_empty() {
        faults = coverage(&mut tensors, data);
    }
    faults.extend(twice(&mut tensors));
    if !faults.is_empty() {
        return Err(faults);
    }
    for t in &mut tensors {
        t.start += data_start;
    }
    Ok(tensors)
}

/// Returns the JSON header and the first byte of the data part.
fn header(bytes: &[u8]) -> Result<(&[u8], usize), Fault> {
    let (len, rest) = bytes
        .split_first_chunk::<8>()
        .ok_or(Fault::Short { got: bytes.len() })?;
    let len = u64::from_le_bytes(*len);
    match usize::try_from(len) {
        Ok(n) if n <= rest.len() && n <= HEADER_LIMIT => Ok((&rest[..n], 8 + n)),
        Ok(n) if n <= rest.len() => Err(Fault::HeaderLimit {
            got: len,
            limit: HEADER_LIMIT,
        }),
        _ => Err(Fault::HeaderLength {
            got: len,
            room: rest.len(),
        }),
    }
}

#[derive(Deserialize)]
struct Entry {
    dtype: String,
    shape: Vec<usize>,
    data_offsets: (usize, usize),
}

fn locate(key: String, value: serde_json::Value, data: usize) -> Result<Located, Fault> {
    let Entry {
        dtype,
        shape,
        data_offsets: (begin, end),
    } = match serde_json::from_value(value) {
        Ok(entry) => entry,
        Err(e) => {
            return Err(Fault::Entry {
                key,
                reason: e.to_string(),
            });
        }
    };
    let Some(dtype) = StoredDType::from_name(&dtype) else {
        return Err(Fault::DType { key, got: dtype });
    };
    let Some(want) = dtype.bytes_of(&shape) else {
        return Err(Fault::Huge { key, dtype, shape });
    };
    if begin.checked_add(want) != Some(end) {
        return Err(Fault::Size {
            key,
            dtype,
            shape,
            want,
            begin,
            end,
        });
    }
    if end > data {
        return Err(Fault::Truncated { key, end, data });
    }
    if begin % dtype.size() != 0 {
        return Err(Fault::Misaligned {
            key,
            begin,
            align: dtype.size(),
        });
    }
    Ok(Located {
        key,
        dtype,
        shape,
        start: begin,
        len: want,
        strides: None,
    })
}

/// Checks that the tensors cover the data part exactly once, without overlaps and holes.
fn coverage(tensors: &mut [Located], data: usize) -> Vec<Fault> {
    tensors.sort_by(|a, b| (a.start, a.len, &a.key).cmp(&(b.start, b.len, &b.key)));
    let mut faults = Vec::new();
    let (mut at, mut last) = (0, "");
    for t in tensors.iter() {
        if t.start < at {
            faults.push(Fault::Overlap {
                first: last.to_owned(),
                second: t.key.clone(),
                at: t.start,
            });
        } else if t.start > at {
            faults.push(Fault::Gap {
                from: at,
                to: t.start,
            });
        }
        if t.start + t.len >= at {
            (at, last) = (t.start + t.len, &t.key);
        }
    }
    if at < data {
        faults.push(Fault::Gap { from: at, to: data });
    }
    faults
}

fn twice(tensors: &mut [Located]) -> Vec<Fault> {
    tensors.sort_by(|a, b| a.key.cmp(&b.key));
    let repeated = tensors.windows(2).filter(|w| w[0].key == w[1].key);
    repeated
        .map(|w| Fault::Twice {
            key: w[0].key.clone(),
        })
        .collect()
}

/// The header's object with its repeated keys. A map would drop them without an error.
struct Entries(Vec<(String, serde_json::Value)>);

impl<'de> Deserialize<'de> for Entries {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct Each;
        impl<'de> Visitor<'de> for Each {
            type Value = Entries;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Entries, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    entries.push(entry);
                }
                Ok(Entries(entries))
            }
        }
        d.deserialize_map(Each)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn file(header: &str, data: usize) -> Vec<u8> {
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header.as_bytes());
        bytes.resize(bytes.len() + data, 7);
        bytes
    }

    #[test]
    fn a_sound_file_gives_its_tensors_by_name() {
        let f = file(
            concat!(
                r#"{"__metadata__":{"format":"pt"},"#,
                r#""b":{"dtype":"BF16","shape":[2,1],"data_offsets":[4,8]},"#,
                r#""a":{"dtype":"F32","shape":[],"data_offsets":[0,4]}}"#
            ),
            8,
        );
        let got = read(&f).unwrap();
        let facts: Vec<_> = got
            .iter()
            .map(|t| {
                (
                    t.key.as_str(),
                    t.dtype,
                    t.shape.clone(),
                    f.len() - t.start,
                    t.len,
                )
            })
            .collect();
        assert_eq!(
            facts,
            [
                ("a", StoredDType::F32, vec![], 8, 4),
                ("b", StoredDType::BF16, vec![2, 1], 4, 4)
            ]
        );
    }

    #[test]
    fn each_fault_is_named() {
        let one = |dtype: &str, shape: &str, b: i64, e: i64| {
            format!(r#"{{"w":{{"dtype":"{dtype}","shape":{shape},"data_offsets":[{b},{e}]}}}}"#)
        };
        let two = |b: usize, e: usize| {
            format!(
                concat!(
                    r#"{{"v":{{"dtype":"F32","shape":[2],"data_offsets":[0,8]}},"#,
                    r#""w":{{"dtype":"U8","shape":[{}],"data_offsets":[{},{}]}}}}"#
                ),
                e - b,
                b,
                e
            )
        };
        let cases = [
            (
                vec![1, 2, 3],
                "3 bytes long, wanted at least 8 for the header length",
            ),
            (
                file("{}", 0)[..9].to_vec(),
                "header length 2 reaches beyond the file, which has 1 bytes left",
            ),
            (
                u64::MAX.to_le_bytes().to_vec(),
                "header length 18446744073709551615 reaches beyond the file, \
                 which has 0 bytes left",
            ),
            (
                file("[1]", 0),
                "header is not a JSON object of tensors: \
                 invalid type: sequence, expected an object at line 1 column 0",
            ),
            (
                file(&one("F32", "[2]", 0, 8), 7),
                "tensor w ends at byte 8, the file holds 7 bytes of data",
            ),
            (
                file(&one("F99", "[2]", 0, 8), 8),
                "tensor w: unknown dtype F99",
            ),
            (
                file(&one("F32", "[2]", 0, 4), 4),
                "tensor w: F32 [2] is 8 bytes, offsets 0..4 give 4",
            ),
            (
                file(&one("F32", "[2]", 8, 0), 8),
                "tensor w: F32 [2] is 8 bytes, offsets 8..0 give -8",
            ),
            (
                file(&one("F32", "[4294967296,4294967296]", 0, 8), 8),
                "tensor w: F32 [4294967296, 4294967296] is larger than any memory",
            ),
            (
                file(&one("F32", "[2]", 2, 10), 10),
                "tensor w starts at byte 2, not a multiple of 4",
            ),
            (
                file(&one("F32", "[2]", 0, 8), 9),
                "bytes 8..9 belong to no tensor",
            ),
            (file(&two(6, 10), 10), "tensors v and w overlap at byte 6"),
            (file(&two(9, 10), 10), "bytes 8..9 belong to no tensor"),
            (
                file(
                    concat!(
                        r#"{"w":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"#,
                        r#""w":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}}"#
                    ),
                    2,
                ),
                "tensor w is listed twice",
            ),
            (
                file(
                    r#"{"w":{"dtype":"U8","shape":[-1],"data_offsets":[0,1]}}"#,
                    1,
                ),
                "tensor w: invalid value: integer `-1`, expected usize",
            ),
        ];
        for (bytes, want) in cases {
            let faults = read(&bytes).unwrap_err();
            assert_eq!(
                faults.iter().map(ToString::to_string).collect::<Vec<_>>(),
                [want]
            );
        }
    }

    #[test]
    fn all_faults_are_reported_at_once() {
        let f = file(
            concat!(
                r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4]},"#,
                r#""b":{"dtype":"X","shape":[],"data_offsets":[4,8]}}"#
            ),
            8,
        );
        assert_eq!(read(&f).unwrap_err().len(), 2);
    }

    #[test]
    fn the_crate_agrees_on_a_file_of_its_own() {
        let data: Vec<u8> = (0..24).collect();
        let views = [
            ("x", ::safetensors::Dtype::F32, vec![2, 2], 0..16),
            ("y", ::safetensors::Dtype::BF16, vec![4], 16..24),
        ];
        let views = views.map(|(n, d, s, r)| {
            (
                n,
                ::safetensors::tensor::TensorView::new(d, s, &data[r]).unwrap(),
            )
        });
        let bytes = ::safetensors::serialize(views, None).unwrap();
        let theirs = ::safetensors::SafeTensors::deserialize(&bytes).unwrap();
        for t in read(&bytes).unwrap() {
            assert_eq!(
                theirs.tensor(&t.key).unwrap().data(),
                &bytes[t.start..t.start + t.len]
            );
        }
    }

    fn sound() -> Vec<u8> {
        file(
            concat!(
                r#"{"a":{"dtype":"F32","shape":[3],"data_offsets":[0,12]},"#,
                r#""b":{"dtype":"BF16","shape":[2],"data_offsets":[12,16]}}"#
            ),
            16,
        )
    }

    fn inside(bytes: &[u8]) -> bool {
        read(bytes).is_ok_and(|ts| {
            ts.iter().all(|t| {
                t.dtype.bytes_of(&t.shape) == Some(t.len) && t.start + t.len <= bytes.len()
            })
        })
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(
            bytes in proptest::collection::vec(any::<u8>(), 0..200),
            len in 0u64..220,
        ) {
            let _ = read(&bytes);
            let mut framed = len.to_le_bytes().to_vec();
            framed.extend(bytes);
            let _ = read(&framed);
        }

        #[test]
        fn a_mutated_file_fails_or_stays_inside_its_bytes(
            at in 0usize..140,
            to in any::<u8>(),
            cut in 0usize..140,
        ) {
            let mut bytes = sound();
            let i = at % bytes.len();
            bytes[i] = to;
            prop_assert!(read(&bytes).is_err() || inside(&bytes));
            bytes.truncate(bytes.len() - cut.min(bytes.len()));
            prop_assert!(read(&bytes).is_err() || inside(&bytes));
        }

        #[test]
        fn a_shortened_file_always_fails(cut in 1usize..100) {
            let bytes = sound();
            prop_assert!(read(&bytes[..bytes.len() - cut]).is_err());
        }
    }
}
