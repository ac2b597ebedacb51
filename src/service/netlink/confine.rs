//! The thread on which netlink sockets are opened and used.

use std::fs::File;
use std::future::Future;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::thread;

use rustix::thread::{
    CapabilitySet, CapabilitySets, LinkNameSpaceType, move_into_link_name_space, set_capabilities,
};
use tokio::runtime::{Builder, Handle};
use tokio::sync::oneshot;

use super::KernelError;

const NETNS_DIR: &str = "/run/netns";

/// A runtime on one thread, which has entered a network namespace and, unless writing is allowed, has
/// given up every capability. Namespace and capabilities belong to the thread alone (capabilities(7),
/// setns(2)); the rest of the process keeps its own.
pub(super) struct Confined {
    runtime: Handle,
    /// The runtime of who made this, whose threads kept their capabilities.
    privileged: Handle,
    /// Dropped to end the thread.
    _stop: oneshot::Sender<()>,
}

impl Confined {
    pub(super) fn start(netns: Option<&str>, allow_write: bool) -> Result<Self, KernelError> {
        let namespace = netns.map(open_namespace).transpose()?;
        let (started, starting) = std::sync::mpsc::sync_channel(1);
        let (stop, stopped) = oneshot::channel::<()>();
        let main = move || {
            let prepared = prepare(namespace, allow_write).and_then(|()| {
                Builder::new_current_thread().enable_all().build().map_err(KernelError::Thread)
            });
            match prepared {
                Ok(runtime) => {
                    if started.send(Ok(runtime.handle().clone())).is_ok() {
                        let _ = runtime.block_on(stopped);
                    }
                }
                Err(error) => drop(started.send(Err(error))),
            }
        };
        thread::Builder::new()
            .name("netlink".to_owned())
            .spawn(main)
            .map_err(KernelError::Thread)?;
        let runtime = starting
            .recv()
            .map_err(|_| KernelError::Thread(io::Error::other("the thread ended")))??;
        Ok(Self { runtime, privileged: Handle::current(), _stop: stop })
    }

    /// Runs a task on the thread.
    pub(super) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.runtime.spawn(task);
    }

    /// Runs a task on the thread and waits for it.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        task: impl Future<Output = io::Result<T>> + Send + 'static,
    ) -> io::Result<T> {
        self.runtime.spawn(task).await.map_err(io::Error::other)?
    }

    /// Runs a task where capabilities are as the process has them, and waits for it.
    pub(super) async fn run_privileged(&self, task: impl Future<Output = ()> + Send + 'static) {
        // a panic there leaves the task undone, which its caller has to expect anyway
        let _ = self.privileged.spawn(task).await;
    }
}

struct Namespace {
    name: String,
    file: File,
}

fn open_namespace(name: &str) -> Result<Namespace, KernelError> {
    let path =
        if name.contains('/') { PathBuf::from(name) } else { Path::new(NETNS_DIR).join(name) };
    match File::open(&path) {
        Ok(file) => Ok(Namespace { name: name.to_owned(), file }),
        Err(source) => Err(KernelError::NoNamespace { name: name.to_owned(), path, source }),
    }
}

fn prepare(namespace: Option<Namespace>, allow_write: bool) -> Result<(), KernelError> {
    if let Some(Namespace { name, file }) = namespace {
        move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))
            .map_err(|source| KernelError::Namespace { name, source: source.into() })?;
    }
    if !allow_write {
        give_up_capabilities().map_err(KernelError::Thread)?;
    }
    Ok(())
}

fn give_up_capabilities() -> io::Result<()> {
    let none = CapabilitySets {
        effective: CapabilitySet::empty(),
        permitted: CapabilitySet::empty(),
        inheritable: CapabilitySet::empty(),
    };
    Ok(set_capabilities(None, none)?)
}
