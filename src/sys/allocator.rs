//! The heap of glibc, told that we are small.

/// One arena for all threads, and freed memory goes back early: daemons of a few threads gain
/// nothing from an arena each. `mallopt(3)`. Call before the first thread starts.
pub fn keep_heap_small() {
    const TRIM_THRESHOLD_BYTES: libc::c_int = 64 * 1024;
    // SAFETY: mallopt only stores its arguments; no other thread runs yet by this function's contract,
    // and even if one did, glibc locks the main arena around the change.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
        libc::mallopt(libc::M_TRIM_THRESHOLD, TRIM_THRESHOLD_BYTES);
    }
}
