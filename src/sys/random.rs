//! Bytes that nobody can guess, for names. It cannot fail: a program without a descriptor to spare, or with a `/dev` that it
//! may not read, needs names all the same.

#![expect(unsafe_code, reason = "the system's random bytes")]

use nix::libc;

/// 16 random bytes, as the kernel has them.
#[cfg(target_os = "linux")]
pub fn bytes() -> [u8; 16] {
    let mut out = [0_u8; 16];
    loop {
        // SAFETY: the buffer is ours and as long as said. So few bytes come at once or not at all.
        let n = unsafe { libc::getrandom(out.as_mut_ptr().cast(), out.len(), 0) };
        if n == 16 {
            return out;
        }
        if n >= 0 || std::io::Error::last_os_error().kind() != std::io::ErrorKind::Interrupted {
            return of_this_process();
        }
    }
}

/// Made of the 16 random bytes that the kernel gives every program at its start, never the same twice.
#[cfg(target_os = "linux")]
fn of_this_process() -> [u8; 16] {
    use std::sync::atomic::{AtomicU64, Ordering};

    use sha2::Digest as _;

    static COUNT: AtomicU64 = AtomicU64::new(0);
    let mut hash = sha2::Sha256::new();
    // SAFETY: a question without side effects.
    let start = unsafe { libc::getauxval(libc::AT_RANDOM) } as *const [u8; 16];
    if !start.is_null() {
        // SAFETY: the kernel's answer is the address of 16 bytes that stay readable for the life of the process.
        hash.update(unsafe { start.read_unaligned() });
    }
    hash.update(COUNT.fetch_add(1, Ordering::Relaxed).to_ne_bytes());
    hash.update(std::process::id().to_ne_bytes());
    hash.update(super::clock::stamp());
    let mut out = [0_u8; 16];
    out.copy_from_slice(&hash.finalize()[..16]);
    out
}

/// 16 random bytes.
#[cfg(not(target_os = "linux"))]
pub fn bytes() -> [u8; 16] {
    let mut out = [0_u8; 16];
    // SAFETY: the buffer is ours and as long as said; the call cannot fail.
    unsafe { libc::arc4random_buf(out.as_mut_ptr().cast(), out.len()) };
    out
}

/// 128 random bits in hex.
pub fn hex() -> String {
    crate::base::hex::encode(&bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_are_the_same_with_or_without_the_system() {
        let mut all: Vec<[u8; 16]> = (0..1000).map(|_| bytes()).collect();
        #[cfg(target_os = "linux")]
        all.extend((0..1000).map(|_| of_this_process()));
        let count = all.len();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), count);
        assert_eq!(hex().len(), 32);
    }
}
