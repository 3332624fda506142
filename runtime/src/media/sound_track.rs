//! The encoder of the sound.

use ffmpeg_next::codec;
use ffmpeg_next::format::context::Output;
use ffmpeg_next::format::{Sample, sample};
use ffmpeg_next::{ChannelLayout, Error, Rational, encoder, frame};

use crate::media::audio_file::{AudioError, AudioTrack};
use crate::media::ffmpeg_log::explained;
use crate::media::track::Track;
use crate::media::video_error::VideoError;

/// The sound of the video, with its encoder.
pub(super) struct Sound {
    track: Track<encoder::audio::Encoder>,
    source: AudioTrack,
    /// Samples, `[n, channels]`, that wait for a whole frame of the codec.
    pending: Vec<f32>,
    read: usize,
    sent: usize,
}

impl Sound {
    /// Adds a stream with the rate and the channels of `source`: Opus in WebM, AAC elsewhere.
    ///
    /// # Errors
    /// FFmpeg lacks the encoder or cannot open it.
    pub(super) fn new(
        muxer: &mut Output,
        container: &str,
        source: AudioTrack,
    ) -> Result<Self, VideoError> {
        let name = match container {
            "webm" => "libopus",
            _ => "aac",
        };
        let track = explained(|| add_stream(muxer, name, &source));
        let track = track.map_err(|reason| VideoError::Encoder {
            name: name.to_owned(),
            reason: reason.to_string(),
        })?;
        Ok(Self {
            track: Track {
                interleaved: container != "mp4",
                ..track
            },
            source,
            pending: Vec::new(),
            read: 0,
            sent: 0,
        })
    }

    /// Returns the length of what was read, in seconds.
    pub(super) fn seconds(&self) -> f64 {
        self.read as f64 / f64::from(self.source.rate())
    }

    /// Reads the sound of the first `frames` of video.
    pub(super) fn read_to(&mut self, frames: usize) -> Result<(), AudioError> {
        let end = self.source.samples_of(frames);
        self.pending.extend(self.source.read(end - self.read)?);
        self.read = end;
        Ok(())
    }

    /// Reads the sound of the first `frames` frames of a video of `rate` frames per second.
    ///
    /// # Errors
    /// The sound cannot be decoded.
    pub(super) fn read_to_time(&mut self, frames: usize, rate: Rational) -> Result<(), AudioError> {
        let seconds = frames as f64 / f64::from(rate);
        let end = (seconds * f64::from(self.source.rate())).round() as usize;
        self.pending.extend(self.source.read(end - self.read)?);
        self.read = end;
        Ok(())
    }

    /// Goes on with another recording of the same rate and channels, without a gap.
    pub(super) fn go_on_with(&mut self, source: AudioTrack) {
        self.source = source;
        self.read = 0;
    }

    /// Encodes every whole frame of the codec.
    pub(super) fn encode(&mut self, muxer: &mut Output) -> Result<(), Error> {
        let whole = self.track.encoder.frame_size() as usize * self.source.channels();
        while self.pending.len() >= whole {
            let samples: Vec<f32> = self.pending.drain(..whole).collect();
            self.send(&samples)?;
            self.track.drain(muxer)?;
        }
        Ok(())
    }

    /// Encodes the last, shorter frame, and empties the encoder.
    pub(super) fn end(&mut self, muxer: &mut Output) -> Result<(), Error> {
        let rest = std::mem::take(&mut self.pending);
        if !rest.is_empty() {
            self.send(&rest)?;
        }
        self.track.end(muxer)
    }

    /// Gives samples, `[n, channels]`, to the encoder as one frame.
    fn send(&mut self, samples: &[f32]) -> Result<(), Error> {
        let channels = self.source.channels();
        let n = samples.len() / channels;
        let encoder = &mut self.track.encoder;
        let mut audio = frame::Audio::new(encoder.format(), n, encoder.channel_layout());
        audio.set_rate(encoder.rate());
        audio.set_pts(Some(self.sent as i64));
        if encoder.format().is_packed() {
            let bytes = audio.data_mut(0).as_chunks_mut::<4>().0;
            for (into, value) in bytes.iter_mut().zip(samples) {
                *into = value.to_ne_bytes();
            }
        } else {
            for channel in 0..channels {
                let values = samples.iter().skip(channel).step_by(channels);
                for (into, &value) in audio.plane_mut::<f32>(channel).iter_mut().zip(values) {
                    *into = value;
                }
            }
        }
        self.sent += n;
        encoder.send_frame(&audio)
    }
}

/// Opens the encoder `name` for the samples of `source`.
fn add_stream(
    muxer: &mut Output,
    name: &str,
    source: &AudioTrack,
) -> Result<Track<encoder::audio::Encoder>, Error> {
    const BITS_PER_SAMPLE: usize = 4;
    const MOST_BITS: usize = 96_000;
    let codec = encoder::find_by_name(name).ok_or(Error::EncoderNotFound)?;
    let mut context = codec::Context::new_with_codec(codec);
    context.set_flags(codec::Flags::GLOBAL_HEADER | codec::Flags::BITEXACT);
    let mut audio = context.encoder().audio()?;
    let time_base = Rational::new(1, source.rate() as i32);
    audio.set_rate(source.rate() as i32);
    audio.set_format(Sample::F32(match name {
        "libopus" => sample::Type::Packed,
        _ => sample::Type::Planar,
    }));
    audio.set_channel_layout(if source.channels() == 1 {
        ChannelLayout::MONO
    } else {
        ChannelLayout::STEREO
    });
    audio.set_bit_rate(source.channels() * MOST_BITS.min(BITS_PER_SAMPLE * source.rate() as usize));
    audio.set_time_base(time_base);
    let encoder = audio.open_as(codec)?;
    let mut stream = muxer.add_stream_with(encoder.as_ref())?;
    stream.set_time_base(time_base);
    Ok(Track {
        stream: stream.index(),
        time_base,
        interleaved: false,
        shift: match name {
            "libopus" => lead_in(&encoder),
            _ => 0,
        },
        encoder,
    })
}

/// Returns the samples that the encoder puts before the sound. WebM states them, and readers take
/// them from the times; FFmpeg's muxer does not add them, so the sound would be early.
fn lead_in(encoder: &encoder::audio::Encoder) -> i64 {
    #[expect(unsafe_code, reason = "the wrapper has no function for it")]
    // SAFETY: the encoder is open.
    let samples = unsafe { (*encoder.as_ptr()).initial_padding };
    i64::from(samples)
}
