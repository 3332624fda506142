//! Reads one `torch.save` archive (`.pth`, `.bin`): a pickled dictionary whose tensors lie in
//! records of a zip. The module reads no tensor data.

use std::ops::Range;

use super::error::TorchFault as Fault;
use super::pickle::{self, Tensor};
use super::safetensors::Located;
use super::zip::Directory;

/// First bytes of a zip archive.
pub(super) const ZIP_MAGIC: &[u8] = b"PK\x03\x04";

/// Returns whether `bytes` begin like a file that torch wrote before 1.6: a bare pickle, or a tar
/// before 0.1.10.
pub(super) fn is_legacy(bytes: &[u8]) -> bool {
    let bare_pickle = matches!(bytes, [0x80, 2..=5, ..]);
    bare_pickle || bytes.get(257..262) == Some(b"ustar")
}

/// Returns the tensors of a whole archive, given as `bytes`.
pub(super) fn read(bytes: &[u8]) -> Result<Vec<Located>, Vec<Fault>> {
    if is_legacy(bytes) {
        return Err(vec![Fault::Legacy]);
    }
    let zip = Directory::read(bytes).map_err(|f| vec![f])?;
    let prefix = prefix(&zip).map_err(|f| vec![f])?;
    let record = |name: &str| zip.get(&format!("{prefix}{name}"));
    if let Some(order) = record("byteorder")
        .map(|r| &bytes[r])
        .filter(|&o| o != b"little")
    {
        return Err(vec![Fault::ByteOrder {
            got: String::from_utf8_lossy(&order[..order.len().min(20)]).into_owned(),
        }]);
    }
    let pickle = record("data.pkl").map(|r| &bytes[r]).unwrap_or_default();
    let (mut found, mut faults) = (Vec::new(), Vec::new());
    for (key, tensor) in pickle::tensors(pickle)? {
        let name = format!("data/{}", tensor.storage.record);
        match place(key, tensor, record(&name), name) {
            Ok(t) => found.push(t),
            Err(f) => faults.push(f),
        }
    }
    if faults.is_empty() {
        Ok(found)
    } else {
        Err(faults)
    }
}

/// Returns the folder inside the archive, with its slash. torch names the folder after the file,
/// and every name is accepted.
fn prefix<'a>(zip: &Directory<'a>) -> Result<&'a str, Fault> {
    let mut found = zip
        .names()
        .filter_map(|n| n.strip_suffix("data.pkl"))
        .filter(|p| p.is_empty() || p.ends_with('/'));
    match (found.next(), found.next()) {
        (Some(prefix), None) => Ok(prefix),
        (None, _) => Err(Fault::Zip {
            reason: "no data.pkl; not saved by torch",
        }),
        (Some(_), Some(_)) => Err(Fault::Zip {
            reason: "two data.pkl",
        }),
    }
}

fn place(
    key: &str,
    t: Tensor<'_>,
    record: Option<Range<usize>>,
    name: String,
) -> Result<Located, Fault> {
    let key = key.to_owned();
    let Some(range) = record else {
        return Err(Fault::NoStorage { key, record: name });
    };
    let want = t.storage.bytes().unwrap_or(usize::MAX);
    if want != range.len() {
        return Err(Fault::StorageSize {
            key,
            record: name,
            want,
            got: range.len(),
        });
    }
    let strides = (!contiguous(&t.shape, &t.strides)).then(|| t.strides.clone());
    let window = window(&t, strides.is_some()).filter(|w| w.end <= range.len());
    match window {
        Some(window) => Ok(Located {
            key,
            dtype: t.dtype,
            shape: t.shape,
            start: range.start + window.start,
            len: window.len(),
            strides,
        }),
        None => Err(Fault::OutOfStorage {
            key,
            dtype: t.dtype,
            shape: t.shape,
            strides: t.strides,
            offset: t.offset,
            storage: range.len(),
        }),
    }
}

/// Returns the bytes of the storage from a tensor's first element to its last, or `None` where they
/// do not fit a `usize`.
///
/// A strided tensor must not have more elements than its window. Otherwise a small file could
/// claim any amount of memory, for example with a stride of 0.
fn window(t: &Tensor<'_>, strided: bool) -> Option<Range<usize>> {
    let size = t.dtype.size();
    let len = t.dtype.bytes_of(&t.shape)?;
    let start = t.offset.checked_mul(size)?;
    if !strided {
        return Some(start..start.checked_add(len)?);
    }
    let steps = t.shape.iter().zip(&t.strides);
    let last = steps.into_iter().try_fold(0usize, |at, (&n, &stride)| {
        at.checked_add((n - 1).checked_mul(stride)?)
    })?;
    let span = last.checked_add(1)?.checked_mul(size)?;
    (len <= span).then_some(start..start.checked_add(span)?)
}

/// Returns whether a tensor is row-major without gaps. The stride of a dimension of size 1 is never
/// used, and an empty tensor has no elements to place.
fn contiguous(shape: &[usize], strides: &[usize]) -> bool {
    let mut step = 1usize;
    shape.contains(&0)
        || shape.iter().zip(strides).rev().all(|(&n, &stride)| {
            let fits = n == 1 || stride == step;
            step = step.saturating_mul(n);
            fits
        })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::dtype::StoredDType;
    use super::*;
    use crate::synth::torch_file::{Archive, Record};

    /// `w` f32 [2, 3] and `b` bf16 [4], data bytes 0, 1, 2...
    fn sound() -> Vec<u8> {
        let records = [
            Record {
                key: "w".into(),
                dtype: StoredDType::F32,
                shape: vec![2, 3],
            },
            Record {
                key: "b".into(),
                dtype: StoredDType::BF16,
                shape: vec![4],
            },
        ];
        let mut out = std::io::Cursor::new(Vec::new());
        let mut archive = Archive::start(&mut out, "any name", &records).unwrap();
        for len in [24u8, 8] {
            archive
                .record(|w| w.write_all(&(0..len).collect::<Vec<_>>()))
                .unwrap();
        }
        archive.finish().unwrap();
        out.into_inner()
    }

    fn refusal(bytes: &[u8]) -> String {
        read(bytes).unwrap_err()[0].to_string()
    }

    /// The archive with the first `from` replaced by `to`, of the same length.
    fn patched(from: &[u8], to: &[u8]) -> Vec<u8> {
        let mut bytes = sound();
        let at = bytes.windows(from.len()).position(|w| w == from).unwrap();
        bytes[at..at + to.len()].copy_from_slice(to);
        bytes
    }

    #[test]
    fn tensors_are_windows_on_aligned_records() {
        let bytes = sound();
        let got = read(&bytes).unwrap();
        assert_eq!(
            got.iter().map(|t| t.key.as_str()).collect::<Vec<_>>(),
            ["w", "b"]
        );
        for t in got {
            assert_eq!(t.start % 64, 0);
            assert!(
                bytes[t.start..t.start + t.len]
                    .iter()
                    .enumerate()
                    .all(|(i, &b)| i == b as usize)
            );
        }
    }

    #[test]
    fn each_fault_is_named() {
        let bytes = sound();
        let cases = [
            (
                b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.".to_vec(),
                "saved by torch before 1.6",
            ),
            (bytes[..bytes.len() - 30].to_vec(), "no end record"),
            (b"PK\x03\x04".to_vec(), "no end record"),
            (
                patched(b"little", b"bigger"),
                "byteorder is \"bigger\", wanted \"little\"",
            ),
            (
                patched(b"FloatStorage", b"LoudyStorage"),
                "names torch.LoudyStorage, which is refused",
            ),
            (
                patched(
                    b"torch._utils\n_rebuild_tensor_v2",
                    b"torch._utils\n_rebuild_tensor_v9",
                ),
                "names torch._utils._rebuild_tensor_v9",
            ),
            (
                patched(b"K\x06tQ", b"K\x07tQ"),
                "tensor w: storage record data/0 holds 24 bytes, wanted 28",
            ),
            (
                patched(b"K\x00K\x02K\x03\x86", b"K\x01K\x02K\x03\x86"),
                "with strides [3, 1] at element 1 does not fit its storage of 24 bytes",
            ),
            (
                patched(b"K\x03K\x01\x86", b"K\x04K\x02\x86"),
                "tensor w: F32 [2, 3] with strides [4, 2] at element 0 \
                 does not fit its storage of 24 bytes",
            ),
            (
                patched(b"K\x03K\x01\x86", b"K\x00K\x00\x86"),
                "tensor w: F32 [2, 3] with strides [0, 0] at element 0 does not fit",
            ),
            (patched(b"cpuK\x06", b"gpuK\x06"), ""),
        ];
        for (bytes, want) in cases {
            if want.is_empty() {
                assert!(read(&bytes).is_ok());
            } else {
                assert!(
                    refusal(&bytes).contains(want),
                    "{} has no {want:?}",
                    refusal(&bytes)
                );
            }
        }
    }

    #[test]
    fn a_transposed_tensor_keeps_its_strides() {
        let bytes = patched(b"K\x03K\x01\x86", b"K\x01K\x02\x86");
        let w = &read(&bytes).unwrap()[0];
        assert_eq!(w.strides.as_deref(), Some(&[1, 2][..]));
        assert_eq!((w.shape.as_slice(), w.len), (&[2, 3][..], 24));
    }

    #[test]
    fn a_deflated_record_is_refused() {
        let mut bytes = sound();
        let central = bytes.windows(4).position(|w| w == b"PK\x01\x02").unwrap();
        bytes[central + 10] = 8;
        assert!(refusal(&bytes).contains("is compressed"));
    }

    #[test]
    fn contiguity_ignores_unused_strides() {
        let cases: [(&[usize], &[usize], bool); 6] = [
            (&[2, 3], &[3, 1], true),
            (&[2, 1, 3], &[3, 999, 1], true),
            (&[2, 3], &[1, 2], false),
            (&[4], &[0], false),
            (&[0, 5], &[7, 7], true),
            (&[], &[], true),
        ];
        for (shape, strides, want) in cases {
            assert_eq!(contiguous(shape, strides), want, "{shape:?} {strides:?}");
        }
    }

    fn inside(bytes: &[u8]) -> bool {
        read(bytes).is_ok_and(|ts| {
            ts.iter().all(|t| {
                let len = t.dtype.bytes_of(&t.shape);
                let whole = match t.strides {
                    None => len == Some(t.len),
                    Some(_) => len.is_some_and(|len| len <= t.len),
                };
                whole && t.start + t.len <= bytes.len()
            })
        })
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = read(&bytes);
        }

        #[test]
        fn a_mutated_archive_fails_or_stays_inside_its_bytes(
            at in 0usize..10_000,
            to in any::<u8>(),
            cut in 0usize..2000,
        ) {
            let mut bytes = sound();
            let i = at % bytes.len();
            bytes[i] = to;
            prop_assert!(read(&bytes).is_err() || inside(&bytes));
            bytes.truncate(bytes.len() - cut.min(bytes.len()));
            prop_assert!(read(&bytes).is_err() || inside(&bytes));
        }
    }
}
