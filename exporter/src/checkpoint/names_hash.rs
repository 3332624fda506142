//! A hash of the names and shapes of a file's tensors, by which published files are recognised.
//!
//! DiffSynth-Studio (`hash_model_file`, diffsynth/core/loader/file.py) recognises model files by
//! the same hash, and lists the hashes of the published files in
//! diffsynth/configs/model_configs.py. The hash does not cover the values of the tensors.

use md5::{Digest, Md5};

/// Returns the hash of names with their shapes, as 32 hexadecimal digits.
///
/// The hashed text lists each tensor twice, as `NAME` and as `NAME:SIZE_SIZE`, sorted, with commas
/// between.
pub(crate) fn names_hash<'a>(tensors: impl IntoIterator<Item = (&'a str, &'a [usize])>) -> String {
    let mut entries = Vec::new();
    for (name, shape) in tensors {
        let sizes: Vec<String> = shape.iter().map(usize::to_string).collect();
        entries.push(format!("{name}:{}", sizes.join("_")));
        entries.push(name.to_owned());
    }
    // Python sorts by code points. UTF-8 bytes have the same order.
    entries.sort_unstable();
    let digest = Md5::digest(entries.join(","));
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_of_the_hash_is_sorted_and_has_each_name_twice() {
        // The MD5 of `a,a:,b.weight,b.weight:2_3`.
        let got = names_hash([("b.weight", &[2, 3][..]), ("a", &[])]);
        assert_eq!(got, "615f158bcce31a546053e5575d95674e");
    }
}
