//! Whom a sandbox runs as, seen from this machine.

use std::fs;

use crate::os;

/// Root gives each sandbox an id that nobody has: with root's own, limits would not hold and files
/// of root could be read; with a shared one, sandboxes would share their limits. Anybody else has
/// only the own one, which is None here. An error says what stands in the way.
pub(super) fn choose() -> Result<Option<u32>, &'static str> {
    if os::effective_uid() != 0 {
        return Ok(None);
    }
    let map = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    from_map(&map, crate::os::random::random_u64() as u32)
}

/// How many processes and threads it has already.
pub(super) fn processes_of_this_user() -> u64 {
    let user = os::effective_uid().to_string();
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let texts = entries.filter_map(|entry| fs::read_to_string(entry.path().join("status")).ok());
    let line = |text: &str, name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        line.and_then(|line| line.split_whitespace().next().map(str::to_owned))
    };
    let own = texts.filter(|text| line(text, "Uid:") == Some(user.clone()));
    let threads = own.filter_map(|text| line(&text, "Threads:")?.parse::<u64>().ok());
    threads.sum()
}

/// From the upper half of the largest range, where the fewest users are.
fn from_map(map: &str, random: u32) -> Result<Option<u32>, &'static str> {
    let ranges = map.lines().filter_map(|line| {
        let mut numbers = line.split_whitespace().map(|number| number.parse().ok());
        Some([numbers.next()??, numbers.next()??, numbers.next()??])
    });
    let Some([first, outside, count]) = ranges.max_by_key(|[_, _, count]| *count) else {
        return Err("find an id for the sandbox in /proc/self/uid_map");
    };
    match (outside, count) {
        // Root of a user namespace, and nobody in particular outside of it.
        (1.., 1) => Ok(None),
        (0, 1) => Err("find another id than root's in /proc/self/uid_map, which has no other"),
        // The highest ids are no ids to some systems.
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
    fn ids_come_from_the_upper_half_of_the_largest_range() {
        for random in [0, 12_345, u32::MAX] {
            let id = |map| from_map(map, random).unwrap().unwrap();
            let id = [
                id("         0          0 4294967295\n"),
                id("0 1000 1\n1 100000 65536\n"),
            ];
            assert!((0x4000_0000..0x7000_0000).contains(&id[0]), "{id:?}");
            assert!((32_769..65_537).contains(&id[1]), "{id:?}");
        }
        assert_eq!(from_map("0 1000 1", 5), Ok(None));
        assert!(from_map("0 0 1", 5).is_err());
        assert!(from_map("", 5).is_err());
    }
}
