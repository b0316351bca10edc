//! The mappings of a process, from `/proc/PID/maps` and `smaps`.

/// A mapping of a file or a shared object.
pub(crate) struct Mapping<'a> {
    pub(crate) inode: u64,
    /// Position in the file where the mapping ends.
    pub(crate) end: u64,
    pub(crate) path: &'a str,
}

impl Mapping<'_> {
    /// Parses a line such as `7f00-7f01 rw-s 00000000 00:01 1024  /dev/zero (deleted)`.
    pub(crate) fn parse(line: &str) -> Option<Mapping<'_>> {
        let mut fields = line.splitn(6, ' ');
        let (from, to) = fields.next()?.split_once('-')?;
        let hexadecimal = |text| u64::from_str_radix(text, 16).ok();
        let size = hexadecimal(to)?.checked_sub(hexadecimal(from)?)?;
        // After the permissions. The device follows.
        let offset = hexadecimal(fields.nth(1)?)?;
        Some(Mapping {
            inode: fields.nth(1)?.parse().ok()?,
            end: offset.checked_add(size)?,
            path: fields.next()?.trim_start(),
        })
    }
}
