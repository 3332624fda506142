//! Converts colours from the ICC profile of a picture to sRGB, which the model was trained on.

use moxcms::{ColorProfile, DataColorSpace, Layout, ProfileText, TransformOptions};

/// Largest difference, in levels, that counts as sRGB. Writers of sRGB profiles round their curves
/// in different ways.
const SAME: u8 = 1;

/// Colours of pixels, as a file has them.
pub(super) enum Colours {
    /// One level for each pixel.
    Grey(Vec<u8>),
    /// Three levels for each pixel.
    Rgb(Vec<u8>),
    /// Four amounts of ink for each pixel, 0 none and 255 full.
    Inks(Vec<u8>),
}

/// The result of a profile.
pub(super) enum Converted {
    /// The profile is sRGB. The colours are unchanged.
    Same(Vec<u8>),
    /// The colours are sRGB now. The profile had this name.
    From(String, Vec<u8>),
    /// The profile cannot be used, for this reason. The colours are unchanged.
    Unusable(String, Vec<u8>),
}

/// Returns whether a profile describes inks.
pub(super) fn is_of_inks(profile: &[u8]) -> bool {
    ColorProfile::new_from_slice(profile).is_ok_and(|p| p.color_space == DataColorSpace::Cmyk)
}

impl Colours {
    /// Returns RGB levels without a profile. Inks multiply, as in the `image` crate.
    pub(super) fn plain(self) -> Vec<u8> {
        match self {
            Self::Rgb(rgb) => rgb,
            Self::Grey(grey) => grey.into_iter().flat_map(|l| [l; 3]).collect(),
            Self::Inks(inks) => {
                let light = |ink: u8, key: u8| {
                    let product = u16::from(255 - ink) * u16::from(255 - key);
                    ((product + 127) / 255) as u8
                };
                let pixels = inks.as_chunks::<4>().0.iter();
                pixels
                    .flat_map(|&[c, m, y, k]| [light(c, k), light(m, k), light(y, k)])
                    .collect()
            }
        }
    }

    /// Converts the colours from `profile` to sRGB.
    pub(super) fn converted(self, profile: &[u8]) -> Converted {
        let from = match ColorProfile::new_from_slice(profile) {
            Ok(from) => from,
            Err(error) => return Converted::Unusable(error.to_string(), self.plain()),
        };
        let (layout, colours) = match (from.color_space, self) {
            (DataColorSpace::Gray, Self::Grey(grey)) => (Layout::Gray, grey),
            (DataColorSpace::Cmyk, Self::Inks(inks)) => (Layout::Rgba, inks),
            // Pillow makes RGB of grey before a profile; an RGB profile keeps grey nearly grey.
            (DataColorSpace::Rgb, other @ (Self::Grey(_) | Self::Rgb(_))) => {
                (Layout::Rgb, other.plain())
            }
            (space, other) => {
                let pixels = match other {
                    Self::Grey(_) => "grey",
                    Self::Rgb(_) => "RGB",
                    Self::Inks(_) => "CMYK",
                };
                let reason = format!("it describes {space:?} colours, the pixels are {pixels}");
                return Converted::Unusable(reason, other.plain());
            }
        };
        match to_srgb(&from, layout, &colours) {
            Ok(None) => Converted::Same(unchanged(layout, colours)),
            Ok(Some(rgb)) => Converted::From(name(&from), rgb),
            Err(error) => Converted::Unusable(error.to_string(), unchanged(layout, colours)),
        }
    }
}

/// Returns the colours as RGB without a profile.
fn unchanged(layout: Layout, colours: Vec<u8>) -> Vec<u8> {
    match layout {
        Layout::Gray => Colours::Grey(colours).plain(),
        Layout::Rgba => Colours::Inks(colours).plain(),
        _ => colours,
    }
}

/// Converts levels of `layout` to sRGB, or returns `None` if the profile is sRGB.
fn to_srgb(
    from: &ColorProfile,
    layout: Layout,
    colours: &[u8],
) -> Result<Option<Vec<u8>>, moxcms::CmsError> {
    let options = TransformOptions {
        // Time does not matter: one picture a video.
        prefer_fixed_point: false,
        ..TransformOptions::default()
    };
    let srgb = ColorProfile::new_srgb();
    let transform = from.create_transform_8bit(layout, &srgb, Layout::Rgb, options)?;
    let run = |levels: &[u8]| {
        let mut rgb = vec![0; levels.len() / layout.channels() * 3];
        transform.transform(levels, &mut rgb).map(|()| rgb)
    };
    if layout != Layout::Rgba {
        let probes = probes(layout);
        let plain = unchanged(layout, probes.clone());
        let moved = run(&probes)?;
        let near = |(a, b): (&u8, &u8)| a.abs_diff(*b) <= SAME;
        if plain.iter().zip(&moved).all(near) {
            return Ok(None);
        }
    }
    run(colours).map(Some)
}

/// Returns colours that show whether a profile is sRGB: all greys, and a lattice of RGB.
fn probes(layout: Layout) -> Vec<u8> {
    /// Distance of two neighbours in the lattice, a divisor of 255.
    const STEP: usize = 15;
    if layout == Layout::Gray {
        return (0..=255).collect();
    }
    let lattice = || (0..=255u8).step_by(STEP);
    let cube = lattice()
        .flat_map(move |r| lattice().flat_map(move |g| lattice().flat_map(move |b| [r, g, b])));
    cube.chain((0..=255).flat_map(|l| [l; 3])).collect()
}

/// Returns the name of a profile, in printable characters.
fn name(profile: &ColorProfile) -> String {
    let text = match &profile.description {
        Some(ProfileText::PlainString(text)) => text.as_str(),
        Some(ProfileText::Localizable(texts)) => texts.first().map_or("", |t| t.value.as_str()),
        Some(ProfileText::Description(text)) => text.ascii_string.as_str(),
        None => "",
    };
    let printable: String = text.chars().filter(|c| !c.is_control()).take(60).collect();
    match printable.trim() {
        "" => "without a name".to_owned(),
        name => format!("\"{name}\""),
    }
}
