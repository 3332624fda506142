//! Several people in one picture: who speaks which recording, and which tokens each of them fills.
//!
//! The sound of a person is heard in every token but those of the other people. Source: the branch
//! for `+` of `WanS2V.generate`, `liveavatar/models/wan/causal_s2v_pipeline_tpp.py`, and
//! `process_masks_to_routing_logits`, `liveavatar/utils/router/utils.py` @ 9c2c38d. There a
//! segmentation model makes the masks, and here the user gives them. Two things differ. The
//! reference stretches a mask over the video and forgets the crop of the picture; here a token
//! looks where the picture shows it. And a person whom no token shows is refused.

use std::path::{Path, PathBuf};
use std::str::FromStr;

use engines::error_kind::ErrorKind;
use engines::tensor::Tensor;

use crate::inputs::framing::Framing;
use crate::media::picture::{Background, Icc, Picture, PictureError, Reading, Shown};
use crate::numbers::geometry::Geometry;
use crate::numbers::size::Size;

/// Part of a person's larger side by which their place grows: 0.1.
const GROWTH: f64 = 0.1;
/// Added to the growth before it is cut to whole tokens, as the reference does.
const ROUNDING: f64 = 0.9999;
/// Level from which a pixel of a mask belongs to the person.
const PERSON: u8 = 128;

/// A reason why the people of a picture cannot be told apart.
#[derive(Debug, thiserror::Error)]
pub enum ActorsError {
    /// There are more or fewer places than people.
    #[error(
        "{recordings} recordings want --masks with {recordings} places, got {places}; a place is a \
         picture that is white where the person is, or a box x,y,w,h in the picture's pixels, and \
         `+` stands between two; this program has no model that finds people"
    )]
    Count {
        /// Recordings that were given.
        recordings: usize,
        /// Places that were given.
        places: usize,
    },
    /// One person needs no mask.
    #[error(
        "--masks wants two recordings or more (--audio a.wav+b.wav): one person is heard in the \
         whole picture"
    )]
    Alone,
    /// A place is neither a box nor a file.
    #[error("masks wants a file, or a box x,y,w,h of at least one pixel, got `{got}`")]
    Place {
        /// What was given.
        got: String,
    },
    /// A box leaves the picture.
    #[error("mask {number}: box {place} wants to lie inside the picture of {picture}")]
    Outside {
        /// Number of the person, from 1.
        number: usize,
        /// The box.
        place: Place,
        /// Size of the picture.
        picture: Size,
    },
    /// A mask has another size than the picture.
    #[error("{path}: mask {number} wants the size of the picture, {picture}, got {got}")]
    Size {
        /// Path of the mask.
        path: PathBuf,
        /// Number of the person, from 1.
        number: usize,
        /// Size of the picture.
        picture: Size,
        /// Size of the mask.
        got: Size,
    },
    /// A mask cannot be read.
    #[error(transparent)]
    Picture(#[from] PictureError),
    /// No token shows the person.
    #[error(
        "mask {number} ({place}) covers no token of 16 x 16 pixels of the video: it is too small, \
         cut off with the edge of the picture, or under a later mask"
    )]
    Unseen {
        /// Number of the person, from 1.
        number: usize,
        /// Their place.
        place: Place,
    },
}

impl ActorsError {
    /// Returns `Usage` for flags that contradict each other, and `Input` for what the picture or a
    /// mask does not have.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Count { .. } | Self::Alone | Self::Place { .. } => ErrorKind::Usage,
            Self::Outside { .. } | Self::Size { .. } | Self::Unseen { .. } => ErrorKind::Input,
            Self::Picture(error) => error.kind(),
        }
    }
}

/// The people besides the first one, and the places of all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cast {
    /// Recordings of the others, in the order of their places.
    pub others: Vec<PathBuf>,
    /// Where each person is, the first one too. One person has none.
    pub places: Vec<Place>,
}

impl Cast {
    /// Counts the people.
    pub fn count(&self) -> usize {
        1 + self.others.len()
    }

    /// Refuses a cast whose places do not suit its recordings.
    ///
    /// # Errors
    /// [`ActorsError::Count`], [`ActorsError::Alone`].
    pub fn check(&self) -> Result<(), ActorsError> {
        let (recordings, places) = (self.count(), self.places.len());
        match (recordings, places) {
            (1, 0) => Ok(()),
            (1, _) => Err(ActorsError::Alone),
            _ if recordings == places => Ok(()),
            _ => Err(ActorsError::Count { recordings, places }),
        }
    }

    /// Returns the weight of each person's sound for each token, `[1, A, F, h*w]`.
    ///
    /// # Errors
    /// A place cannot be used with the picture, or no token shows it.
    pub(crate) fn mask(
        &self,
        framing: &Framing,
        geometry: &Geometry,
    ) -> Result<Tensor, ActorsError> {
        let (h, w) = geometry.tokens;
        let shape = [1, self.count(), geometry.block_frames, h * w];
        if self.places.is_empty() {
            return Ok(Tensor::from_slice(
                &shape,
                &vec![1f32; shape.iter().product()],
            ));
        }
        let mut found = Vec::new();
        for (at, place) in self.places.iter().enumerate() {
            let mask = place.mask(at + 1, framing.picture)?;
            found.push(tokens(&mask, framing.shown, (h, w)));
        }
        let owners = owners(&found);
        for (at, place) in self.places.iter().enumerate() {
            if !owners.contains(&Some(at)) {
                return Err(ActorsError::Unseen {
                    number: at + 1,
                    place: place.clone(),
                });
            }
        }
        let weights = weights(&owners, self.count(), w);
        let frames = |actor: &Vec<f32>| actor.repeat(geometry.block_frames);
        let values: Vec<f32> = weights.iter().flat_map(frames).collect();
        Ok(Tensor::from_slice(&shape, &values))
    }
}

/// Where a person is, in the pixels of the picture.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// A picture of the same size that is white where the person is.
    Picture(PathBuf),
    /// A box.
    Box {
        /// Columns left of it.
        x: usize,
        /// Rows above it.
        y: usize,
        /// Its columns.
        width: usize,
        /// Its rows.
        height: usize,
    },
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Picture(path) => path.display().fmt(f),
            Self::Box {
                x,
                y,
                width,
                height,
            } => write!(f, "{x},{y},{width},{height}"),
        }
    }
}

impl FromStr for Place {
    type Err = ActorsError;

    fn from_str(text: &str) -> Result<Self, ActorsError> {
        let wrong = || ActorsError::Place {
            got: text.to_owned(),
        };
        let numbers: Option<Vec<usize>> = text.split(',').map(|n| n.trim().parse().ok()).collect();
        match numbers.as_deref() {
            Some(&[x, y, width, height]) if width > 0 && height > 0 => Ok(Self::Box {
                x,
                y,
                width,
                height,
            }),
            Some(_) => Err(wrong()),
            None if text.is_empty() => Err(wrong()),
            None => Ok(Self::Picture(text.into())),
        }
    }
}

/// The pixels of one person, `[H, W]` row by row.
struct Mask {
    size: Size,
    person: Vec<bool>,
}

impl Place {
    /// Returns the path of a mask, where the place is one.
    pub(crate) fn path(&self) -> Option<&Path> {
        match self {
            Self::Picture(path) => Some(path),
            Self::Box { .. } => None,
        }
    }

    /// Reads the pixels of the person with this number, for a picture of this size.
    fn mask(&self, number: usize, picture: Size) -> Result<Mask, ActorsError> {
        let path = match *self {
            Self::Picture(ref path) => path,
            Self::Box {
                x,
                y,
                width,
                height,
            } => {
                let ends = (x.checked_add(width), y.checked_add(height));
                let inside = |end: Option<usize>, side| end.is_some_and(|end| end <= side);
                if !inside(ends.0, picture.width) || !inside(ends.1, picture.height) {
                    return Err(ActorsError::Outside {
                        number,
                        place: self.clone(),
                        picture,
                    });
                }
                let rows = 0..picture.height;
                let person = rows.flat_map(|row| {
                    let row = row.wrapping_sub(y) < height;
                    (0..picture.width).map(move |at| row && at.wrapping_sub(x) < width)
                });
                return Ok(Mask {
                    size: picture,
                    person: person.collect(),
                });
            }
        };
        // Levels are no colours here, and what is transparent belongs to nobody.
        let reading = Reading {
            icc: Icc::Ignore,
            background: Background::Colour([0; 3]),
        };
        let (mask, _) = Picture::open(path, reading)?;
        if mask.size() != picture {
            return Err(ActorsError::Size {
                path: path.clone(),
                number,
                picture,
                got: mask.size(),
            });
        }
        let bright = |pixel: &[u8]| pixel.iter().any(|&v| v >= PERSON);
        Ok(Mask {
            size: picture,
            person: mask.rgb.chunks_exact(3).map(bright).collect(),
        })
    }
}

/// Returns the tokens whose middle shows the person: bilinear between four pixels, above a half.
///
/// Where nothing is cut off, this is torch's `interpolate(mode="trilinear")` of a still mask.
fn tokens(mask: &Mask, shown: Shown, (h, w): (usize, usize)) -> Vec<bool> {
    let columns: Vec<_> = (0..w)
        .map(|at| taps(at, w, shown.left, shown.width, mask.size.width))
        .collect();
    let row = |at: usize| {
        let rows = taps(at, h, shown.top, shown.height, mask.size.height);
        columns.iter().map(move |&columns| {
            let (Some(rows), Some(columns)) = (rows, columns) else {
                return false;
            };
            let mut value = 0.0;
            for (y, by) in rows {
                for (x, bx) in columns {
                    value += f32::from(mask.person[y * mask.size.width + x]) * by * bx;
                }
            }
            value > 0.5
        })
    };
    (0..h).flat_map(row).collect()
}

/// Returns the two pixels around the middle of a token, with their weights, or `None` where the
/// picture does not reach it. `first` and `length` say which part of the side the video shows.
fn taps(
    token: usize,
    tokens: usize,
    first: f32,
    length: f32,
    side: usize,
) -> Option<[(usize, f32); 2]> {
    let middle = first + (token as f32 + 0.5) * (length / tokens as f32);
    if middle < 0.0 || middle >= side as f32 {
        return None;
    }
    let at = (middle - 0.5).max(0.0);
    let low = (at as usize).min(side - 1);
    let part = at - low as f32;
    Some([(low, 1.0 - part), ((low + 1).min(side - 1), part)])
}

/// Returns the person of each token. A later person covers an earlier one.
fn owners(found: &[Vec<bool>]) -> Vec<Option<usize>> {
    let tokens = found.first().map_or(0, Vec::len);
    let owner = |token: usize| (0..found.len()).rev().find(|&actor| found[actor][token]);
    (0..tokens).map(owner).collect()
}

/// Returns each person's weights: 1 but where another person is, whose place has grown.
fn weights(owners: &[Option<usize>], actors: usize, w: usize) -> Vec<Vec<f32>> {
    let own = |actor| owners.iter().map(|&o| o == Some(actor)).collect::<Vec<_>>();
    let grown: Vec<Vec<bool>> = (0..actors).map(|actor| grown(&own(actor), w)).collect();
    let weight = |actor: usize, token: usize| {
        let mut others = grown.iter().enumerate().filter(|(at, _)| *at != actor);
        f32::from(!others.any(|(_, other)| other[token]))
    };
    (0..actors)
        .map(|actor| (0..owners.len()).map(|t| weight(actor, t)).collect())
        .collect()
}

/// Grows a place by a part of its larger side, at least by one token, to all sides.
fn grown(place: &[bool], w: usize) -> Vec<bool> {
    let at = || (0..place.len()).filter(|&t| place[t]);
    let span = |of: fn(usize, usize) -> usize| {
        let least = at().map(|t| of(t, w)).min()?;
        Some(at().map(|t| of(t, w)).max()? - least + 1)
    };
    let (Some(rows), Some(columns)) = (span(|t, w| t / w), span(|t, w| t % w)) else {
        return place.to_vec();
    };
    let radius = ((GROWTH * rows.max(columns) as f64 + ROUNDING) as usize).max(1);
    let near = |token: usize| {
        let close = |t: usize| {
            (t / w).abs_diff(token / w) <= radius && (t % w).abs_diff(token % w) <= radius
        };
        at().any(close)
    };
    (0..place.len()).map(near).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::sizes::config;
    use crate::media::picture::Fit;
    use crate::numbers::size::SizeMode;

    fn size(width: usize, height: usize) -> Size {
        Size { width, height }
    }

    fn shown(picture: Size, video: Size, fit: Fit) -> Shown {
        Shown::new(picture, video, SizeMode::Exact, fit)
    }

    fn places(text: &[&str]) -> Cast {
        Cast {
            others: vec![PathBuf::from("b.wav"); text.len() - 1],
            places: text.iter().map(|t| t.parse().unwrap()).collect(),
        }
    }

    /// Draws a mask as the user gives it: rows of `#` and `.`.
    fn drawn(rows: &[&str]) -> Vec<bool> {
        rows.iter()
            .flat_map(|r| r.chars().map(|c| c == '#'))
            .collect()
    }

    #[test]
    fn masks_are_those_of_torch() {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/actors.json");
        let text = std::fs::read_to_string(file).unwrap();
        let cases: serde_json::Value = serde_json::from_str(&text).unwrap();
        let cases = cases.as_array().unwrap();
        assert!(cases.len() >= 20);
        for (index, case) in cases.iter().enumerate() {
            let sides = |key: &str| {
                let side = |at: usize| case[key][at].as_u64().unwrap() as usize;
                (side(0), side(1))
            };
            let ((height, width), grid) = (sides("picture"), sides("grid"));
            let picture = size(width, height);
            let video = size(16 * grid.1, 16 * grid.0);
            let places = case["boxes"].as_array().unwrap().iter();
            let found: Vec<Vec<bool>> = places
                .map(|boxes| {
                    let mut person = vec![false; width * height];
                    for one in boxes.as_array().unwrap() {
                        let text: Vec<String> = one
                            .as_array()
                            .unwrap()
                            .iter()
                            .map(ToString::to_string)
                            .collect();
                        let place: Place = text.join(",").parse().unwrap();
                        let mask = place.mask(1, picture).unwrap();
                        person
                            .iter_mut()
                            .zip(mask.person)
                            .for_each(|(a, b)| *a |= b);
                    }
                    let mask = Mask {
                        size: picture,
                        person,
                    };
                    let whole = Shown {
                        left: 0.0,
                        top: 0.0,
                        width: width as f32,
                        height: height as f32,
                    };
                    tokens(&mask, whole, grid)
                })
                .collect();
            assert_eq!(video.tokens(), grid);
            let got = weights(&owners(&found), found.len(), grid.1);
            for (actor, got) in got.iter().enumerate() {
                let want = case["weights"][actor].as_str().unwrap();
                let got: String = got
                    .iter()
                    .map(|&v| if v > 0.5 { '1' } else { '0' })
                    .collect();
                assert_eq!(got, want, "case {index}, actor {actor}");
            }
        }
    }

    #[test]
    fn a_later_person_covers_an_earlier_one_and_grows_by_a_token() {
        let left = drawn(&["###......", "###......"]);
        let right = drawn(&["......###", "......###"]);
        let got = weights(&owners(&[left.clone(), right.clone()]), 2, 9);
        let row = |at: usize| -> String {
            got[at][..9]
                .iter()
                .map(|&v| if v > 0.5 { '1' } else { '.' })
                .collect()
        };
        // The first person is not heard in the second one and a token around them.
        assert_eq!((row(0), row(1)), ("11111....".into(), "....11111".into()));
        let covered = owners(&[vec![true; 18], right]);
        assert_eq!(covered.iter().filter(|o| **o == Some(1)).count(), 6);
    }

    #[test]
    fn a_token_looks_where_the_picture_shows_it() {
        // A square picture in a wide video: crop shows its middle half, pad all of it.
        let picture = size(64, 64);
        let place: Place = "0,0,64,32".parse().unwrap();
        let mask = place.mask(1, picture).unwrap();
        let count = |fit| {
            let found = tokens(&mask, shown(picture, size(128, 64), fit), (4, 8));
            (0..4)
                .map(|r| found[8 * r..8 * r + 8].iter().filter(|&&v| v).count())
                .collect::<Vec<_>>()
        };
        assert_eq!(count(Fit::Crop), [8, 8, 0, 0]);
        assert_eq!(count(Fit::Pad), [4, 4, 0, 0]);
    }

    #[test]
    fn a_place_is_a_box_or_a_file() {
        let place: Place = "1, 2,3,4".parse().unwrap();
        assert_eq!(place.to_string(), "1,2,3,4");
        assert_eq!(
            "a,b.png".parse::<Place>().unwrap(),
            Place::Picture("a,b.png".into())
        );
        for wrong in ["1,2,3", "1,2,0,4", "", "1,2,3,4,5"] {
            let error = wrong.parse::<Place>().unwrap_err().to_string();
            assert!(error.contains(&format!("got `{wrong}`")), "{error}");
        }
    }

    #[test]
    fn what_cannot_be_told_apart_is_refused_with_the_numbers() {
        let framing = Framing {
            requested: size(64, 64),
            mode: SizeMode::Exact,
            picture: size(64, 64),
            shown: shown(size(64, 64), size(64, 64), Fit::Crop),
            size: size(64, 64),
            pixels: Tensor::from_slice(&[3, 1, 1], &[0f32; 3]),
        };
        let geometry = Geometry::new(&config(1), size(64, 64), 12).unwrap();
        let error = |cast: &Cast| cast.mask(&framing, &geometry).unwrap_err();
        let outside = error(&places(&["0,0,32,64", "40,0,25,64"]));
        assert_eq!(
            outside.to_string(),
            "mask 2: box 40,0,25,64 wants to lie inside the picture of 64*64"
        );
        let unseen = error(&places(&["0,0,32,64", "0,0,64,64"]));
        assert!(
            unseen
                .to_string()
                .starts_with("mask 1 (0,0,32,64) covers no token")
        );
        let huge = error(&places(&["0,0,32,64", &format!("1,0,{},64", usize::MAX)]));
        assert!(matches!(huge, ActorsError::Outside { .. }));
        let mut cast = places(&["0,0,32,64", "32,0,32,64"]);
        let mask = cast.mask(&framing, &geometry).unwrap();
        assert_eq!(mask.shape(), [1, 2, 3, 16]);
        assert!(cast.check().is_ok());
        cast.places.pop();
        let count = cast.check().unwrap_err();
        assert!(
            count
                .to_string()
                .contains("2 recordings want --masks with 2 places, got 1")
        );
        cast.others.pop();
        assert!(matches!(cast.check(), Err(ActorsError::Alone)));
    }
}
