//! Who may use queues and who may manage them, told by the door through which a request comes: the broker
//! lets only links that may have the subsystem changed through the second one.

use std::future::poll_fn;
use std::pin::pin;
use std::task::{Context, Poll};

use super::engine::Engine;
use super::machine::{Command, Create, Refusal, Send};
use super::options::{Kind, QueueOptions};
use super::protocol::Asked;
use crate::endpoint::{Incoming, Provider};
use crate::wire::errno;

/// What an asker may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Right {
    /// Send to and take from queues that are there, and have transient ones.
    Use,
    /// Everything.
    Manage,
}

/// Where requests come in; at least one.
pub(super) struct Doors(pub(super) Vec<(Provider, Right)>);

impl Doors {
    /// The next thing that comes in; `None` when all have ended. Cancel-safe.
    pub(super) async fn next(&mut self) -> Option<(Incoming, Right)> {
        poll_fn(|context| self.poll(context)).await
    }

    /// What has come in already.
    pub(super) async fn ready(&mut self) -> Option<(Incoming, Right)> {
        poll_fn(|context| match self.poll(context) {
            Poll::Ready(incoming) => Poll::Ready(incoming),
            Poll::Pending => Poll::Ready(None),
        })
        .await
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Option<(Incoming, Right)>> {
        let mut at = 0;
        while at < self.0.len() {
            let (provider, right) = &mut self.0[at];
            let (right, polled) = (*right, pin!(provider.next()).poll(context));
            match polled {
                Poll::Ready(Some(incoming)) => {
                    // the other one is next: neither starves
                    self.0.rotate_left(at + 1);
                    return Poll::Ready(Some((incoming, right)));
                }
                Poll::Ready(None) => drop(self.0.remove(at)),
                Poll::Pending => at += 1,
            }
        }
        if self.0.is_empty() { Poll::Ready(None) } else { Poll::Pending }
    }
}

/// What of a request an asker with this right gets.
///
/// # Errors
/// `EPERM` if it gets none of it.
pub(super) fn limit(
    engine: &impl Engine,
    asked: Asked,
    asker: u32,
    right: Right,
) -> Result<Asked, Refusal> {
    let command = match &asked {
        Asked::Command(command) => command,
        _ if right == Right::Manage => return Ok(asked),
        _ => return refuse("end the broker"),
    };
    if let Command::Destroy { queue, .. }
    | Command::Purge { queue }
    | Command::Ack { queue, force: true, .. } = command
        && engine.owner_of(queue).is_some_and(|owner| owner != asker)
    {
        let text = format!("{queue:?} is for its owner");
        return Err(Refusal { errno: errno::EPERM, text });
    }
    if right == Right::Manage {
        return Ok(asked);
    }
    let owns = |queue: &str| engine.owner_of(queue) == Some(asker);
    match command {
        Command::Create(create) if create.kind == Kind::Persistent => {
            let there = create.queue.as_deref().and_then(|queue| engine.has(queue));
            if there == Some(true) { Ok(asked) } else { refuse("make queues") }
        }
        // it would be made as well
        Command::Create(Create {
            options: Some(QueueOptions { dead_letter: Some(dead), .. }),
            ..
        }) if engine.has(dead) != Some(true) => refuse("make a queue for dead letters"),
        Command::Send(send) if send.create => match engine.has(&send.queue) {
            Some(true) => Ok(asked),
            Some(false) => refuse("make queues"),
            None => {
                let send = Send { create: false, ..send.clone() };
                Ok(Asked::Command(Command::Send(send)))
            }
        },
        Command::Destroy { queue, .. } if !owns(queue) => refuse("destroy queues"),
        Command::Purge { queue } if !owns(queue) => refuse("purge queues"),
        Command::Ack { queue, force: true, .. } if !owns(queue) => {
            refuse("acknowledge what others hold")
        }
        Command::Trace { .. } => refuse("see what happens to messages"),
        Command::Diagnostics { prefix, entries_max, .. } => {
            let (prefix, entries_max) = (prefix.clone(), *entries_max);
            Ok(Asked::Command(Command::Diagnostics { prefix, entries_max, payload_max: 0 }))
        }
        _ => Ok(asked),
    }
}

fn refuse(what: &str) -> Result<Asked, Refusal> {
    let text = format!("only who may change the queues may {what}");
    Err(Refusal { errno: errno::EPERM, text })
}
