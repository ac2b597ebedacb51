//! libzmq: its proxy as a broker, and ZMTP 3.0 (rfc.zeromq.org/spec/23) as far as a load needs it.
#![allow(unsafe_code)] // a C library is called

use std::ffi::{c_char, c_int, c_void};
use std::net::TcpStream;
use std::time::Duration;
use std::{io::Read as _, io::Write as _, ptr};

use anyhow::{Context as _, bail};
use libloading::{Library, Symbol};

use crate::engine::{Cut, Dialect, Port, Role, Stream};

const LIBRARY: &str = "libzmq.so.5";
/// zmq.h
const LAST_ENDPOINT: c_int = 32;
const SNDHWM: c_int = 23;
const RCVHWM: c_int = 24;
const DEALER: c_int = 5;
const ROUTER: c_int = 6;
const PULL: c_int = 7;
const PUSH: c_int = 8;
const XPUB: c_int = 9;
const XSUB: c_int = 10;

/// Flags of a ZMTP frame.
const MORE: u8 = 1;
const LONG: u8 = 2;
const COMMAND: u8 = 4;

/// Nothing says when a subscription has come through; by then it has.
const SUBSCRIBED_AFTER: Duration = Duration::from_millis(200);

type SocketFn = unsafe extern "C" fn(*mut c_void, c_int) -> *mut c_void;
type SetFn = unsafe extern "C" fn(*mut c_void, c_int, *const c_void, usize) -> c_int;
type GetFn = unsafe extern "C" fn(*mut c_void, c_int, *mut c_void, *mut usize) -> c_int;
type BindFn = unsafe extern "C" fn(*mut c_void, *const c_char) -> c_int;
type ProxyFn = unsafe extern "C" fn(*mut c_void, *mut c_void, *mut c_void) -> c_int;

/// The version of the library; `None` if it is not installed.
pub(crate) fn version() -> Option<String> {
    let mut parts: [c_int; 3] = [0; 3];
    let [major, minor, patch] = &mut parts;
    // SAFETY: zmq_version of zmq.h writes three ints; the library has no other business at its start.
    unsafe {
        let library = Library::new(LIBRARY).ok()?;
        type VersionFn = unsafe extern "C" fn(*mut c_int, *mut c_int, *mut c_int);
        let version: Symbol<'_, VersionFn> = library.get(b"zmq_version").ok()?;
        version(major, minor, patch);
    }
    Some(format!("{}.{}.{}", parts[0], parts[1], parts[2]))
}

/// Runs zmq_proxy for `kind` until it is killed. Says where its two sides are.
pub(crate) fn serve(kind: &str) -> anyhow::Result<()> {
    let (front, back) = match kind {
        "reqrep" => (ROUTER, DEALER),
        "push" => (PULL, PUSH),
        "fanout" => (XSUB, XPUB),
        _ => bail!("{kind} is no proxy"),
    };
    // SAFETY: signatures are those of zmq.h; pointers come from the library itself and live as long as this
    // process does; buffers are as long as is said.
    unsafe {
        let library = Library::new(LIBRARY)?;
        let context: Symbol<'_, unsafe extern "C" fn() -> *mut c_void> =
            library.get(b"zmq_ctx_new")?;
        let context = context();
        let make: Symbol<'_, SocketFn> = library.get(b"zmq_socket")?;
        let set: Symbol<'_, SetFn> = library.get(b"zmq_setsockopt")?;
        let get: Symbol<'_, GetFn> = library.get(b"zmq_getsockopt")?;
        let bind: Symbol<'_, BindFn> = library.get(b"zmq_bind")?;
        let proxy: Symbol<'_, ProxyFn> = library.get(b"zmq_proxy")?;
        let open = |kind| -> anyhow::Result<(*mut c_void, String)> {
            let socket = make(context, kind);
            // without a limit: a message that is dropped would be counted as lost
            for option in [SNDHWM, RCVHWM] {
                let none: c_int = 0;
                set(socket, option, (&raw const none).cast(), size_of::<c_int>());
            }
            if bind(socket, c"tcp://127.0.0.1:*".as_ptr()) != 0 {
                bail!("zmq_bind: {}", std::io::Error::last_os_error());
            }
            let (mut name, mut length) = ([0_u8; 256], 256);
            get(socket, LAST_ENDPOINT, name.as_mut_ptr().cast(), &raw mut length);
            let name = name.get(..length.saturating_sub(1)).unwrap_or_default();
            Ok((socket, String::from_utf8_lossy(name).into_owned()))
        };
        let (front, front_url) = open(front)?;
        let (back, back_url) = open(back)?;
        println!("listening on {front_url} {back_url}");
        proxy(front, back, ptr::null_mut());
    }
    bail!("zmq_proxy ended")
}

/// A proxy.
pub(crate) struct Zmtp {
    front: String,
    back: String,
}

impl Zmtp {
    /// `said` is what the proxy said of itself.
    pub(crate) fn new(said: &str) -> anyhow::Result<Self> {
        let (front, back) = said.split_once(' ').context("the proxy has two sides")?;
        let bare = |url: &str| url.trim_start_matches("tcp://").to_owned();
        Ok(Self { front: bare(front), back: bare(back) })
    }
}

impl Dialect for Zmtp {
    type Port = ZmtpPort;

    fn open(&self, role: Role) -> anyhow::Result<(Box<dyn Stream>, ZmtpPort)> {
        let (kind, at) = match role {
            Role::Asks(_) => ("DEALER", &self.front),
            Role::Answers => ("DEALER", &self.back),
            Role::Pushes(_) => ("PUSH", &self.front),
            Role::Pulls => ("PULL", &self.back),
            Role::Publishes => ("PUB", &self.front),
            Role::Subscribes => ("SUB", &self.back),
            Role::Idles => bail!("libzmq is not measured idle"),
        };
        let mut stream = TcpStream::connect(at)?;
        stream.set_nodelay(true)?;
        shake_hands(&mut stream, kind)?;
        if role == Role::Subscribes {
            stream.write_all(&[0, 1, 1])?;
        }
        if role == Role::Publishes {
            std::thread::sleep(SUBSCRIBED_AFTER);
        }
        Ok((Box::new(stream), ZmtpPort { listens: role != Role::Publishes }))
    }

    fn run(&self) -> u32 {
        1
    }
}

fn shake_hands(stream: &mut TcpStream, kind: &str) -> anyhow::Result<()> {
    let mut greeting = [0; 64];
    greeting[0] = 0xff;
    greeting[9] = 0x7f;
    greeting[10] = 3;
    greeting[12..16].copy_from_slice(b"NULL");
    stream.write_all(&greeting)?;
    stream.read_exact(&mut greeting)?;
    let mut ready = b"\x05READY\x0bSocket-Type".to_vec();
    ready.extend_from_slice(&(kind.len() as u32).to_be_bytes());
    ready.extend_from_slice(kind.as_bytes());
    stream.write_all(&[COMMAND, ready.len() as u8])?;
    stream.write_all(&ready)?;
    let mut head = [0; 2];
    stream.read_exact(&mut head)?;
    let mut body = vec![0; usize::from(head[1])];
    stream.read_exact(&mut body)?;
    if head[0] != COMMAND || !body.starts_with(b"\x05READY") {
        bail!("libzmq refuses the connection");
    }
    Ok(())
}

pub(crate) struct ZmtpPort {
    /// What comes are messages, and not subscriptions of others.
    listens: bool,
}

impl Port for ZmtpPort {
    #[inline]
    fn emit(&mut self, payload: &[u8], out: &mut Vec<u8>) -> anyhow::Result<()> {
        match u8::try_from(payload.len()) {
            Ok(length) => out.extend_from_slice(&[0, length]),
            Err(_) => {
                out.push(LONG);
                out.extend_from_slice(&(payload.len() as u64).to_be_bytes());
            }
        }
        out.extend_from_slice(payload);
        Ok(())
    }

    #[inline]
    fn cut(&mut self, bytes: &[u8]) -> anyhow::Result<Option<Cut>> {
        let mut start = 0;
        loop {
            let Some(&flags) = bytes.get(start) else { return Ok(None) };
            let (body, length) = if flags & LONG == 0 {
                let Some(length) = bytes.get(start + 1) else { return Ok(None) };
                (start + 2, usize::from(*length))
            } else {
                let Some(length) = bytes.get(start + 1..).and_then(|rest| rest.first_chunk())
                else {
                    return Ok(None);
                };
                (start + 9, u64::from_be_bytes(*length) as usize)
            };
            let end = body.saturating_add(length);
            if end > bytes.len() {
                return Ok(None);
            }
            if flags & MORE == 0 {
                let message = self.listens && flags & COMMAND == 0;
                return Ok(Some(Cut { length: end, payload: message.then_some(body..end) }));
            }
            start = end;
        }
    }

    fn answer(&mut self, item: &[u8], _: &Cut, out: &mut Vec<u8>) -> anyhow::Result<()> {
        // the part that says whose it is comes first and goes back
        out.extend_from_slice(item);
        Ok(())
    }
}
