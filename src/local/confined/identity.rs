//! The user that a sandbox runs as on the host.

use std::fs;

use crate::os;
use crate::os::random::random_u64;

/// Chooses the user id of a new sandbox, or returns `None` for the id of this process.
///
/// Root gives each sandbox an id that is not in use. With root's own id, resource limits would not
/// apply and root's files would be readable; with a shared id, sandboxes would share their limits.
/// Other users cannot change their id. The error is the step that failed.
pub(super) fn choose_user() -> Result<Option<u32>, &'static str> {
    if os::effective_uid() != 0 {
        return Ok(None);
    }
    let map = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    from_uid_map(&map, random_u64() as u32)
}

/// Counts the processes and threads of this user.
pub(super) fn processes_of_this_user() -> u64 {
    let user = os::effective_uid().to_string();
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let texts = entries.filter_map(|entry| os::read_lossy(entry.path().join("status")).ok());
    let line = |text: &str, name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        line.and_then(|line| line.split_whitespace().next().map(str::to_owned))
    };
    let own = texts.filter(|text| line(text, "Uid:") == Some(user.clone()));
    let threads = own.filter_map(|text| line(&text, "Threads:")?.parse::<u64>().ok());
    threads.sum()
}

/// Chooses an id from the largest range, where ids are rarely in use.
fn from_uid_map(map: &str, random: u32) -> Result<Option<u32>, &'static str> {
    let ranges = map.lines().filter_map(|line| {
        let mut numbers = line.split_whitespace().map(|number| number.parse().ok());
        Some([numbers.next()??, numbers.next()??, numbers.next()??])
    });
    let Some([first, outside, count]) = ranges.max_by_key(|[_, _, count]| *count) else {
        return Err("find a user id for the sandbox in /proc/self/uid_map");
    };
    match (outside, count) {
        // Root of a user namespace is an ordinary user outside of it.
        (1.., 1) => Ok(None),
        (0, 1) => Err("find a user id other than root's in /proc/self/uid_map"),
        // Above the ranges of systemd-nspawn and SSSD, and below those that systemd reserves.
        _ if count > 0x8000_0000 => Ok(Some(first + 0x7800_0000 + random % 0x07f0_0000)),
        _ => {
            let half = (count / 2).min(0x4000_0000);
            Ok(Some(first + half + random % half.min(0x3000_0000)))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_come_from_rarely_used_ranges() {
        for random in [0, 12_345, u32::MAX] {
            let id = |map| from_uid_map(map, random).unwrap().unwrap();
            let id = [
                id("         0          0 4294967295\n"),
                id("0 1000 1\n1 100000 65536\n"),
            ];
            assert!((0x7800_0000..0x7ff0_0000).contains(&id[0]), "{id:?}");
            assert!((32_769..65_537).contains(&id[1]), "{id:?}");
        }
        assert_eq!(from_uid_map("0 1000 1", 5), Ok(None));
        assert!(from_uid_map("0 0 1", 5).is_err());
        assert!(from_uid_map("", 5).is_err());
    }
}
