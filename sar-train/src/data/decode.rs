//! Decodes the contents of an image file to pixels, and detects every way in which a file can be
//! bad.
//!
//! The format is detected from the content, not the name. Grey becomes RGB, palettes are looked up,
//! alpha is composited on white (in stored values, as viewers do), 16-bit samples keep their
//! precision, and the orientation recorded by a camera is applied. Only the first frame of an
//! animation is used.

use super::resize::Rows;
use image::{
    DynamicImage, ExtendedColorType, ImageDecoder, ImageFormat, ImageReader, Limits,
    metadata::Orientation,
};
use std::io::Cursor;

/// Why an image file cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BadImage {
    /// The file is empty.
    #[error("the file is empty (0 bytes)")]
    ZeroByte,
    /// Not PNG, JPEG or WebP.
    #[error("not a PNG, JPEG or WebP image")]
    NotAnImage,
    /// An image of another format.
    #[error("not a PNG, JPEG or WebP image but {0}; convert it to one of these")]
    OtherFormat(&'static str),
    /// The file ends before the image does.
    #[error("the image is truncated: {0}")]
    Truncated(String),
    /// A side is only one pixel long.
    #[error("{width}×{height} pixels; expected at least 2×2")]
    TooSmall {
        /// Width in pixels.
        width: u32,
        /// Height in pixels.
        height: u32,
    },
    /// The image has more pixels than allowed.
    #[error("{width}×{height} pixels; expected at most {limit} in all (data.max_pixels)")]
    TooLarge {
        /// Width in pixels.
        width: u32,
        /// Height in pixels.
        height: u32,
        /// Maximum number of pixels.
        limit: u64,
    },
    /// The contents contradict the format.
    #[error("the image is damaged: {0}")]
    Damaged(String),
    /// There is no such file.
    #[error("cannot be read: there is no such file")]
    Missing,
    /// The system cannot read the file.
    #[error("cannot be read: {0}")]
    Unreadable(String),
}

/// Information from the first bytes of an image file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// Width in pixels.
    pub width: u32,
    /// Height in pixels.
    pub height: u32,
    /// Format and colour mode, such as `PNG palette` or `JPEG RGB`.
    pub mode: String,
    /// Size of the decoded RGB picture in bytes.
    pub bytes: u64,
}

/// A decoded image: RGB, interleaved, 8 or 16 bits per sample.
#[derive(Clone, Debug, PartialEq)]
pub struct Picture {
    width: usize,
    height: usize,
    samples: Samples,
}

#[derive(Clone, Debug, PartialEq)]
enum Samples {
    Eight(Vec<u8>),
    Sixteen(Vec<u16>),
}

impl Picture {
    /// Creates a picture of grey values 0 to 255, row by row.
    #[cfg(test)]
    pub(super) fn from_grey(width: usize, height: usize, grey: &[u8]) -> Self {
        assert_eq!(grey.len(), width * height);
        let samples = Samples::Eight(grey.iter().flat_map(|&v| [v; 3]).collect());
        Self { width, height, samples }
    }

    /// Returns the rectangle at (x, y), which must lie inside.
    pub(super) fn cell(&self, x: usize, y: usize, width: usize, height: usize) -> Self {
        let rows = (y..y + height).map(|row| {
            let start = (row * self.width + x) * 3;
            start..start + width * 3
        });
        let samples = match &self.samples {
            Samples::Eight(v) => Samples::Eight(rows.flat_map(|r| v[r].iter().copied()).collect()),
            Samples::Sixteen(v) => {
                Samples::Sixteen(rows.flat_map(|r| v[r].iter().copied()).collect())
            }
        };
        Self { width, height, samples }
    }

    /// Width in pixels.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Height in pixels.
    pub fn height(&self) -> usize {
        self.height
    }
}

impl Rows for Picture {
    fn width(&self) -> usize {
        self.width
    }
    fn height(&self) -> usize {
        self.height
    }
    fn read(&self, y: usize, x0: usize, out: &mut [f32]) {
        let start = (y * self.width + x0) * 3;
        let range = start..start + out.len();
        match &self.samples {
            Samples::Eight(v) => {
                out.iter_mut().zip(&v[range]).for_each(|(o, &s)| *o = f32::from(s) / 127.5 - 1.0);
            }
            Samples::Sixteen(v) => {
                out.iter_mut().zip(&v[range]).for_each(|(o, &s)| *o = f32::from(s) / 32767.5 - 1.0);
            }
        }
    }
}

/// Reads the header of an image file's contents.
///
/// # Errors
/// [`BadImage`] for everything that can be detected without decoding: empty, no image, too small,
/// too large.
pub fn probe_bytes(bytes: &[u8], max_pixels: u64) -> Result<Header, BadImage> {
    let (decoder, format) = open(bytes, max_pixels)?;
    let (width, height) = decoder.dimensions();
    let color = decoder.color_type();
    let per_sample = u64::from(color.bytes_per_pixel() / color.channel_count().max(1)).clamp(1, 2);
    let bytes_rgb = u64::from(width) * u64::from(height) * 3 * per_sample;
    Ok(Header { width, height, mode: mode(bytes, format, &decoder), bytes: bytes_rgb })
}

/// Decodes an image file's contents.
///
/// # Errors
/// [`BadImage`] with the reason.
pub fn decode_bytes(bytes: &[u8], max_pixels: u64) -> Result<Picture, BadImage> {
    let (mut decoder, format) = open(bytes, max_pixels)?;
    if format == ImageFormat::Jpeg && !jpeg_is_whole(bytes) {
        // The decoder would fill the missing part with grey.
        return Err(BadImage::Truncated("no end-of-image marker".into()));
    }
    let turn = decoder.orientation().unwrap_or(Orientation::NoTransforms);
    let mut image = DynamicImage::from_decoder(decoder).map_err(explain)?;
    image.apply_orientation(turn);
    Ok(flatten(image))
}

fn open(bytes: &[u8], max_pixels: u64) -> Result<(impl ImageDecoder + '_, ImageFormat), BadImage> {
    if bytes.is_empty() {
        return Err(BadImage::ZeroByte);
    }
    let reader = ImageReader::new(Cursor::new(bytes)).with_guessed_format();
    let mut reader = reader.map_err(|e| BadImage::Unreadable(e.to_string()))?;
    let format = match reader.format() {
        Some(f @ (ImageFormat::Png | ImageFormat::Jpeg | ImageFormat::WebP)) => f,
        other => return Err(not_read(bytes, other)),
    };
    if format == ImageFormat::WebP
        && let Some([_, _, _, _, a, b, c, d]) = bytes.first_chunk()
        && u64::from(u32::from_le_bytes([*a, *b, *c, *d])) + 8 > bytes.len() as u64
    {
        // The decoder would call it corrupt, which points the reader to the wrong cause.
        return Err(BadImage::Truncated("shorter than its header says".into()));
    }
    let mut limits = Limits::default();
    limits.max_alloc = Some(max_pixels.saturating_mul(16).saturating_add(64 << 20));
    reader.limits(limits);
    let decoder = reader.into_decoder().map_err(explain)?;
    let (width, height) = decoder.dimensions();
    if width < 2 || height < 2 {
        return Err(BadImage::TooSmall { width, height });
    }
    if u64::from(width) * u64::from(height) > max_pixels {
        return Err(BadImage::TooLarge { width, height, limit: max_pixels });
    }
    Ok((decoder, format))
}

/// Returns the error for a format that is not supported, with its name if known.
fn not_read(bytes: &[u8], format: Option<ImageFormat>) -> BadImage {
    // The first box of an ISO base media file, with its brand: the formats that telephones write.
    let brand = bytes.get(4..12).and_then(|head| head.strip_prefix(b"ftyp"));
    let name = match (format, brand) {
        (Some(ImageFormat::Gif), _) => "GIF",
        (Some(ImageFormat::Bmp), _) => "BMP",
        (Some(ImageFormat::Tiff), _) => "TIFF",
        (Some(ImageFormat::Avif), _) | (None, Some(b"avif" | b"avis")) => "AVIF",
        (None, Some(b"heic" | b"heix" | b"hevc" | b"mif1" | b"msf1")) => "HEIC",
        (Some(_), _) => "of another format",
        (None, _) => return BadImage::NotAnImage,
    };
    BadImage::OtherFormat(name)
}

fn explain(error: image::ImageError) -> BadImage {
    let text = error.to_string().trim_end().to_owned();
    let eof = matches!(&error, image::ImageError::IoError(e)
        if e.kind() == std::io::ErrorKind::UnexpectedEof);
    let lower = text.to_lowercase();
    let short = [
        "unexpected end",
        "unexpected eof",
        "failed to fill",
        "not enough bytes",
        "truncated",
        "exhausted",
    ];
    if eof || short.iter().any(|s| lower.contains(s)) {
        BadImage::Truncated(text)
    } else if lower.contains("crc error") {
        BadImage::Damaged("a checksum in it is wrong".into())
    } else {
        BadImage::Damaged(text)
    }
}

/// Whether an end-of-image marker follows the first scan.
///
/// Segments before the scan are skipped by their lengths, because a thumbnail inside them has an
/// end marker of its own. In a scan's data 0xFF is always followed by 0x00 or a restart marker.
fn jpeg_is_whole(bytes: &[u8]) -> bool {
    const START_OF_SCAN: u8 = 0xda;
    const END_OF_IMAGE: u8 = 0xd9;
    let mut at = 2;
    while let Some([0xff, marker, rest @ ..]) = bytes.get(at..) {
        match *marker {
            START_OF_SCAN => return rest.windows(2).any(|w| w == [0xff, END_OF_IMAGE]),
            // Fill bytes and markers without a length.
            0xff => at += 1,
            0x01 | 0xd0..=0xd8 => at += 2,
            _ => match rest {
                [high, low, ..] => at += 2 + usize::from(u16::from_be_bytes([*high, *low])),
                _ => return false,
            },
        }
    }
    false
}

fn mode(bytes: &[u8], format: ImageFormat, decoder: &impl ImageDecoder) -> String {
    // Byte 25 of a PNG is its colour type; the decoder reports only what a palette expands to.
    if format == ImageFormat::Png && bytes.get(25) == Some(&3) {
        return "PNG palette".into();
    }
    let name = match format {
        ImageFormat::Png => "PNG",
        ImageFormat::Jpeg => "JPEG",
        _ => "WebP",
    };
    format!("{name} {}", colours(decoder.original_color_type()))
}

/// Returns a colour mode in words; 8 bits per channel or fewer unless stated otherwise.
fn colours(colours: ExtendedColorType) -> String {
    use ExtendedColorType as C;
    let known = match colours {
        C::L1 | C::L2 | C::L4 | C::L8 => "grey",
        C::La1 | C::La2 | C::La4 | C::La8 => "grey with alpha",
        C::Rgb1 | C::Rgb2 | C::Rgb4 | C::Rgb8 => "RGB",
        C::Rgba1 | C::Rgba2 | C::Rgba4 | C::Rgba8 => "RGB with alpha",
        C::L16 => "grey, 16 bits",
        C::La16 => "grey with alpha, 16 bits",
        C::Rgb16 => "RGB, 16 bits",
        C::Rgba16 => "RGB with alpha, 16 bits",
        C::Cmyk8 => "CMYK",
        other => return format!("{other:?}"),
    };
    known.into()
}

fn flatten(image: DynamicImage) -> Picture {
    let (width, height) = (image.width() as usize, image.height() as usize);
    let sixteen = matches!(
        image,
        DynamicImage::ImageLuma16(_)
            | DynamicImage::ImageLumaA16(_)
            | DynamicImage::ImageRgb16(_)
            | DynamicImage::ImageRgba16(_)
    );
    let alpha = image.color().has_alpha();
    let samples = match (sixteen, alpha) {
        (false, false) => Samples::Eight(image.into_rgb8().into_raw()),
        (true, false) => Samples::Sixteen(image.into_rgb16().into_raw()),
        (false, true) => {
            let over = |c: u8, a: u8| on_white(c.into(), a.into(), 0xff) as u8;
            let rgba = image.into_rgba8();
            let rgb = rgba.pixels().flat_map(|p| [0, 1, 2].map(|c| over(p.0[c], p.0[3])));
            Samples::Eight(rgb.collect())
        }
        (true, true) => {
            let over = |c: u16, a: u16| on_white(c.into(), a.into(), 0xffff) as u16;
            let rgba = image.into_rgba16();
            let rgb = rgba.pixels().flat_map(|p| [0, 1, 2].map(|c| over(p.0[c], p.0[3])));
            Samples::Sixteen(rgb.collect())
        }
    };
    Picture { width, height, samples }
}

/// Composites `color` with opacity `alpha` over white, all in 0..=max, rounded.
fn on_white(color: u64, alpha: u64, max: u64) -> u64 {
    (color * alpha + max * (max - alpha) + max / 2) / max
}
