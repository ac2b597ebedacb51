//! The error numbers that travel on the wire: Linux's, in one table.
//!
//! An error reply carries the negative number and a text. [`text`] is the text when there is no better.

/// One row: the number, its symbol, its text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Errno {
    /// The number, positive.
    pub number: i32,
    /// The symbol of errno(3).
    pub symbol: &'static str,
    /// What it means, in lower case.
    pub text: &'static str,
}

macro_rules! table {
    ($($symbol:ident $number:literal $text:literal)*) => {
        $(#[doc = $text] pub const $symbol: i32 = $number;)*
        /// Every number that has a name here, in ascending order.
        pub const TABLE: &[Errno] = &[
            $(Errno { number: $number, symbol: stringify!($symbol), text: $text },)*
        ];
    };
}

table! {
    EPERM 1 "operation not permitted"
    ENOENT 2 "no such subsystem or address"
    EIO 5 "input or output error"
    E2BIG 7 "argument list too long"
    EAGAIN 11 "try again"
    ENOMEM 12 "out of memory"
    EACCES 13 "permission denied"
    EBUSY 16 "device or resource busy"
    EEXIST 17 "it exists already"
    ENODEV 19 "no such device"
    EINVAL 22 "invalid argument"
    EMFILE 24 "too many open files"
    ENOSPC 28 "no room left"
    EPIPE 32 "the other end is gone"
    ERANGE 34 "out of range"
    ELOOP 40 "too many hops"
    EMSGSIZE 90 "message too long"
    EPROTONOSUPPORT 93 "protocol not supported"
    EOPNOTSUPP 95 "operation not supported"
    EAFNOSUPPORT 97 "address family not supported"
    EADDRINUSE 98 "address already in use"
    EADDRNOTAVAIL 99 "cannot assign requested address"
    ENETDOWN 100 "network is down"
    ENETUNREACH 101 "network is unreachable"
    ECONNRESET 104 "connection reset by peer"
    ENOBUFS 105 "no buffer space available"
    ETIMEDOUT 110 "timed out"
    ECONNREFUSED 111 "connection refused"
    EHOSTUNREACH 113 "no route to host"
}

/// The symbol of `number` (its sign is ignored), if it is in [`TABLE`].
pub fn symbol(number: i32) -> Option<&'static str> {
    find(number).map(|row| row.symbol)
}

/// The text of `number` (its sign is ignored), if it is in [`TABLE`].
pub fn text(number: i32) -> Option<&'static str> {
    find(number).map(|row| row.text)
}

fn find(number: i32) -> Option<&'static Errno> {
    let number = number.checked_abs()?;
    TABLE.binary_search_by_key(&number, |row| row.number).ok().map(|at| &TABLE[at])
}
