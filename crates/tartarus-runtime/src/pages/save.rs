//! Packs the memory of a stopped machine, as another process sees it: through `/proc`.

use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::FileExt;

use rustix::fs::{Mode, OFlags, openat};

use super::{CHUNK, PAGE, Run, Table};

/// In `/proc/PID/pagemap`: the page is in memory.
const PRESENT: u64 = 1 << 63;
/// In swap.
const SWAPPED: u64 = 1 << 62;
/// It is a page of a file or of shared memory: the process has not written it.
const OF_FILE: u64 = 1 << 61;

/// Pages looked up at a time.
const LOOKED_UP: usize = 64 * 1024;

/// Writes the memory of the stopped machine in process `pid` to `out`, from its start. Blocks: about 1 ms per MiB written.
/// Gives what was written. Nothing is synced.
///
/// # Errors
/// When there is not exactly one mapping that can be the memory, or something cannot be read or written.
pub fn save(pid: u32, memory_bytes: u64, mut out: File) -> io::Result<Table> {
    // SAFETY: sysconf has no preconditions.
    let page_size = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    if page_size != PAGE as i64 {
        return Err(io::Error::other(format!("pages of {page_size} bytes are not supported")));
    }
    // All three of one process, even if its id is another's meanwhile.
    let process = File::open(format!("/proc/{pid}"))?;
    let open = |name: &str| -> io::Result<File> {
        Ok(openat(&process, name, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?.into())
    };
    let mut maps = String::new();
    open("maps")?.read_to_string(&mut maps)?;
    let found = find(&maps, memory_bytes).map_err(io::Error::other)?;
    let mem = open("mem")?;
    let mut buffer = vec![0; CHUNK];
    let mut runs = written(&open("pagemap")?, &found, memory_bytes)?;
    if !found.over_file {
        runs = without_zeros(&runs, |run, each| read(&mem, &found, run, &mut buffer, each))?;
    }
    let table = Table { memory_bytes, over_base: found.over_file, runs };
    out.set_len(0)?;
    out.rewind()?;
    out.write_all(&table.to_bytes())?;
    for run in &table.runs {
        read(&mem, &found, *run, &mut buffer, &mut |_, bytes| out.write_all(bytes))?;
    }
    Ok(table)
}

#[derive(Debug, PartialEq, Eq)]
struct Mapping {
    start: u64,
    /// It maps a file privately: its unwritten pages are not zero.
    over_file: bool,
}

/// The one private, writable mapping of exactly that size in a `/proc/PID/maps`.
fn find(maps: &str, bytes: u64) -> Result<Mapping, String> {
    let mut found = maps.lines().filter_map(|line| {
        let mut fields = line.split_ascii_whitespace();
        let (start, end) = fields.next()?.split_once('-')?;
        let start = u64::from_str_radix(start, 16).ok()?;
        let end = u64::from_str_radix(end, 16).ok()?;
        let fits = fields.next()? == "rw-p" && end.checked_sub(start)? == bytes;
        let inode = fields.nth(2)?;
        fits.then_some(Mapping { start, over_file: inode != "0" })
    });
    match (found.next(), found.next()) {
        (Some(one), None) => Ok(one),
        (None, _) => Err(format!("the process has no memory of {bytes} bytes")),
        (Some(_), Some(_)) => Err(format!("the process has several mappings of {bytes} bytes")),
    }
}

/// The pages that the process has of its own.
fn written(pagemap: &File, mapping: &Mapping, bytes: u64) -> io::Result<Vec<Run>> {
    let (first, pages) = (mapping.start / PAGE as u64, bytes / PAGE as u64);
    let mut runs = Vec::new();
    let mut entries = vec![0; LOOKED_UP * 8];
    let mut page = 0;
    while page < pages {
        let count = (pages - page).min(LOOKED_UP as u64) as usize;
        let entries = &mut entries[..count * 8];
        pagemap.read_exact_at(entries, (first + page) * 8)?;
        for (index, entry) in entries.as_chunks::<8>().0.iter().enumerate() {
            let entry = u64::from_ne_bytes(*entry);
            if entry & (PRESENT | SWAPPED) != 0 && entry & OF_FILE == 0 {
                push(&mut runs, page + index as u64);
            }
        }
        page += count as u64;
    }
    Ok(runs)
}

fn push(runs: &mut Vec<Run>, page: u64) {
    match runs.last_mut() {
        Some(run) if run.first + run.count == page => run.count += 1,
        _ => runs.push(Run { first: page, count: 1 }),
    }
}

type Each<'a> = &'a mut dyn FnMut(u64, &[u8]) -> io::Result<()>;

fn without_zeros(runs: &[Run], mut read: impl FnMut(Run, Each<'_>) -> io::Result<()>) -> io::Result<Vec<Run>> {
    let zeros = [0; PAGE];
    let mut rest = Vec::new();
    for run in runs {
        read(*run, &mut |first, bytes| {
            for (index, page) in bytes.chunks_exact(PAGE).enumerate() {
                if page != zeros {
                    push(&mut rest, first + index as u64);
                }
            }
            Ok(())
        })?;
    }
    Ok(rest)
}

/// Reads a run in parts: the number of a part's first page, and its bytes.
fn read(mem: &File, mapping: &Mapping, run: Run, buffer: &mut [u8], each: Each<'_>) -> io::Result<()> {
    let (mut page, end) = (run.first, run.first + run.count);
    while page < end {
        let count = (end - page).min((buffer.len() / PAGE) as u64);
        let part = &mut buffer[..count as usize * PAGE];
        mem.read_exact_at(part, mapping.start + page * PAGE as u64)?;
        each(page, part)?;
        page += count;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAPS: &str = "\
        55d0e0000000-55d0e0001000 r--p 00000000 08:01 12 /usr/bin/qemu\n\
        7f0000000000-7f0020000000 rw-p 00000000 00:00 0 \n\
        7f0030000000-7f0034000000 rwxp 00000000 00:00 0 \n\
        7f0040000000-7f0044000000 rw-s 00000000 00:01 9 /memfd:x (deleted)\n\
        7f0050000000-7f0058000000 rw-p 00000000 00:01 1034 /memfd:base rw-p (deleted)\n\
        7f0060000000-7f0060001000 rw-p 00000000 00:00 0 [stack]\n\
        7f0070000000-7f0070001000 rw-p 00000000 00:00 0 \n\
        nonsense\n";

    #[test]
    fn the_memory_is_found_by_its_size_or_not_at_all() {
        let anonymous = Mapping { start: 0x7f00_0000_0000, over_file: false };
        assert_eq!(find(MAPS, 512 << 20).unwrap(), anonymous);
        let clone = Mapping { start: 0x7f00_5000_0000, over_file: true };
        assert_eq!(find(MAPS, 128 << 20).unwrap(), clone);
        assert!(find(MAPS, 64 << 20).unwrap_err().contains("no memory of 67108864 bytes"));
        assert!(find(MAPS, 4096).unwrap_err().contains("several"));
    }
}
