//! How many KV-cache blocks there is room for.

/// KV-cache memory on a CPU where none was asked for, at most.
const DEFAULT_CPU_BYTES: u64 = 4 << 30;
/// Share of the memory now available that the default may take.
const DEFAULT_CPU_SHARE: f64 = 0.4;

/// The number of blocks to allocate: what `asked` bytes hold, or by default
/// what is reasonable for this machine; never more than `useful_blocks`, which
/// all seats together could fill.
pub(crate) fn num_blocks(asked: Option<u64>, block_bytes: usize, useful_blocks: usize) -> usize {
    let bytes = asked.unwrap_or_else(default_bytes);
    let blocks = usize::try_from(bytes / block_bytes as u64).unwrap_or(usize::MAX);
    if asked.is_some() { blocks } else { blocks.min(useful_blocks) }
}

fn default_bytes() -> u64 {
    let available = available_bytes().unwrap_or(DEFAULT_CPU_BYTES);
    DEFAULT_CPU_BYTES.min((available as f64 * DEFAULT_CPU_SHARE) as u64)
}

/// What the kernel says could be had without swapping; Linux only.
fn available_bytes() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find(|line| line.starts_with("MemAvailable:"))?;
    let kib: u64 = line.split_ascii_whitespace().nth(1)?.parse().ok()?;
    Some(kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::num_blocks;

    #[test]
    fn an_asked_size_is_taken_at_its_word_and_the_default_is_capped_by_use() {
        assert_eq!(num_blocks(Some(10_000), 1_000, 5), 10);
        assert_eq!(num_blocks(None, 1_000, 5), 5);
        assert_eq!(num_blocks(Some(999), 1_000, 5), 0);
    }
}
