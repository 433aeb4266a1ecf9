//! Pages of the binary that only the start needs.

use std::io;
use std::ops::Range;

use nix::errno::Errno;

/// Unmaps the pages of the running binary that nobody has written to, `madvise(2)` `MADV_DONTNEED`. Those that are
/// needed again come back one fault each, from the page cache; the others, which only the start needed, no longer
/// count as resident, and the kernel takes them first when memory is short. Call once a daemon has settled.
///
/// # Errors
/// When `/proc/self/smaps` cannot be read, or the kernel refuses; then all stays as it was.
pub fn forget_start() -> io::Result<()> {
    let maps = std::fs::read_to_string("/proc/self/smaps")?;
    let here = forget_start as fn() -> io::Result<()> as usize;
    for range in unwritten(&maps, here) {
        // SAFETY: the range is a whole mapping of this process, which the kernel just named: private, of a file, not
        // writable, and without any page that differs from the file. Such pages are read from the file again when they
        // are next touched, with the same bytes, so nobody can tell but by the time. It cannot be unmapped or become
        // writable meanwhile: it is the binary itself, linked statically, whose relocations were done before `main`.
        Errno::result(unsafe {
            libc::madvise(
                std::ptr::with_exposed_provenance_mut(range.start),
                range.end - range.start,
                libc::MADV_DONTNEED,
            )
        })?;
    }
    Ok(())
}

/// Of the file that is mapped at `here`: the mappings that are not writable and hold no page of our own,
/// `proc_pid_smaps(5)`.
fn unwritten(smaps: &str, here: usize) -> Vec<Range<usize>> {
    /// A mapping's first line, and how much of it is not the file's any more.
    struct Mapping<'a> {
        range: Range<usize>,
        permissions: &'a str,
        /// Device and inode.
        file: (&'a str, &'a str),
        anonymous: Option<&'a str>,
    }
    let mut mappings: Vec<Mapping<'_>> = Vec::new();
    for line in smaps.lines() {
        let mut words = line.split_ascii_whitespace();
        let Some(first) = words.next() else { continue };
        if first == "Anonymous:" {
            if let Some(last) = mappings.last_mut() {
                last.anonymous = words.next();
            }
            continue;
        }
        let ends = first.split_once('-').and_then(|(start, end)| {
            Some(usize::from_str_radix(start, 16).ok()?..usize::from_str_radix(end, 16).ok()?)
        });
        if let (Some(range), Some(permissions), Some(_), Some(device), Some(inode)) =
            (ends, words.next(), words.next(), words.next(), words.next())
        {
            mappings.push(Mapping { range, permissions, file: (device, inode), anonymous: None });
        }
    }
    let binary = mappings.iter().find(|mapping| mapping.range.contains(&here));
    let Some(binary) = binary.map(|mapping| mapping.file) else { return Vec::new() };
    let clean = mappings.into_iter().filter(|mapping| {
        let private = mapping.permissions.ends_with('p') && !mapping.permissions.contains('w');
        mapping.file == binary && private && mapping.anonymous == Some("0")
    });
    clean.map(|mapping| mapping.range).collect()
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn only_what_the_binary_still_shares_with_its_file_is_forgotten() {
        let mapping = |ends: &str, permissions: &str, inode: u32, anonymous: u32| {
            format!(
                "{ends} {permissions} 00000000 fd:00 {inode} /bin/a b\nRss: 8 kB\nAnonymous: {anonymous} kB\n\
                 VmFlags: rd mr\n"
            )
        };
        let smaps = [
            mapping("1000-3000", "r--p", 7, 0),
            mapping("3000-9000", "r-xp", 7, 0),
            // Relocated, then made read-only.
            mapping("9000-a000", "r--p", 7, 4),
            mapping("a000-b000", "rw-p", 7, 0),
            mapping("b000-c000", "r--s", 7, 0),
            mapping("c000-d000", "r-xp", 8, 0),
        ]
        .concat();
        assert_eq!(unwritten(&smaps, 0x4000), [0x1000..0x3000, 0x3000..0x9000]);
        assert_eq!(unwritten(&smaps, 0xc000).first(), Some(&(0xc000..0xd000)));
        assert_eq!(unwritten(&smaps, 0xd000), []);
        assert_eq!(unwritten("", 0), []);
    }

    #[test]
    fn a_program_goes_on_and_has_less_resident() {
        let file_kib = || {
            let status = std::fs::read_to_string("/proc/self/status").unwrap();
            let line = status.lines().find_map(|line| line.strip_prefix("RssFile:")).unwrap();
            line.split_ascii_whitespace().next().unwrap().parse::<u64>().unwrap()
        };
        // All of the binary is touched, so that there is something to forget.
        let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let ranges = unwritten(&smaps, forget_start as fn() -> io::Result<()> as usize);
        assert!(!ranges.is_empty());
        for range in &ranges {
            let start = std::ptr::with_exposed_provenance_mut(range.start);
            // SAFETY: a mapping of ours that stays; the advice changes nothing but what is resident.
            let advised =
                unsafe { libc::madvise(start, range.end - range.start, libc::MADV_POPULATE_READ) };
            Errno::result(advised).unwrap();
        }
        let before = file_kib();
        forget_start().unwrap();
        let after = file_kib();
        assert!(after < before, "{after} KiB, before {before} KiB");
    }
}
