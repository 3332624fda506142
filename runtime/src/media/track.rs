//! An encoder, and the stream of a muxer that takes its packets.

use ffmpeg_next::format::context::Output;
use ffmpeg_next::{Error, Packet, Rational, encoder, ffi};

/// An encoder, and the stream that takes its packets.
pub(super) struct Track<E> {
    pub(super) encoder: E,
    pub(super) stream: usize,
    pub(super) time_base: Rational,
    /// Whether packets of several streams are put in the order of time. Fragments have their own.
    pub(super) interleaved: bool,
    /// Added to the time of every packet, in units of `time_base`.
    pub(super) shift: i64,
}

/// An encoder of pictures or of sound.
pub(super) trait Encode {
    /// Returns the encoder without its kind.
    fn encoder(&mut self) -> &mut encoder::Encoder;
}

impl Encode for encoder::video::Encoder {
    fn encoder(&mut self) -> &mut encoder::Encoder {
        self
    }
}

impl Encode for encoder::audio::Encoder {
    fn encoder(&mut self) -> &mut encoder::Encoder {
        self
    }
}

impl<E: Encode> Track<E> {
    /// Moves every finished packet into the file.
    pub(super) fn drain(&mut self, muxer: &mut Output) -> Result<(), Error> {
        let mut packet = Packet::empty();
        loop {
            match self.encoder.encoder().receive_packet(&mut packet) {
                Ok(()) => {}
                Err(
                    Error::Eof
                    | Error::Other {
                        errno: ffmpeg_next::error::EAGAIN,
                    },
                ) => return Ok(()),
                Err(source) => return Err(source),
            }
            let to = muxer
                .stream(self.stream)
                .ok_or(Error::StreamNotFound)?
                .time_base();
            packet.set_stream(self.stream);
            packet.set_pts(packet.pts().map(|time| time + self.shift));
            packet.set_dts(packet.dts().map(|time| time + self.shift));
            packet.rescale_ts(self.time_base, to);
            if self.interleaved {
                packet.write_interleaved(muxer)?;
            } else {
                packet.write(muxer)?;
            }
        }
    }

    /// Ends the stream: moves the packets that the encoder still holds into the file.
    pub(super) fn end(&mut self, muxer: &mut Output) -> Result<(), Error> {
        self.encoder.encoder().send_eof()?;
        self.drain(muxer)
    }
}

/// Ends the muxer's current fragment or cluster and puts it on the disk.
pub(super) fn flush(muxer: &mut Output, interleaved: bool) -> Result<(), Error> {
    if interleaved {
        #[expect(unsafe_code, reason = "the wrapper refuses a null packet")]
        // SAFETY: the context is valid and its header is written. The documentation gives a null
        // packet the meaning of a flush.
        let code =
            unsafe { ffi::av_interleaved_write_frame(muxer.as_mut_ptr(), std::ptr::null_mut()) };
        if code < 0 {
            return Err(Error::from(code));
        }
    }
    #[expect(
        unsafe_code,
        reason = "a null packet is FFmpeg's way to cut a fragment; the wrapper refuses it"
    )]
    // SAFETY: the context is valid and its header is written. The documentation of
    // `av_write_frame` gives a null packet the meaning of a flush.
    let code = unsafe { ffi::av_write_frame(muxer.as_mut_ptr(), std::ptr::null_mut()) };
    if code < 0 {
        Err(Error::from(code))
    } else {
        Ok(())
    }
}
