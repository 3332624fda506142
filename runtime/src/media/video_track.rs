//! The encoder of the frames: which one, with which options, behind which filters.

use std::ffi::{CString, c_void};

use ffmpeg_next::codec;
use ffmpeg_next::format::Pixel;
use ffmpeg_next::format::context::Output;
use ffmpeg_next::util::color::{Primaries, Range, Space, TransferCharacteristic};
use ffmpeg_next::util::picture;
use ffmpeg_next::{Codec, Dictionary, Error, Packet, Rational, encoder, ffi, frame};

use crate::media::encoding::{Encoding, Rate};
use crate::media::ffmpeg_log::explained;
use crate::media::filters::{Filters, Leaving};
use crate::media::track::Track;
use crate::media::video_error::VideoError;
use crate::media::yuv::to_yuv;
use crate::numbers::size::Size;
use crate::numbers::timing::FPS;

/// The stream of pictures.
pub(super) struct VideoTrack {
    track: Track<encoder::video::Encoder>,
    filters: Option<Filters>,
    /// Size of the model's frames.
    size: Size,
    /// Frames of the model so far.
    sent: usize,
    /// The next frame begins a block.
    key: bool,
    maker: Maker,
}

impl VideoTrack {
    /// Opens filters and encoder, and adds the stream. `container` is FFmpeg's name of the muxer.
    ///
    /// # Errors
    /// FFmpeg lacks the encoder or cannot open it; the container cannot hold its codec; it has no
    /// way to keep the quality that is asked for; the filters cannot be read.
    pub(super) fn open(
        muxer: &mut Output,
        container: &'static str,
        size: Size,
        encoding: &Encoding,
    ) -> Result<Self, VideoError> {
        let codec = find(container, encoding)?;
        fits(muxer, container, &codec)?;
        let pixel = pixel(&codec)?;
        let filters = Filters::of(encoding, [Pixel::YUV420P, pixel], size);
        let filters = filters.map_err(|reason| VideoError::filters(encoding, reason))?;
        let leaving = filters
            .as_ref()
            .map_or_else(|| plain(size), Filters::leaving);
        if leaving.size.width % 2 + leaving.size.height % 2 > 0 {
            return Err(VideoError::OddSize { size: leaving.size });
        }
        let maker = Maker {
            codec,
            pixel,
            frames: leaving,
            has_filters: encoding.filters.is_some(),
            options: options(&codec, encoding)?
                .iter()
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .collect(),
        };
        let add = || maker.add_stream(muxer);
        let track = explained(add).map_err(|reason| VideoError::Encoder {
            name: codec.name().to_owned(),
            reason: reason.to_string(),
        })?;
        Ok(Self {
            track,
            filters,
            size,
            sent: 0,
            key: true,
            maker,
        })
    }

    /// Encodes the next frame with a new encoder of the same settings. What the encoder learnt from
    /// earlier frames is forgotten, so the bytes that follow depend on their frames alone. Encoders
    /// other than libx264, and those behind filters, go on: a run cannot be resumed with them.
    ///
    /// # Errors
    /// The encoder cannot be opened again.
    pub(super) fn restart(&mut self, muxer: &mut Output) -> Result<(), Error> {
        if self.filters.is_some() || self.maker.codec.name() != RESTARTS {
            return Ok(());
        }
        self.track.end(muxer)?;
        self.track.encoder = self.maker.open()?;
        Ok(())
    }

    /// Counts frames that [`Self::take`] has taken.
    pub(super) fn skip(&mut self, frames: usize) {
        self.sent += frames;
    }

    /// Moves a packet of another file of the same settings into the file.
    ///
    /// # Errors
    /// The packet is damaged, or cannot be written.
    pub(super) fn take(
        &self,
        packet: &Packet,
        time_base: Rational,
        muxer: &mut Output,
    ) -> Result<(), Error> {
        self.track.take(packet, time_base, muxer)
    }

    /// Says whether packets of several streams are put in the order of time.
    pub(super) fn interleave(&mut self, interleaved: bool) {
        self.track.interleaved = interleaved;
    }

    /// Says that the next frame begins a block, and so wants a key frame.
    pub(super) fn begin_block(&mut self) {
        self.key = true;
    }

    /// Encodes one frame of the model, RGB `[H, W, 3]`.
    pub(super) fn send(&mut self, rgb: &[u8], muxer: &mut Output) -> Result<(), Error> {
        let mut frame = to_yuv(rgb, self.size);
        frame.set_pts(Some(self.sent as i64));
        self.sent += 1;
        match &mut self.filters {
            None => self.encode(&mut frame, muxer),
            Some(filters) => {
                filters.push(&frame)?;
                self.pull(muxer)
            }
        }
    }

    /// Ends the stream.
    pub(super) fn end(&mut self, muxer: &mut Output) -> Result<(), Error> {
        if let Some(filters) = &mut self.filters {
            filters.close(self.sent)?;
            self.pull(muxer)?;
        }
        self.track.end(muxer)
    }

    /// Encodes what left the filters.
    fn pull(&mut self, muxer: &mut Output) -> Result<(), Error> {
        while let Some(filters) = &mut self.filters
            && let Some(mut frame) = filters.next()?
        {
            frame.set_color_space(Space::BT709);
            frame.set_color_range(Range::MPEG);
            self.encode(&mut frame, muxer)?;
        }
        Ok(())
    }

    fn encode(&mut self, frame: &mut frame::Video, muxer: &mut Output) -> Result<(), Error> {
        frame.set_kind(match std::mem::take(&mut self.key) {
            true => picture::Type::I,
            false => picture::Type::None,
        });
        self.track.encoder.send_frame(frame)?;
        self.track.drain(muxer)
    }
}

/// Returns the frames of the model as they are.
fn plain(size: Size) -> Leaving {
    Leaving {
        size,
        time_base: Rational::new(1, FPS as i32),
        rate: Rational::new(FPS as i32, 1),
        aspect: Rational::new(0, 1),
    }
}

/// Returns the encoder that is asked for, or that of the container.
fn find(container: &str, encoding: &Encoding) -> Result<Codec, VideoError> {
    let own = match container {
        "webm" => "libvpx-vp9",
        _ => "libx264",
    };
    let name = encoding.codec.as_deref().unwrap_or(own);
    let found = encoder::find_by_name(name).filter(Codec::is_video);
    found.ok_or_else(|| VideoError::Unknown {
        name: name.to_owned(),
    })
}

/// Refuses a codec that the container cannot hold.
fn fits(muxer: &Output, container: &'static str, codec: &Codec) -> Result<(), VideoError> {
    const NORMAL: i32 = 0;
    #[expect(unsafe_code, reason = "the wrapper has no function for it")]
    // SAFETY: the muxer has a format, which lives as long as the library.
    let held =
        unsafe { ffi::avformat_query_codec((*muxer.as_ptr()).oformat, codec.id().into(), NORMAL) };
    match held {
        0 => Err(VideoError::Container {
            container,
            name: codec.name().to_owned(),
        }),
        _ => Ok(()),
    }
}

/// Returns the pixels that the encoder takes.
fn pixel(codec: &Codec) -> Result<Pixel, VideoError> {
    let formats = codec.video().ok().and_then(|video| video.formats());
    let formats: Vec<Pixel> = formats.into_iter().flatten().collect();
    let usable = [Pixel::YUV420P, Pixel::NV12];
    let found = usable.into_iter().find(|pixel| formats.contains(pixel));
    match found {
        Some(pixel) => Ok(pixel),
        None if formats.is_empty() => Ok(Pixel::YUV420P),
        None => {
            let name = |p: &Pixel| p.descriptor().map_or("?", |d| d.name());
            let takes: Vec<&str> = formats.iter().map(name).collect();
            Err(VideoError::Pixels {
                name: codec.name().to_owned(),
                takes: takes.join(", "),
            })
        }
    }
}

/// Says whether an encoder has an option of its own of this name.
fn has(codec: &Codec, option: &str) -> bool {
    let Ok(name) = CString::new(option) else {
        return false;
    };
    #[expect(unsafe_code, reason = "the wrapper has no function for it")]
    // SAFETY: a pointer to the class stands for an object of it, as the flag says. The codec lives
    // as long as the library.
    unsafe {
        let class = &raw const (*codec.as_ptr()).priv_class;
        !(*class).is_null()
            && !ffi::av_opt_find(
                class.cast::<c_void>().cast_mut(),
                name.as_ptr(),
                std::ptr::null(),
                0,
                ffi::AV_OPT_SEARCH_FAKE_OBJ,
            )
            .is_null()
    }
}

/// Options that make each encoder quick to let a block go: it waits for no later frame.
fn prompt(name: &str) -> &'static [(&'static str, &'static str)] {
    match name {
        "libx264" => &[
            ("tune", "zerolatency"),
            ("forced-idr", "1"),
            ("sc_threshold", "0"),
        ],
        // The library would write lines to standard error by itself.
        "libx265" => &[
            ("tune", "zerolatency"),
            ("forced-idr", "1"),
            ("x265-params", "log-level=none"),
        ],
        "libvpx" => &[
            ("deadline", "good"),
            ("cpu-used", "4"),
            ("lag-in-frames", "0"),
        ],
        "libvpx-vp9" => &[
            ("deadline", "good"),
            ("cpu-used", "4"),
            ("lag-in-frames", "0"),
            ("row-mt", "1"),
        ],
        name if name.ends_with("_nvenc") => &[("delay", "0"), ("forced-idr", "1")],
        _ => &[],
    }
}

/// Returns the options of an encoder.
///
/// # Errors
/// The encoder keeps no constant quality, or has no presets.
fn options(codec: &Codec, encoding: &Encoding) -> Result<Dictionary<'static>, VideoError> {
    let name = codec.name();
    let mut options = Dictionary::new();
    let own = ["libx264", "libx265"].contains(&name).then_some("fast");
    match encoding.preset.as_deref() {
        Some(_) if !has(codec, "preset") => {
            return Err(VideoError::NoPreset {
                name: name.to_owned(),
            });
        }
        preset => {
            if let Some(preset) = preset.or(own) {
                options.set("preset", preset);
            }
        }
    }
    for (option, value) in prompt(name) {
        options.set(option, value);
    }
    match encoding.rate {
        Rate::Bits(bits) => options.set("b", &bits.to_string()),
        Rate::Quality(crf) if has(codec, "crf") => {
            options.set("crf", &crf.to_string());
            match name {
                // Zero means: as many bits as the quality takes. VP8 wants an upper bound.
                "libvpx-vp9" => options.set("b", "0"),
                "libvpx" => options.set("b", "100M"),
                _ => {}
            }
        }
        Rate::Quality(crf) if has(codec, "cq") => {
            options.set("rc", "vbr");
            options.set("cq", &crf.to_string());
            options.set("b", "0");
        }
        Rate::Quality(_) => {
            return Err(VideoError::NoQuality {
                name: name.to_owned(),
            });
        }
    }
    options.set("threads", &encoding.threads.to_string());
    Ok(options)
}

/// The encoder that starts anew with each clip.
const RESTARTS: &str = "libx264";

/// Opens encoders of the same settings, any number of times.
struct Maker {
    codec: Codec,
    pixel: Pixel,
    frames: Leaving,
    has_filters: bool,
    /// Names and values. FFmpeg's own list stays on one thread.
    options: Vec<(String, String)>,
}

impl Maker {
    fn open(&self) -> Result<encoder::video::Encoder, Error> {
        let frames = &self.frames;
        let mut context = codec::Context::new_with_codec(self.codec);
        let mut flags = codec::Flags::GLOBAL_HEADER | codec::Flags::BITEXACT;
        // Other encoders get no frames that refer to later ones, so their groups are closed anyway.
        flags.set(codec::Flags::CLOSED_GOP, self.codec.name() == "libx264");
        context.set_flags(flags);
        let mut video = context.encoder().video()?;
        video.set_width(frames.size.width as u32);
        video.set_height(frames.size.height as u32);
        video.set_format(self.pixel);
        video.set_time_base(frames.time_base);
        video.set_frame_rate(Some(frames.rate));
        video.set_colorspace(Space::BT709);
        video.set_color_primaries(Primaries::BT709);
        video.set_color_transfer_characteristic(TransferCharacteristic::BT709);
        video.set_color_range(Range::MPEG);
        if self.has_filters && frames.aspect.numerator() > 0 {
            video.set_aspect_ratio(frames.aspect);
        }
        if self.codec.name() != "libx264" {
            video.set_max_b_frames(0);
        }
        let options = self.options.iter();
        let options: Dictionary<'_> = options.map(|(n, v)| (n.as_str(), v.as_str())).collect();
        video.open_as_with(self.codec, options)
    }

    fn add_stream(&self, muxer: &mut Output) -> Result<Track<encoder::video::Encoder>, Error> {
        let (encoder, frames) = (self.open()?, &self.frames);
        let mut stream = muxer.add_stream_with(encoder.as_ref())?;
        stream.set_time_base(frames.time_base);
        stream.set_avg_frame_rate(frames.rate);
        #[expect(unsafe_code, reason = "the wrapper has no function for it")]
        // SAFETY: the stream was just made, and nothing else holds it.
        unsafe {
            (*stream.as_mut_ptr()).sample_aspect_ratio =
                (*(*stream.as_ptr()).codecpar).sample_aspect_ratio;
        }
        Ok(Track {
            stream: stream.index(),
            encoder,
            time_base: frames.time_base,
            interleaved: false,
            shift: 0,
        })
    }
}
