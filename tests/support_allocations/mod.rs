//! A global allocator that counts.

#![allow(dead_code, reason = "each test file uses its own part")]
#![allow(unsafe_code)] // a global allocator cannot be written without

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Counts the allocations of each thread, so that tests do not see each other's, and those of all threads that
/// are watched.
struct Counting;

/// Of the threads that are watched.
pub(crate) static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    /// Of this thread.
    pub(crate) static OWN: Cell<usize> = const { Cell::new(0) };
    /// Whether this thread is watched.
    pub(crate) static WATCHED: Cell<bool> = const { Cell::new(false) };
}

fn count() {
    // A thread that is being torn down has no counter any more, and no test.
    let _ = OWN.try_with(|own| own.set(own.get() + 1));
    if WATCHED.try_with(Cell::get) == Ok(true) {
        ALLOCATIONS.fetch_add(1, Ordering::SeqCst);
    }
}

// SAFETY: every method hands its arguments to the system's allocator as they are.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps the contract of `dealloc`; `block` came from `System`.
        unsafe { System.dealloc(block, layout) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        // SAFETY: the caller keeps the contract of `realloc`; `block` came from `System`.
        unsafe { System.realloc(block, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;
