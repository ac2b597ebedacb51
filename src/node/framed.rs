//! The client's side of a link over a socket: whole frames in, whole frames out.

use std::io;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncReadExt as _};

use super::outbox::{Outbox, Pushed};
use super::spare::Spare;
use crate::broker::Delivery;
use crate::transport::Stream;
use crate::wire::{Malformed, frame_length};

/// How much a read asks for.
const READ_BYTES: usize = 64 * 1024;

/// Splits a connection into its two directions. The writer gets a task of its own for when the socket is
/// full; at most `outbox_bytes_max` bytes and one frame wait there. Frames of more than `frame_max`
/// bytes are not taken from the peer.
///
/// Call it within a tokio runtime.
pub fn framed(
    stream: Stream,
    outbox_bytes_max: usize,
    frame_max: usize,
) -> (FrameReader, FrameWriter) {
    let outbox =
        Arc::new(Outbox::new(stream.writer, outbox_bytes_max, true, Arc::new(Spare::new(2))));
    let writing = Arc::clone(&outbox);
    tokio::spawn(async move {
        if let Err(error) = writing.write_loop().await {
            tracing::debug!(%error, "cannot write");
        }
    });
    let reader = FrameReader { reader: stream.reader, buffer: BytesMut::new(), frame_max };
    (reader, FrameWriter { outbox })
}

/// Why no further frame comes.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ReadError {
    /// The peer closed the connection inside a frame.
    #[error("the connection ended inside a frame")]
    Cut,
    /// What came is not a frame.
    #[error("the peer sent what is not a frame: {0}")]
    Malformed(#[from] Malformed),
    /// The socket failed.
    #[error("cannot read from the peer")]
    Io(#[from] io::Error),
}

/// Reads whole frames.
pub struct FrameReader {
    reader: Box<dyn AsyncRead + Send + Unpin>,
    buffer: BytesMut,
    frame_max: usize,
}

impl FrameReader {
    /// The next whole frame; `None` when the peer has closed the connection between two frames. Room is
    /// made for what has come and a little more, never for what a length field announces.
    ///
    /// # Errors
    /// See [`ReadError`].
    ///
    /// Cancel-safe.
    pub async fn next(&mut self) -> Result<Option<Bytes>, ReadError> {
        loop {
            match frame_length(&self.buffer, self.frame_max) {
                Ok(Some(length)) if self.buffer.len() >= length => {
                    return Ok(Some(self.buffer.split_to(length).freeze()));
                }
                Ok(_) => {}
                Err(fault) => return Err(Malformed::new(fault, 0).into()),
            }
            self.buffer.reserve(READ_BYTES);
            if self.reader.read_buf(&mut self.buffer).await? == 0 {
                return if self.buffer.is_empty() { Ok(None) } else { Err(ReadError::Cut) };
            }
        }
    }
}

/// Writes whole frames. A cheap handle: clones share one socket.
#[derive(Clone)]
pub struct FrameWriter {
    outbox: Arc<Outbox>,
}

impl FrameWriter {
    /// Sends a run of whole frames; waits while too much is under way. Whether the link was still open.
    ///
    /// Cancel-safe: either all of the run is sent or nothing of it.
    pub async fn send(&self, run: &[u8]) -> bool {
        loop {
            match self.outbox.push(run, Delivery::Hold) {
                Pushed::Full => {
                    self.outbox.flush();
                    self.outbox.room().await;
                }
                Pushed::Closed => return false,
                Pushed::Taken | Pushed::Shed => {
                    self.outbox.flush();
                    return true;
                }
            }
        }
    }

    /// Sends a run of whole frames if there is room, and else drops it. Never waits.
    pub fn offer(&self, run: &[u8]) {
        if self.outbox.push(run, Delivery::Hold) == Pushed::Taken {
            self.outbox.flush();
        }
    }

    /// Waits until everything is handed to the socket, or the link is closed. Cancel-safe.
    pub async fn drained(&self) {
        self.outbox.drained().await;
    }

    /// Waits until the link is closed. Cancel-safe.
    pub async fn closed(&self) {
        self.outbox.closed().await;
    }

    /// Closes the link; what is not written yet is lost.
    pub fn close(&self) {
        self.outbox.close();
    }
}
