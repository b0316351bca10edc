//! Settings of the memory allocator.
#![expect(unsafe_code, reason = "std cannot configure the allocator")]

/// Makes the allocator return large blocks to the system when they are freed. By default, glibc keeps them
/// for one of several arenas, and a server that has freed all of its budget still occupies it.
pub(crate) fn return_large_blocks() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        const LARGE: libc::c_int = 64 * 1024;
        // SAFETY: no memory is involved, and no other thread runs yet.
        unsafe {
            libc::mallopt(libc::M_MMAP_THRESHOLD, LARGE);
            libc::mallopt(libc::M_TRIM_THRESHOLD, LARGE);
            libc::mallopt(libc::M_ARENA_MAX, 2);
        }
    }
}
