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
            packet.set_pts(packet.pts().map(|time| time + self.shift));
            packet.set_dts(packet.dts().map(|time| time + self.shift));
            self.write(&mut packet, self.time_base, muxer)?;
        }
    }

    /// Moves a packet of H.264 from another MP4 file into the file.
    pub(super) fn take(
        &self,
        packet: &Packet,
        time_base: Rational,
        muxer: &mut Output,
    ) -> Result<(), Error> {
        let data = start_codes(packet.data().unwrap_or_default()).ok_or(Error::InvalidData)?;
        let mut taken = Packet::copy(&data);
        taken.set_pts(packet.pts());
        taken.set_dts(packet.dts());
        taken.set_duration(packet.duration());
        taken.set_flags(packet.flags());
        self.write(&mut taken, time_base, muxer)
    }

    fn write(
        &self,
        packet: &mut Packet,
        time_base: Rational,
        muxer: &mut Output,
    ) -> Result<(), Error> {
        let stream = muxer.stream(self.stream).ok_or(Error::StreamNotFound)?;
        packet.set_stream(self.stream);
        packet.rescale_ts(time_base, stream.time_base());
        if self.interleaved {
            packet.write_interleaved(muxer)
        } else {
            packet.write(muxer).map(drop)
        }
    }

    /// Ends the stream: moves the packets that the encoder still holds into the file.
    pub(super) fn end(&mut self, muxer: &mut Output) -> Result<(), Error> {
        self.encoder.encoder().send_eof()?;
        self.drain(muxer)
    }
}

/// Turns a packet of an MP4 file into the form that the encoder gives: a start code in place of the
/// length of each NAL unit. Returns `None` if a length passes the end.
fn start_codes(packet: &[u8]) -> Option<Vec<u8>> {
    let (mut out, mut rest) = (Vec::with_capacity(packet.len()), packet);
    while let Some((length, after)) = rest.split_first_chunk() {
        let (unit, after) = after.split_at_checked(u32::from_be_bytes(*length) as usize)?;
        out.extend_from_slice(&[0, 0, 0, 1]);
        out.extend_from_slice(unit);
        rest = after;
    }
    rest.is_empty().then_some(out)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_of_units_become_start_codes() {
        let packet = [0, 0, 0, 2, 0x65, 7, 0, 0, 0, 1, 9];
        let codes = [0, 0, 0, 1, 0x65, 7, 0, 0, 0, 1, 9];
        assert_eq!(start_codes(&packet).unwrap(), codes);
        assert_eq!(start_codes(&packet[..5]), None, "a unit is cut");
        assert_eq!(start_codes(&packet[..8]), None, "a length is cut");
    }
}
