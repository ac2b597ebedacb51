//! Finding frame borders in a stream of bytes.

use super::fault::{Fault, Malformed};

/// The shortest frame: a header, an envelope, and the header of an empty CDATA.
pub const FRAME_MIN: usize = super::PAYLOAD_OFFSET;

/// The default limit of a frame: an envelope with one attribute of the longest kind, padded.
pub const FRAME_MAX: usize = super::align4(super::PAYLOAD_OFFSET + super::PAYLOAD_MAX);

/// The most that a link takes that has not said HELLO: clients of the original read this much at a time.
pub const LEGACY_FRAME_MAX: usize = 16_384;

/// The length of the frame that `bytes` start with; `None` if there are not four bytes yet.
///
/// The length is judged as soon as it is known, before anything is reserved or waited for. The frame may
/// not be complete: compare with `bytes.len()`.
///
/// # Errors
/// [`Fault::FrameTooShort`] below [`FRAME_MIN`], [`Fault::FrameTooLong`] above `frame_max`,
/// [`Fault::FrameUnaligned`] if not a multiple of 4.
#[inline(always)]
pub fn frame_length(bytes: &[u8], frame_max: usize) -> Result<Option<usize>, Fault> {
    let Some(&length) = bytes.first_chunk::<4>() else {
        return Ok(None);
    };
    let length = u32::from_le_bytes(length) as usize;
    if length < FRAME_MIN || length > frame_max || length & 3 != 0 {
        return Err(misfit(length, frame_max));
    }
    Ok(Some(length))
}

#[cold]
fn misfit(length: usize, frame_max: usize) -> Fault {
    if length < FRAME_MIN {
        Fault::FrameTooShort
    } else if length > frame_max {
        Fault::FrameTooLong
    } else {
        Fault::FrameUnaligned
    }
}

/// Walks the whole frames at the start of a buffer, in place.
///
/// Invariant: `consumed` bytes are whole frames, each of at most `frame_max` bytes. What follows them is
/// the beginning of a frame, or, if [`fault`](Self::fault) says so, garbage.
#[derive(Debug)]
pub struct Frames<'a> {
    bytes: &'a mut [u8],
    consumed: usize,
    frame_max: usize,
    fault: Option<Malformed>,
}

impl<'a> Frames<'a> {
    /// Walks `bytes`, taking no frame longer than `frame_max` bytes.
    #[inline]
    pub fn new(bytes: &'a mut [u8], frame_max: usize) -> Self {
        Self { bytes, consumed: 0, frame_max, fault: None }
    }

    /// The next whole frame: its offset in the buffer and its bytes, at least [`FRAME_MIN`] of them.
    #[inline(always)]
    pub fn next_frame(&mut self) -> Option<(usize, &mut [u8])> {
        let start = self.consumed;
        let rest = self.bytes.get_mut(start..)?;
        match frame_length(rest, self.frame_max) {
            Ok(Some(length)) => {
                let frame = rest.get_mut(..length)?;
                self.consumed = start + length;
                Some((start, frame))
            }
            Ok(None) => None,
            Err(fault) => {
                self.fault = Some(Malformed::new(fault, start));
                None
            }
        }
    }

    /// How many bytes the frames so far took.
    #[inline]
    pub fn consumed(&self) -> usize {
        self.consumed
    }

    /// Why the walk cannot go on, if bytes and not their absence ended it. The stream is then lost: the
    /// border of the next frame cannot be known.
    #[inline]
    pub fn fault(&self) -> Option<Malformed> {
        self.fault
    }
}
