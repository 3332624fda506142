//! Reads the frames of a video, and writes moving pictures.

use std::path::Path;

use ffmpeg::codec::context::Context;
use ffmpeg::format::Pixel;
use ffmpeg::media::Type;
use ffmpeg::software::scaling::{Context as Scaler, Flags};
use ffmpeg::util::frame::Video;
use ffmpeg_next as ffmpeg;
use image::RgbImage;

fn picture(frame: &Video) -> RgbImage {
    let (width, height, stride) = (frame.width(), frame.height(), frame.stride(0));
    let rows = frame.data(0).chunks(stride).take(height as usize);
    let pixels = rows
        .flat_map(|row| &row[..3 * width as usize])
        .copied()
        .collect();
    RgbImage::from_raw(width, height, pixels).unwrap()
}

/// Decodes every frame of a video, upright and at its own size.
pub(crate) fn frames(video: &Path) -> Vec<RgbImage> {
    ffmpeg::init().unwrap();
    let mut file = ffmpeg::format::input(video).unwrap();
    let stream = file.streams().best(Type::Video).unwrap();
    let index = stream.index();
    let mut decoder = Context::from_parameters(stream.parameters())
        .and_then(|c| c.decoder().video())
        .unwrap();
    let (width, height) = (decoder.width(), decoder.height());
    let mut scaler = Scaler::get(
        decoder.format(),
        width,
        height,
        Pixel::RGB24,
        width,
        height,
        Flags::BICUBIC,
    )
    .unwrap();
    let mut found = Vec::new();
    let mut take = |decoder: &mut ffmpeg::decoder::Video| {
        let (mut decoded, mut rgb) = (Video::empty(), Video::empty());
        while decoder.receive_frame(&mut decoded).is_ok() {
            scaler.run(&decoded, &mut rgb).unwrap();
            found.push(picture(&rgb));
        }
    };
    for (stream, packet) in file.packets() {
        if stream.index() == index {
            decoder.send_packet(&packet).unwrap();
            take(&mut decoder);
        }
    }
    decoder.send_eof().unwrap();
    take(&mut decoder);
    found
}

/// Writes an animated WebP. Frames stay for `1 / rate` seconds; `quality` is 0 to 100.
pub(crate) fn write_webp(out: &Path, frames: &[RgbImage], rate: i32, quality: u32) {
    ffmpeg::init().unwrap();
    let (width, height) = frames[0].dimensions();
    let codec = ffmpeg::encoder::find_by_name("libwebp_anim").expect("FFmpeg has libwebp");
    let mut file = ffmpeg::format::output_as(out, "webp").unwrap();
    let mut encoder = Context::new_with_codec(codec).encoder().video().unwrap();
    encoder.set_width(width);
    encoder.set_height(height);
    encoder.set_format(Pixel::YUV420P);
    encoder.set_time_base((1, rate));
    encoder.set_frame_rate(Some((rate, 1)));
    let mut options = ffmpeg::Dictionary::new();
    options.set("quality", &quality.to_string());
    options.set("compression_level", "6");
    let mut encoder = encoder.open_with(options).unwrap();
    let mut stream = file.add_stream(codec).unwrap();
    stream.set_time_base((1, rate));
    stream.set_parameters(&encoder);
    let mut header = ffmpeg::Dictionary::new();
    header.set("loop", "0");
    file.write_header_with(header).unwrap();
    let mut scaler = Scaler::get(
        Pixel::RGB24,
        width,
        height,
        Pixel::YUV420P,
        width,
        height,
        Flags::BICUBIC | Flags::ACCURATE_RND,
    )
    .unwrap();
    let mut write = |encoder: &mut ffmpeg::encoder::Video| {
        let mut packet = ffmpeg::Packet::empty();
        while encoder.receive_packet(&mut packet).is_ok() {
            packet.set_stream(0);
            let to = file.stream(0).unwrap().time_base();
            packet.rescale_ts((1, rate), to);
            packet.write_interleaved(&mut file).unwrap();
        }
    };
    for (i, picture) in frames.iter().enumerate() {
        let mut rgb = Video::new(Pixel::RGB24, width, height);
        let stride = rgb.stride(0);
        for (row, pixels) in picture.as_raw().chunks(3 * width as usize).enumerate() {
            rgb.data_mut(0)[row * stride..][..pixels.len()].copy_from_slice(pixels);
        }
        let mut yuv = Video::empty();
        scaler.run(&rgb, &mut yuv).unwrap();
        yuv.set_pts(Some(i as i64));
        encoder.send_frame(&yuv).unwrap();
        write(&mut encoder);
    }
    encoder.send_eof().unwrap();
    write(&mut encoder);
    file.write_trailer().unwrap();
}
