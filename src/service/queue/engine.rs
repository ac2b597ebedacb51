//! What keeps the queues behind the protocol: commands in, effects out.

use super::machine::{Command, Effect, Machine};
use crate::store::{Store, StoreError, Time};

/// Whatever keeps queues. The service calls it from one task.
pub(super) trait Engine: Send + 'static {
    /// How something that it began has ended.
    type Completion: Send;

    /// Whether there is a queue of this name, if that is known here.
    fn has(&self, queue: &str) -> Option<bool>;

    /// The session whose transient queue this is.
    fn owner_of(&self, queue: &str) -> Option<u32>;

    /// Takes a command of `session`. `token` stands for it in the effects.
    fn handle(&mut self, now: Time, session: u32, token: u64, command: Command);

    /// The end of a session: its link is gone.
    fn handle_gone(&mut self, now: Time, session: u32);

    /// Whether it takes further commands; while it does not, askers wait.
    fn has_room(&self) -> bool;

    /// Waits until something that it began has ended; for ever if nothing is under way. Cancel-safe.
    fn completed(&mut self) -> impl Future<Output = Self::Completion> + Send;

    /// To be called with what [`completed`](Self::completed) returned.
    fn handle_completed(&mut self, now: Time, completion: Self::Completion);

    /// Does what is due, and moves what is to be done to the end of `effects`.
    fn poll_effects(&mut self, now: Time, effects: &mut Vec<Effect>);

    /// Begins what effects wait for, once they were polled.
    fn begin(&mut self, now: Time);

    /// Whether something is under way that a broker does not end without.
    fn is_busy(&self) -> bool;

    /// When effects are to be polled, if nothing else happens.
    fn poll_time(&self) -> Option<Time>;

    /// No further command will come, and nobody is there any more.
    fn handle_end(&mut self, now: Time);
}

/// Queues of this broker alone, in memory and in a store.
pub(super) struct Local {
    machine: Machine,
    store: Store,
}

impl Local {
    pub(super) fn new(machine: Machine, store: Store) -> Self {
        Self { machine, store }
    }
}

impl Engine for Local {
    type Completion = Result<(), StoreError>;

    fn has(&self, queue: &str) -> Option<bool> {
        Some(self.machine.has(queue))
    }

    fn owner_of(&self, queue: &str) -> Option<u32> {
        self.machine.owner_of(queue)
    }

    fn handle(&mut self, now: Time, session: u32, token: u64, command: Command) {
        self.machine.handle(now, session, token, command);
    }

    fn handle_gone(&mut self, now: Time, session: u32) {
        self.machine.handle_gone(now, session);
    }

    fn has_room(&self) -> bool {
        self.store.has_room()
    }

    async fn completed(&mut self) -> Self::Completion {
        self.store.completed().await
    }

    fn handle_completed(&mut self, now: Time, completion: Self::Completion) {
        self.machine.handle_stored(now, completion);
    }

    fn poll_effects(&mut self, now: Time, effects: &mut Vec<Effect>) {
        while let Some(result) = self.store.try_completed() {
            self.machine.handle_stored(now, result);
        }
        self.machine.handle_time(now);
        self.machine.poll_effects(now, effects);
    }

    fn begin(&mut self, now: Time) {
        while self.store.has_room()
            && let Some(batch) = self.machine.poll_batch()
        {
            if let Err(error) = self.store.submit(batch) {
                self.machine.handle_stored(now, Err(error));
            }
        }
    }

    fn is_busy(&self) -> bool {
        self.store.is_busy()
    }

    fn poll_time(&self) -> Option<Time> {
        self.machine.poll_time()
    }

    fn handle_end(&mut self, _now: Time) {}
}
