//! Check sums of caches: whether bytes are still what they were. Not against anybody who wants to deceive: what has to hold
//! against that is a SHA-256 of [`crate::base::hex`], which costs a hook more than all it has to read.

/// The check sum of `bytes`, XXH64.
pub fn sum(bytes: &[u8]) -> u64 {
    xxhash_rust::xxh64::xxh64(bytes, 0)
}

#[cfg(test)]
mod tests {
    #[test]
    fn it_is_the_published_sum() {
        assert_eq!(super::sum(b""), 0xef46_db37_51d8_e999);
        assert_eq!(super::sum(b"abc"), 0x44bc_2cf5_ad77_0999);
    }
}
