//! Scale schedules: which grids an image is generated in, coarse to fine.
//!
//! A [`ScaleSchedule`] is the only place where token offsets are summed; everything else asks it.

mod random;

pub use random::DEFAULT_SCHEDULE_PROBABILITY;

use core::fmt;
use core::ops::Range;
use core::str::FromStr;

/// Most scales a schedule can have (the published ones have 10 to 14).
pub const MAX_SCALES: usize = 32;

/// Longest side of one scale. Keeps every token offset far from overflow on 32-bit targets.
pub const MAX_SIDE: usize = 1024;

/// One grid of a schedule, `height`×`width` tokens, row-major.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Scale {
    /// Rows of tokens.
    pub height: usize,
    /// Tokens in a row.
    pub width: usize,
}

impl Scale {
    /// A square grid of `side`×`side` tokens.
    pub const fn square(side: usize) -> Self {
        Self { height: side, width: side }
    }

    /// Number of tokens in the grid.
    pub const fn tokens(self) -> usize {
        self.height * self.width
    }
}

impl fmt::Display for Scale {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.height == self.width {
            write!(f, "{}", self.height)
        } else {
            write!(f, "{}x{}", self.height, self.width)
        }
    }
}

/// Where one token lies: its scale and its place in that scale's grid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TokenPlace {
    /// Index of the scale, from 0.
    pub scale: usize,
    /// Row in the grid, from 0 at the top.
    pub row: usize,
    /// Column in the grid, from 0 at the left.
    pub column: usize,
}

/// Why a list of scales is not a schedule. `scale` counts from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ScheduleError {
    /// No scale at all.
    Empty,
    /// More than [`MAX_SCALES`] scales.
    TooMany {
        /// How many were given.
        found: usize,
    },
    /// A side is zero.
    ZeroSide {
        /// The scale at fault.
        scale: usize,
    },
    /// A side is longer than [`MAX_SIDE`].
    TooLarge {
        /// The scale at fault.
        scale: usize,
        /// Its longer side.
        side: usize,
    },
    /// The first scale must be 1×1: its single token is the class token.
    FirstNotSingle {
        /// What was found instead.
        found: Scale,
    },
    /// A scale is smaller than the one before in some direction, or equal to it in both.
    NotGrowing {
        /// The scale at fault.
        scale: usize,
        /// Its grid.
        found: Scale,
        /// The grid before it.
        before: Scale,
    },
    /// Text that is neither a number nor `HxW`.
    NotAScale {
        /// Which entry of the list cannot be read.
        scale: usize,
    },
}

impl fmt::Display for ScheduleError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Empty => write!(f, "schedule: no scale given; expected a list such as 1_2_3_4"),
            Self::TooMany { found } => {
                let first = MAX_SCALES + 1;
                write!(
                    f,
                    "schedule: scale {first} is one too many: {found} given, at most {MAX_SCALES} are supported"
                )
            }
            Self::ZeroSide { scale } => write!(f, "schedule: scale {} has a side of 0", scale + 1),
            Self::TooLarge { scale, side } => write!(
                f,
                "schedule: scale {} has a side of {side}, at most {MAX_SIDE} is supported",
                scale + 1
            ),
            Self::FirstNotSingle { found } => write!(
                f,
                "schedule: scale 1 is {found}, expected 1: the first scale is the class token"
            ),
            Self::NotGrowing { scale, found, before } => write!(
                f,
                "schedule: scale {} ({found}) does not grow over scale {scale} ({before})",
                scale + 1
            ),
            Self::NotAScale { scale } => write!(
                f,
                "schedule: entry {} is neither a number nor HxW; expected a list such as 1_2_3 or 1_2x3",
                scale + 1
            ),
        }
    }
}

impl core::error::Error for ScheduleError {}

/// A validated sequence of growing grids. Copying it is cheap; it never allocates.
#[derive(Clone, Copy)]
pub struct ScaleSchedule {
    scales: [Scale; MAX_SCALES],
    /// `starts[i]` is the first token of scale i; `starts[len]` is the number of tokens.
    starts: [u32; MAX_SCALES + 1],
    len: usize,
}

impl ScaleSchedule {
    /// The published schedule for 256 px: 1 2 3 4 5 6 8 10 13 16, 680 tokens.
    pub fn published_256() -> Self {
        const SIDES: [usize; 10] = [1, 2, 3, 4, 5, 6, 8, 10, 13, 16];
        let mut scales = [Scale::square(1); SIDES.len()];
        for (scale, side) in scales.iter_mut().zip(SIDES) {
            *scale = Scale::square(side);
        }
        Self::build(&scales)
    }

    /// Checks and stores a list of scales.
    ///
    /// # Errors
    /// [`ScheduleError`] naming the scale at fault: empty, too many, a side of zero or too long,
    /// a first scale other than 1×1, or a scale that does not grow.
    pub fn new(scales: &[Scale]) -> Result<Self, ScheduleError> {
        if scales.is_empty() {
            return Err(ScheduleError::Empty);
        }
        if scales.len() > MAX_SCALES {
            return Err(ScheduleError::TooMany { found: scales.len() });
        }
        for (i, s) in scales.iter().enumerate() {
            if s.height == 0 || s.width == 0 {
                return Err(ScheduleError::ZeroSide { scale: i });
            }
            let side = s.height.max(s.width);
            if side > MAX_SIDE {
                return Err(ScheduleError::TooLarge { scale: i, side });
            }
        }
        if scales[0].tokens() != 1 {
            return Err(ScheduleError::FirstNotSingle { found: scales[0] });
        }
        for (i, pair) in scales.windows(2).enumerate() {
            let (before, found) = (pair[0], pair[1]);
            if found.height < before.height || found.width < before.width || found == before {
                return Err(ScheduleError::NotGrowing { scale: i + 1, found, before });
            }
        }
        Ok(Self::build(scales))
    }

    /// A schedule of square scales.
    ///
    /// # Errors
    /// As [`ScaleSchedule::new`].
    pub fn from_sides(sides: &[usize]) -> Result<Self, ScheduleError> {
        if sides.len() > MAX_SCALES {
            return Err(ScheduleError::TooMany { found: sides.len() });
        }
        let mut scales = [Scale::square(1); MAX_SCALES];
        for (scale, &side) in scales.iter_mut().zip(sides) {
            *scale = Scale::square(side);
        }
        Self::new(&scales[..sides.len()])
    }

    /// Sums the offsets of scales that have been checked.
    fn build(checked: &[Scale]) -> Self {
        let mut scales = [Scale::square(1); MAX_SCALES];
        let mut starts = [0u32; MAX_SCALES + 1];
        for (i, &s) in checked.iter().enumerate() {
            scales[i] = s;
            starts[i + 1] = starts[i] + s.tokens() as u32;
        }
        Self { scales, starts, len: checked.len() }
    }

    /// The scales, coarse to fine.
    pub fn scales(&self) -> &[Scale] {
        &self.scales[..self.len]
    }

    /// Number of scales N.
    #[allow(clippy::len_without_is_empty)] // a schedule is never empty
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Number of tokens T of all scales together.
    pub const fn tokens(&self) -> usize {
        self.starts[self.len] as usize
    }

    /// The last and largest scale, the one that is decoded to an image.
    pub const fn last(&self) -> Scale {
        self.scales[self.len - 1]
    }

    /// Tokens of scale `scale`; an empty range at the end where there is no such scale.
    pub fn range(&self, scale: usize) -> Range<usize> {
        let i = scale.min(self.len);
        self.starts[i] as usize..self.starts[(i + 1).min(self.len)] as usize
    }

    /// Tokens of the scales in `scales`, which must lie within the schedule (clamped otherwise).
    pub fn span(&self, scales: Range<usize>) -> Range<usize> {
        let (from, to) = (scales.start.min(self.len), scales.end.min(self.len));
        self.starts[from] as usize..self.starts[to.max(from)] as usize
    }

    /// The scale that token `token` belongs to, or `None` past the end.
    pub fn scale_of(&self, token: usize) -> Option<usize> {
        (token < self.tokens())
            .then(|| self.starts[1..=self.len].partition_point(|&s| s as usize <= token))
    }

    /// Scale, row and column of a token, or `None` past the end.
    pub fn place(&self, token: usize) -> Option<TokenPlace> {
        let scale = self.scale_of(token)?;
        let within = token - self.starts[scale] as usize;
        let width = self.scales[scale].width;
        Some(TokenPlace { scale, row: within / width, column: within % width })
    }

    /// The token at a place, or `None` where the schedule has no such place.
    pub fn token(&self, place: TokenPlace) -> Option<usize> {
        let s = self.scales().get(place.scale)?;
        (place.row < s.height && place.column < s.width)
            .then(|| self.starts[place.scale] as usize + place.row * s.width + place.column)
    }

    /// How many tokens token `token` may attend to: all of its own and of earlier scales, which are
    /// the tokens `0..visible(token)`. Zero past the end.
    pub fn visible(&self, token: usize) -> usize {
        self.scale_of(token).map_or(0, |s| self.starts[s + 1] as usize)
    }
}

impl PartialEq for ScaleSchedule {
    fn eq(&self, other: &Self) -> bool {
        self.scales() == other.scales()
    }
}

impl Eq for ScaleSchedule {}

impl fmt::Debug for ScaleSchedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ScaleSchedule({self})")
    }
}

/// `1_2_3` or, where a scale is not square, `1_2x3`; [`FromStr`] reads it back.
impl fmt::Display for ScaleSchedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, s) in self.scales().iter().enumerate() {
            if i > 0 {
                f.write_str("_")?;
            }
            write!(f, "{s}")?;
        }
        Ok(())
    }
}

/// VAR's names for its schedules (`--pn`): the side of the image in pixels, 16 times that of the
/// latents.
const PUBLISHED: [(&str, &[usize]); 3] = [
    ("256", &[1, 2, 3, 4, 5, 6, 8, 10, 13, 16]),
    ("512", &[1, 2, 3, 4, 6, 9, 13, 18, 24, 32]),
    ("1024", &[1, 2, 3, 4, 5, 7, 9, 12, 16, 21, 27, 36, 48, 64]),
];

/// Reads `1_2_3`, `1,2,3` and `1_2x3`, and the names `256`, `512` and `1024` of VAR's schedules.
impl FromStr for ScaleSchedule {
    type Err = ScheduleError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.trim().is_empty() {
            return Err(ScheduleError::Empty);
        }
        if let Some((_, sides)) = PUBLISHED.iter().find(|(name, _)| *name == text.trim()) {
            return Self::from_sides(sides);
        }
        let mut scales = [Scale::square(1); MAX_SCALES];
        let mut found = 0;
        for (i, entry) in text.split(['_', ',']).enumerate() {
            let scale = parse_scale(entry).ok_or(ScheduleError::NotAScale { scale: i })?;
            if let Some(place) = scales.get_mut(i) {
                *place = scale;
            }
            found = i + 1;
        }
        if found > MAX_SCALES {
            return Err(ScheduleError::TooMany { found });
        }
        Self::new(&scales[..found])
    }
}

fn parse_scale(text: &str) -> Option<Scale> {
    match text.split_once(['x', '×']) {
        Some((h, w)) => Some(Scale { height: parse_side(h)?, width: parse_side(w)? }),
        None => parse_side(text).map(Scale::square),
    }
}

/// Parses a side, digits only. A number too large for `usize` becomes `usize::MAX`, which is
/// refused as too large.
fn parse_side(text: &str) -> Option<usize> {
    let digits = text.trim();
    let is_number = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then(|| digits.parse().unwrap_or(usize::MAX))
}
