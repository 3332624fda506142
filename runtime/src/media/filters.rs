//! FFmpeg's filters between the frames of the model and the encoder: those of `--vf`, then `fps`,
//! then the pixels that the encoder takes.

use std::ffi::c_int;

use ffmpeg_next::filter::{self, Context, Graph};
use ffmpeg_next::format::Pixel;
use ffmpeg_next::{Error, Rational, ffi, frame};

use crate::media::encoding::Encoding;
use crate::media::ffmpeg;
use crate::media::ffmpeg_log::{Reason, explained};
use crate::numbers::size::Size;
use crate::numbers::timing::FPS;

/// Names of the two ends of a graph, as FFmpeg's programs have them.
const IN: &str = "in";
const OUT: &str = "out";
const SINK: &str = "sink";

/// A graph of filters that is ready for frames.
pub(super) struct Filters {
    graph: Graph,
    leaving: Leaving,
}

/// The frames that leave a graph.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Leaving {
    pub(super) size: Size,
    pub(super) time_base: Rational,
    /// Frames per second.
    pub(super) rate: Rational,
    /// Width over height of a pixel; 0 where it is not known.
    pub(super) aspect: Rational,
}

impl Filters {
    /// Returns the graph that an encoding asks for, or `None` if frames need no change.
    ///
    /// # Errors
    /// FFmpeg cannot read the text, or the filters do not fit together.
    pub(super) fn of(
        encoding: &Encoding,
        [from, to]: [Pixel; 2],
        size: Size,
    ) -> Result<Option<Self>, Reason> {
        if encoding.filters.is_none() && encoding.fps.is_none() && from == to {
            return Ok(None);
        }
        ffmpeg::start()?;
        let mut graph = Graph::new();
        let head = add_source(&mut graph, from, size)?;
        explained(|| Self::open(graph, head, encoding, to)).map(Some)
    }

    fn open(
        mut graph: Graph,
        mut head: Context,
        encoding: &Encoding,
        to: Pixel,
    ) -> Result<Self, Error> {
        // The first filter after the text has the name that the text's open end takes.
        let pixels = match to {
            Pixel::RGB24 => "format=rgb24".to_owned(),
            // Filters may work in RGB; the way back is BT.709 again.
            to => format!(
                "scale=out_color_matrix=bt709:out_range=tv,format={}",
                to.descriptor().ok_or(Error::InvalidData)?.name()
            ),
        };
        let fps = encoding.fps.map(|fps| format!("fps={fps},"));
        let tail = format!("{}{pixels}", fps.unwrap_or_default());
        let mut names = vec![OUT.to_owned()];
        names.extend((1..tail.split(',').count()).map(|i| format!("{OUT}{i}")));
        let mut last: Option<Context> = None;
        for (filter, name) in tail.split(',').zip(&names) {
            let (kind, args) = filter.split_once('=').ok_or(Error::InvalidData)?;
            let mut next = add(&mut graph, kind, name, args)?;
            if let Some(mut last) = last {
                link(&mut last, &mut next)?;
            }
            last = Some(next);
        }
        let mut sink = add(&mut graph, "buffersink", SINK, "")?;
        link(&mut last.ok_or(Error::FilterNotFound)?, &mut sink)?;
        match encoding.filters.as_deref() {
            None => link(&mut head, &mut graph.get(OUT).ok_or(Error::FilterNotFound)?)?,
            Some(text) => {
                let ends = graph.output(IN, 0)?.input(OUT, 0)?;
                ends.parse(text)?;
            }
        }
        graph.validate()?;
        let leaving = leaving(&mut sink);
        Ok(Self { graph, leaving })
    }

    /// Returns what leaves the graph.
    pub(super) fn leaving(&self) -> Leaving {
        self.leaving
    }

    /// Gives a frame to the graph.
    pub(super) fn push(&mut self, frame: &frame::Video) -> Result<(), Error> {
        self.end(IN)?.source().add(frame)
    }

    /// Says that the video ended after so many frames of the model.
    pub(super) fn close(&mut self, frames: usize) -> Result<(), Error> {
        self.end(IN)?.source().close(frames as i64)
    }

    /// Returns the next frame that is ready, if there is one.
    pub(super) fn next(&mut self) -> Result<Option<frame::Video>, Error> {
        let mut frame = frame::Video::empty();
        match self.end(SINK)?.sink().frame(&mut frame) {
            Ok(()) => Ok(Some(frame)),
            Err(
                Error::Eof
                | Error::Other {
                    errno: ffmpeg_next::error::EAGAIN,
                },
            ) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn end(&mut self, name: &str) -> Result<Context, Error> {
        self.graph.get(name).ok_or(Error::FilterNotFound)
    }
}

fn add(graph: &mut Graph, kind: &str, name: &str, args: &str) -> Result<Context, Error> {
    let filter = filter::find(kind).ok_or(Error::FilterNotFound)?;
    graph.add(&filter, name, args)
}

/// Adds the source of frames at the model's rate.
fn add_source(graph: &mut Graph, pixel: Pixel, size: Size) -> Result<Context, Error> {
    let name = pixel.descriptor().ok_or(Error::InvalidData)?.name();
    let Size { width, height } = size;
    let args = format!(
        "video_size={width}x{height}:pix_fmt={name}:time_base=1/{FPS}:frame_rate={FPS}:\
         pixel_aspect=1"
    );
    // Newer libraries want to know the colours before the first frame; older ones refuse the word.
    let colours = match pixel {
        Pixel::RGB24 => "",
        _ => ":colorspace=bt709:range=tv",
    };
    add(graph, "buffer", IN, &format!("{args}{colours}"))
        .or_else(|_| add(graph, "buffer", IN, &args))
}

#[expect(unsafe_code, reason = "the wrapper drops the answer of FFmpeg")]
fn link(from: &mut Context, to: &mut Context) -> Result<(), Error> {
    // SAFETY: both filters live in one graph, which outlives the call.
    match unsafe { ffi::avfilter_link(from.as_mut_ptr(), 0, to.as_mut_ptr(), 0) } {
        0 => Ok(()),
        code => Err(Error::from(code)),
    }
}

#[expect(unsafe_code, reason = "the wrapper has no function for it")]
fn leaving(sink: &mut Context) -> Leaving {
    let time_base = sink.sink().time_base();
    let known = |rate: Rational| rate.numerator() > 0 && rate.denominator() > 0;
    let own = Rational::new(FPS as i32, 1);
    let side = |pixels: c_int| usize::try_from(pixels).unwrap_or(0);
    // SAFETY: the sink is part of a graph that is configured.
    unsafe {
        let sink = sink.as_ptr();
        Leaving {
            size: Size {
                width: side(ffi::av_buffersink_get_w(sink)),
                height: side(ffi::av_buffersink_get_h(sink)),
            },
            time_base,
            rate: Some(ffi::av_buffersink_get_frame_rate(sink).into())
                .filter(|&rate| known(rate))
                .unwrap_or(own),
            aspect: ffi::av_buffersink_get_sample_aspect_ratio(sink).into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: Size = Size {
        width: 64,
        height: 32,
    };

    fn open(filters: Option<&str>, fps: Option<u32>) -> Result<Option<Filters>, String> {
        let encoding = Encoding {
            filters: filters.map(str::to_owned),
            fps,
            ..Encoding::default()
        };
        Filters::of(&encoding, [Pixel::YUV420P; 2], SIZE).map_err(|e| e.to_string())
    }

    fn grey(at: i64) -> frame::Video {
        let mut frame = frame::Video::new(Pixel::YUV420P, 64, 32);
        (0..3).for_each(|plane| frame.data_mut(plane).fill(100 + at as u8));
        frame.set_pts(Some(at));
        frame
    }

    /// Sends frames through a graph and returns the times of those that leave it.
    fn run(mut filters: Filters, frames: usize) -> Vec<i64> {
        let mut times = Vec::new();
        for at in 0..frames {
            filters.push(&grey(at as i64)).unwrap();
            while let Some(frame) = filters.next().unwrap() {
                times.push(frame.pts().unwrap());
            }
        }
        filters.close(frames).unwrap();
        while let Some(frame) = filters.next().unwrap() {
            times.push(frame.pts().unwrap());
        }
        times
    }

    #[test]
    fn nothing_is_done_where_nothing_is_asked_for() {
        assert!(open(None, None).unwrap().is_none());
    }

    #[test]
    fn the_rate_changes_and_the_length_stays() {
        for (fps, frames) in [(50, 50), (25, 25), (30, 30), (10, 10)] {
            let filters = open(None, Some(fps)).unwrap().unwrap();
            assert_eq!(filters.leaving().rate, Rational::new(fps as i32, 1));
            let times = run(filters, 25);
            assert_eq!(times, (0..frames).collect::<Vec<i64>>(), "{fps}");
        }
    }

    #[test]
    fn the_articles_filters_are_read_and_a_new_size_is_told() {
        let text = "hqdn3d=1.5:1.5:6:6,scale=1920:1080:flags=lanczos";
        let leaving = open(Some(text), None).unwrap().unwrap().leaving();
        let (width, height) = (1920, 1080);
        assert_eq!(leaving.size, Size { width, height });
        // FFmpeg keeps the shape of the picture: 2:1 on 16:9.
        assert_eq!(leaving.aspect, Rational::new(9, 8));
        let labelled = open(Some("[in]scale=128:64[out]"), Some(50)).unwrap();
        let (width, height) = (128, 64);
        assert_eq!(labelled.unwrap().leaving().size, Size { width, height });
    }

    #[test]
    fn a_faulty_graph_is_refused_in_ffmpegs_words() {
        for (text, says) in [
            ("nosuchfilter=1", "nosuchfilter"),
            ("scale=abc:def", "abc"),
            ("hqdn3d=1.5:x", "x"),
            ("split", ""),
            ("", ""),
        ] {
            let error = open(Some(text), None).err().unwrap_or_default();
            assert!(!error.is_empty() && error.contains(says), "{text}: {error}");
        }
    }
}
