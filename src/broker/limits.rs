//! The bounds of the core, and what it counts.

use crate::wire::FRAME_MAX;

/// The bounds of everything in the core that a peer can make grow.
///
/// What is past a bound is refused: a frame with ASK comes back with the error number named here, a
/// control message gets it in an ERR, and a counter tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Limits {
    /// Links that are up at once. Default 16,384; a further one is closed at once.
    pub links_max: usize,
    /// Longest frame in bytes that is taken from any link; a longer one closes its link. Default 65,560,
    /// which is also the most there can be.
    pub frame_bytes_max: usize,
    /// Ports of one link that have a return address. Default 1,024; `ENOSPC`. About 100 bytes each.
    pub ports_per_link_max: usize,
    /// The same for a link to another broker. Default 65,536.
    pub ports_per_broker_max: usize,
    /// Return addresses in all. Default 1,048,576; `ENOSPC`.
    pub returns_max: usize,
    /// Subscriptions of one link. Default 1,024, which is also the most there can be; `ENOSPC`.
    pub subscriptions_per_link_max: u32,
    /// The same for a link to another broker, which chooses the numbers itself. Default 65,536; `ENOSPC`.
    pub subscriptions_per_broker_max: usize,
    /// Conditions of one subscription. Default 16; `E2BIG`. Each is compared with each broadcast.
    pub keys_per_subscription_max: usize,
    /// Names of subsystems, those without a provider included. Default 4,096; `ENOSPC`.
    pub subsystems_max: usize,
    /// Providers of one name. Default 256; `ENOSPC`.
    pub providers_per_subsystem_max: usize,
    /// Requests that wait for one provider behind a connection and whose askers are told if it goes.
    /// Default 65,536; the askers of further ones wait for their deadline. About 50 bytes each.
    pub open_requests_per_link_max: usize,
    /// Links to other brokers that this one makes. Default 64; `ENOSPC`.
    pub uplinks_max: usize,
    /// Length of a subsystem's name in bytes. Default 255; `EINVAL`.
    pub name_bytes_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            links_max: 16_384,
            frame_bytes_max: FRAME_MAX,
            ports_per_link_max: 1_024,
            ports_per_broker_max: 65_536,
            returns_max: 1 << 20,
            subscriptions_per_link_max: 1_024,
            subscriptions_per_broker_max: 65_536,
            keys_per_subscription_max: 16,
            subsystems_max: 4_096,
            providers_per_subsystem_max: 256,
            open_requests_per_link_max: 65_536,
            uplinks_max: 64,
            name_bytes_max: 255,
        }
    }
}

/// What the core has seen since it started; every number only grows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Counters {
    /// Whole frames taken in.
    pub frames: u64,
    /// Control frames among them.
    pub control: u64,
    /// Frames for a subsystem that were sent on to a provider.
    pub requests: u64,
    /// Frames for a return address that were sent on.
    pub replies: u64,
    /// Frames for subscribers.
    pub broadcasts: u64,
    /// Broadcasts that no subscription wanted.
    pub unwanted: u64,
    /// Links that were closed because their bytes made no sense.
    pub malformed: u64,
    /// Frames that came back to their sender as an EXCEPTION.
    pub exceptions: u64,
    /// Frames that were dropped because nobody could take them and nobody asked to know.
    pub dropped: u64,
    /// Frames and control messages that the link had no right to send.
    pub forbidden: u64,
    /// Frames that were longer than the target takes.
    pub too_long: u64,
    /// Frames for a return address that is gone.
    pub stale: u64,
    /// Frames and control messages refused because a bound of [`Limits`] was reached.
    pub over_limit: u64,
    /// Requests whose askers were told that the provider went.
    pub given_up: u64,
    /// Requests whose askers would not be told if their provider went, because
    /// [`Limits::open_requests_per_link_max`] was reached.
    pub untracked: u64,
    /// Broadcasts that came a second time, by another way.
    pub duplicates: u64,
    /// Frames that came through more brokers than may be.
    pub looped: u64,
    /// Commands of this broker that another one refused.
    pub refused: u64,
    /// Links refused because [`Limits::links_max`] was reached.
    pub links_refused: u64,
}

impl Counters {
    /// All of it, by name.
    pub fn named(&self) -> Vec<(&'static str, u64)> {
        let Self {
            frames,
            control,
            requests,
            replies,
            broadcasts,
            unwanted,
            malformed,
            exceptions,
            dropped,
            forbidden,
            too_long,
            stale,
            over_limit,
            given_up,
            untracked,
            duplicates,
            looped,
            refused,
            links_refused,
        } = *self;
        vec![
            ("frames", frames),
            ("control", control),
            ("requests", requests),
            ("replies", replies),
            ("broadcasts", broadcasts),
            ("unwanted", unwanted),
            ("malformed", malformed),
            ("exceptions", exceptions),
            ("dropped", dropped),
            ("forbidden", forbidden),
            ("too_long", too_long),
            ("stale", stale),
            ("over_limit", over_limit),
            ("given_up", given_up),
            ("untracked", untracked),
            ("duplicates", duplicates),
            ("looped", looped),
            ("refused", refused),
            ("links_refused", links_refused),
        ]
    }
}
