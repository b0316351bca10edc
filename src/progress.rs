//! Progress of uploads.

/// Progress of an [`Upload`](crate::Upload), in bytes of the files in it.
///
/// If the sizes of the files are unknown, as for an archive that the caller has made, these are bytes of
/// the archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UploadProgress {
    pub(crate) sent: u64,
    pub(crate) total: Option<u64>,
}

impl UploadProgress {
    /// Returns the number of bytes that have been sent. It starts again if the upload does.
    #[must_use]
    pub fn sent(&self) -> u64 {
        self.sent
    }

    /// Returns the number of bytes to send, if known.
    #[must_use]
    pub fn total(&self) -> Option<u64> {
        self.total
    }
}

/// Maximum number of points in a map.
const MAX_POINTS: usize = 4096;

/// First distance between two points, in unpacked bytes. It doubles whenever the map is full.
const FIRST_STEP: u64 = 64 * 1024;

/// Maps positions in a compressed archive to bytes of the files in it.
#[derive(Debug)]
pub(crate) struct ContentMap {
    /// Positions in the compressed and in the unpacked archive, in order.
    points: Vec<(u64, u64)>,
    step: u64,
    /// The size of all files, in bytes.
    files: u64,
}

impl ContentMap {
    pub(crate) fn new() -> ContentMap {
        ContentMap {
            points: vec![(0, 0)],
            step: FIRST_STEP,
            files: 0,
        }
    }

    /// Records that a file of this size follows.
    pub(crate) fn add_file(&mut self, size: u64) {
        self.files = self.files.saturating_add(size);
    }

    /// Records that this part of the unpacked archive has become this part of the compressed one.
    pub(crate) fn record(&mut self, compressed: u64, unpacked: u64) {
        let last = self.last();
        if compressed <= last.0 || unpacked < last.1 + self.step {
            return;
        }
        if self.points.len() == MAX_POINTS {
            let mut index = 0;
            self.points.retain(|_| {
                index += 1;
                index % 2 == 1
            });
            self.step *= 2;
        }
        self.points.push((compressed, unpacked));
    }

    /// Records the sizes of the compressed and of the unpacked archive.
    pub(crate) fn end(&mut self, compressed: u64, unpacked: u64) {
        self.points.push((compressed, unpacked));
    }

    /// Returns how many bytes of files this part of the compressed archive holds, about.
    pub(crate) fn progress(&self, compressed: u64) -> UploadProgress {
        let (_, unpacked) = self.last();
        let at = self.unpacked_at(compressed);
        let sent = u128::from(self.files) * u128::from(at) / u128::from(unpacked.max(1));
        UploadProgress {
            sent: u64::try_from(sent).unwrap_or(u64::MAX),
            total: Some(self.files),
        }
    }

    fn unpacked_at(&self, compressed: u64) -> u64 {
        let next = self.points.partition_point(|point| point.0 <= compressed);
        let (Some(from), Some(to)) = (self.points.get(next.wrapping_sub(1)), self.points.get(next))
        else {
            return self.last().1;
        };
        let (part, whole) = (compressed - from.0, to.0 - from.0);
        let unpacked = u128::from(to.1 - from.1) * u128::from(part) / u128::from(whole);
        from.1 + u64::try_from(unpacked).unwrap_or(u64::MAX)
    }

    fn last(&self) -> (u64, u64) {
        self.points.last().copied().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_is_in_bytes_of_the_files() {
        let mut map = ContentMap::new();
        map.add_file(1_000_000);
        // The first half compresses a hundred times better than the second one.
        map.record(5_000, 500_000);
        map.end(505_000, 1_000_000);
        let sent = |compressed| map.progress(compressed).sent();
        assert_eq!(map.progress(0).total(), Some(1_000_000));
        assert_eq!([sent(0), sent(2_500), sent(5_000)], [0, 250_000, 500_000]);
        assert_eq!(
            [sent(255_000), sent(505_000), sent(u64::MAX)],
            [750_000, 1_000_000, 1_000_000]
        );
    }

    #[test]
    fn map_of_a_large_archive_stays_small() {
        let mut map = ContentMap::new();
        for at in 1..100_000 {
            map.record(at * FIRST_STEP, at * FIRST_STEP);
        }
        assert!(map.points.len() <= MAX_POINTS);
        assert!(map.points.is_sorted_by(|a, b| a.0 < b.0 && a.1 < b.1));
    }

    #[test]
    fn empty_files_are_complete_from_the_start() {
        let mut map = ContentMap::new();
        map.add_file(0);
        map.end(40, 1024);
        assert_eq!(
            map.progress(40),
            UploadProgress {
                sent: 0,
                total: Some(0)
            }
        );
    }
}
