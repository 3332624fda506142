//! The output of a join: packets of pictures as they come, and one encoder of sound.

use ffmpeg_next::format::context::Output;
use ffmpeg_next::{Error, Packet, Rational};

use crate::media::audio_file::AudioTrack;
use crate::media::muxed::{self, Place};
use crate::media::sound_track::Sound;
use crate::media::target::Target;
use crate::media::track;
use crate::media::video_error::VideoError;

/// A joined video that is being written.
pub(super) struct Joining {
    place: Place,
    container: &'static str,
    muxer: Output,
    /// Number of the stream of pictures.
    stream: usize,
    sound: Option<Sound>,
    /// MP4 has written its header.
    begun: bool,
    /// Seconds that a frame lasts.
    frame: Rational,
}

impl Joining {
    /// Creates the output under its partial name. `add` adds the stream of pictures, whose unit of
    /// time is a frame.
    ///
    /// # Errors
    /// The output cannot be written, or its container cannot hold the streams.
    pub(super) fn create(
        target: &Target,
        container: &'static str,
        sound: Option<AudioTrack>,
        add: impl FnOnce(&mut Output) -> Result<usize, Error>,
    ) -> Result<Self, VideoError> {
        let (place, mut muxer) = muxed::open(target, container)?;
        let write = |source| VideoError::Write {
            path: place.name().to_owned(),
            source,
        };
        let stream = add(&mut muxer).map_err(write)?;
        let frame = muxer.stream(stream).map(|stream| stream.time_base());
        let frame = frame.ok_or(Error::StreamNotFound).map_err(write)?;
        let sound = sound.map(|source| Sound::new(&mut muxer, container, source));
        let sound = sound.transpose()?;
        let options = muxed::header_options(container);
        muxer.write_header_with(options).map_err(write)?;
        Ok(Self {
            place,
            container,
            muxer,
            stream,
            sound,
            begun: false,
            frame,
        })
    }

    /// Goes on with the sound of the next video.
    pub(super) fn next_sound(&mut self, source: AudioTrack) {
        if let Some(sound) = &mut self.sound {
            sound.go_on_with(source);
        }
    }

    /// Writes one packet as frame `number` of the output.
    pub(super) fn frame(&mut self, packet: &mut Packet, number: usize) -> Result<(), VideoError> {
        let time = Some(number as i64);
        packet.set_pts(time);
        packet.set_dts(time);
        packet.set_duration(1);
        packet.set_position(-1);
        packet.set_stream(self.stream);
        let to = self
            .muxer
            .stream(self.stream)
            .map(|stream| stream.time_base());
        packet.rescale_ts(self.frame, to.unwrap_or(self.frame));
        let written = match self.container {
            "mp4" => packet.write(&mut self.muxer).map(drop),
            _ => packet.write_interleaved(&mut self.muxer),
        };
        written.map_err(|e| self.failed(e))
    }

    /// Encodes the sound of the video at hand up to its frame `frames`.
    pub(super) fn sound_to(&mut self, frames: usize, rate: Rational) -> Result<(), VideoError> {
        let Some(sound) = &mut self.sound else {
            return Ok(());
        };
        sound.read_to_time(frames, rate)?;
        let encoded = sound.encode(&mut self.muxer);
        encoded.map_err(|e| self.failed(e))
    }

    /// Ends the fragment at hand.
    pub(super) fn flush(&mut self) -> Result<(), VideoError> {
        // The header of MP4 waits for the first flush.
        let flushes = if self.begun { 1 } else { 2 };
        for _ in 0..flushes {
            let flushed = track::flush(&mut self.muxer, self.container != "mp4");
            flushed.map_err(|e| self.failed(e))?;
        }
        self.begun = true;
        Ok(())
    }

    /// Completes the output under its final name.
    pub(super) fn finish(mut self) -> Result<(), VideoError> {
        let ended = match &mut self.sound {
            Some(sound) => sound.end(&mut self.muxer),
            None => Ok(()),
        };
        let ended = ended.and_then(|()| self.muxer.write_trailer());
        ended.map_err(|e| self.failed(e))?;
        muxed::name(self.place, self.muxer, self.container).map(drop)
    }

    fn failed(&self, source: Error) -> VideoError {
        VideoError::Write {
            path: self.place.name().to_owned(),
            source,
        }
    }
}
