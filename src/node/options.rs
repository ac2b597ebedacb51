//! The knobs of a node.

use std::time::Duration;

use crate::broker::Limits;

/// The bounds and times of a [`Node`](super::Node).
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct NodeOptions {
    /// The bounds of the core.
    pub limits: Limits,
    /// What may wait for one link, in bytes, before its senders are held back or its broadcasts are
    /// dropped. Default 4 MiB; passed by at most one read of 128 KiB. Raising it costs memory for each
    /// link that does not read.
    pub outbox_bytes_max: usize,
    /// What one link may have waiting at a service inside the process, in bytes. Default 1 MiB.
    pub credit_bytes_max: usize,
    /// The same in frames. Default 1,024.
    pub credit_frames_max: usize,
    /// How long the beginning of a frame waits for its end before the link is closed. Default 30 s.
    pub half_frame_max: Duration,
    /// How long a TLS connection may take from being accepted to its first whole frame, handshake included,
    /// before it is closed. Default 5 s. Plain connections are left alone: a client of the original may
    /// connect and say nothing until it has something to send.
    pub first_frame_max: Duration,
    /// How long an answer waits for room at an asker that does not read before that asker's link is
    /// closed. Default 10 s.
    pub reply_hold_max: Duration,
    /// How long a peer may take to read its last answers and close when the node shuts down; one that goes
    /// on sending after that is reset, and may lose them. Default 2 s; a peer that does not close delays the
    /// shutdown by this.
    pub linger_max: Duration,
    /// How many commands that take sockets or files may be under way at once; a further one is answered with
    /// `EBUSY`. Default 64.
    pub orders_max: usize,
    /// How many read buffers of 128 KiB are kept while nobody uses them, and sixteen times as
    /// many pieces of 32 KiB for what waits at sockets. Default 16, so 10 MiB in all.
    pub spare_buffers_max: usize,
}

impl Default for NodeOptions {
    fn default() -> Self {
        Self {
            limits: Limits::default(),
            outbox_bytes_max: 4 << 20,
            credit_bytes_max: 1 << 20,
            credit_frames_max: 1_024,
            half_frame_max: Duration::from_secs(30),
            first_frame_max: Duration::from_secs(5),
            reply_hold_max: Duration::from_secs(10),
            linger_max: Duration::from_secs(2),
            orders_max: 64,
            spare_buffers_max: 16,
        }
    }
}
