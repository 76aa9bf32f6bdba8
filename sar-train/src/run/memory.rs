//! Memory of the machine and of this process, in bytes.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

/// Returns the peak memory of this process, as far as it was queried; `None` if the system does not
/// report it.
pub fn peak() -> Option<u64> {
    // The system's counts are inexact: a later one may be some pages lower.
    static HIGHEST: AtomicU64 = AtomicU64::new(0);
    let peak = kilobytes("/proc/self/status", "VmHWM:")?;
    Some(HIGHEST.fetch_max(peak, Ordering::Relaxed).max(peak))
}

/// Returns the memory that this process may use: that of the machine, or the limit of its job or
/// container.
pub fn total() -> Option<u64> {
    let machine = kilobytes("/proc/meminfo", "MemTotal:")?;
    let limits = limit().into_iter().chain(addresses());
    Some(limits.fold(machine, u64::min))
}

/// Returns the memory that is available without swapping: that of the machine, or what is left of
/// this process's limit.
pub fn available() -> Option<u64> {
    let machine = kilobytes("/proc/meminfo", "MemAvailable:")?;
    let own = |what| kilobytes("/proc/self/status", what).unwrap_or(0);
    let left = limit().map(|limit| limit.saturating_sub(own("VmRSS:")));
    let addresses = addresses().map(|limit| limit.saturating_sub(own("VmSize:")));
    Some(left.into_iter().chain(addresses).fold(machine, u64::min))
}

/// Returns the limit of this process's addresses (`ulimit -v`), if there is one.
fn addresses() -> Option<u64> {
    addresses_in(&std::fs::read_to_string("/proc/self/limits").ok()?)
}

/// Reads the limit that holds, the first of two, in a `/proc/PID/limits`.
fn addresses_in(limits: &str) -> Option<u64> {
    let line = limits.lines().find_map(|line| line.strip_prefix("Max address space"))?;
    line.split_whitespace().next()?.parse().ok()
}

/// Returns the smallest limit of this process's control groups, if it is below the machine's
/// memory.
pub fn limit() -> Option<u64> {
    let groups = std::fs::read_to_string("/proc/self/cgroup").ok()?;
    let machine = kilobytes("/proc/meminfo", "MemTotal:")?;
    limit_of(&groups, Path::new("/sys/fs/cgroup")).filter(|limit| *limit < machine)
}

/// Returns the smallest limit of the groups in a `/proc/PID/cgroup` and all their parents, in
/// versions 1 and 2.
fn limit_of(groups: &str, root: &Path) -> Option<u64> {
    let limits = groups.lines().filter_map(|line| {
        let (_, rest) = line.split_once(':')?;
        let (controllers, path) = rest.split_once(':')?;
        let (root, file) = match controllers {
            "" => (root.to_owned(), "memory.max"),
            all if all.split(',').any(|one| one == "memory") => {
                (root.join("memory"), "memory.limit_in_bytes")
            }
            _ => return None,
        };
        let path = Path::new(path.trim_start_matches('/'));
        // In a container the path may be the one outside of it; then the limit of the root is its
        // own.
        let above = path.ancestors().filter_map(|group| {
            let text = std::fs::read_to_string(root.join(group).join(file)).ok()?;
            text.trim().parse::<u64>().ok()
        });
        above.min()
    });
    limits.min()
}

/// Formats a number of bytes for people: `1.5 GiB`.
pub fn text(bytes: u64) -> String {
    const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
    let mut value = bytes as f64;
    let mut unit = "bytes";
    for larger in UNITS {
        if value < 1024.0 {
            break;
        }
        value /= 1024.0;
        unit = larger;
    }
    if unit == "bytes" { format!("{bytes} bytes") } else { format!("{value:.1} {unit}") }
}

fn kilobytes(file: &str, key: &str) -> Option<u64> {
    let text = std::fs::read_to_string(file).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(key))?;
    line.split_whitespace().next()?.parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_read_well() {
        assert_eq!(text(1000), "1000 bytes");
        assert_eq!(text(1536), "1.5 KiB");
        assert_eq!(text(3 << 30), "3.0 GiB");
    }

    #[test]
    fn the_least_limit_of_all_groups_above_counts() {
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        write("job/memory.max", "8589934592\n");
        write("job/step/memory.max", "max\n");
        assert_eq!(limit_of("0::/job/step/task\n", root.path()), Some(8 << 30));
        assert_eq!(limit_of("0::/elsewhere\n", root.path()), None);
        write("memory/slurm/memory.limit_in_bytes", "4294967296\n");
        write("memory/memory.limit_in_bytes", "9223372036854771712\n");
        let both = "5:cpu:/\n4:hugetlb,memory:/slurm/job\n0::/job\n";
        assert_eq!(limit_of(both, root.path()), Some(4 << 30));
    }

    #[test]
    fn addresses_may_be_limited() {
        let limits = |of: &str| {
            format!("Max cpu time  unlimited  unlimited  seconds\nMax address space  {of}  bytes\n")
        };
        assert_eq!(addresses_in(&limits("307200000            unlimited")), Some(307_200_000));
        assert_eq!(addresses_in(&limits("unlimited            unlimited")), None);
        assert_eq!(addresses_in(""), None);
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn this_process_uses_memory() {
        let (peak, total) = (peak().unwrap_or(0), total().unwrap_or(0));
        assert!(peak > 1 << 20 && peak < total, "{peak} of {total}");
    }
}
