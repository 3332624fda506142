//! Signals that end a process without a word, told in one line.
//!
//! A file that is cut short while it is mapped sends SIGBUS to the thread that reads the missing
//! pages. There is no way back to the reader, so the handler says which file it was and ends the
//! process. A limit on the length of files sends SIGXFSZ; without that signal the write fails with
//! an error like that of a full disk. Memory that runs out aborts a program of Rust or C++; the
//! handler of SIGABRT tells that from other causes.

use std::sync::Once;

use crate::error_kind::ErrorKind;

/// Longest line of the system's list of mapped files that is read whole.
const LINE: usize = 4600;

/// Memory that must be there for an abort to have another cause: 64 MiB, more than any single
/// allocation of a program that has enough.
const ROOM: usize = 64 << 20;

/// Ends the process at once. Unlike [`std::process::exit`] it runs nothing: libraries whose threads
/// still work must not be taken down under them. For handlers of signals.
#[expect(unsafe_code, reason = "std has no exit that runs nothing")]
pub fn end(kind: ErrorKind) -> ! {
    // SAFETY: the call takes a number and does not return.
    unsafe { libc::_exit(i32::from(kind.code())) }
}

/// Prepares the process: SIGBUS and a lack of memory are told, and SIGXFSZ is an error of the
/// write. Only a `main` calls this, once.
#[expect(
    unsafe_code,
    reason = "only the C library installs handlers of signals"
)]
pub fn prepare() {
    static PREPARED: Once = Once::new();
    PREPARED.call_once(|| {
        // SAFETY: the action is zeroed, which is a valid value, and then filled. All calls take
        // valid pointers and numbers of signals. The handlers call functions only that POSIX or
        // Linux allow in one.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            let handler: extern "C" fn(i32, *mut libc::siginfo_t, *mut libc::c_void) = lost_page;
            action.sa_sigaction = handler as usize;
            action.sa_flags = libc::SA_SIGINFO | libc::SA_RESETHAND;
            libc::sigaction(libc::SIGBUS, &action, std::ptr::null_mut());
            let handler: extern "C" fn(i32, *mut libc::siginfo_t, *mut libc::c_void) = aborted;
            action.sa_sigaction = handler as usize;
            libc::sigaction(libc::SIGABRT, &action, std::ptr::null_mut());
            libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
        }
    });
}

/// Says which mapped file lost its pages, and ends the process.
#[expect(unsafe_code, reason = "a handler may call the C library only")]
extern "C" fn lost_page(_: i32, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: with SA_SIGINFO the system passes a valid structure, whose address is set for SIGBUS.
    let address = unsafe { (*info).si_addr() } as usize;
    let mut found = Found::default();
    find(address, &mut found);
    say(b"\nerror: ");
    say(found.name().unwrap_or(b"a mapped file"));
    say(b": was cut short or cannot be read while it is in use; write it again\n");
    end(ErrorKind::Model)
}

/// Ends the process with the word for a lack of memory, if there is one. Any other abort goes on
/// when this returns: the handler is gone by then.
#[expect(unsafe_code, reason = "a handler may call the C library only")]
extern "C" fn aborted(_: i32, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: a private mapping without a file at an address of the system's choice. Nothing reads
    // or writes it, and the process ends.
    let room = unsafe {
        let (access, kind) = (libc::PROT_NONE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        libc::mmap(std::ptr::null_mut(), ROOM, access, kind, -1, 0)
    };
    if room == libc::MAP_FAILED {
        say(
            b"\nerror: out of memory; free some, or raise the limit of the process (`ulimit -v`)\n",
        );
        end(ErrorKind::Resources);
    }
}

/// Writes bytes to standard error.
#[expect(unsafe_code, reason = "a handler may call the C library only")]
fn say(bytes: &[u8]) {
    // SAFETY: the pointer and the length are those of the slice. A failure has no remedy.
    let _ = unsafe { libc::write(libc::STDERR_FILENO, bytes.as_ptr().cast(), bytes.len()) };
}

/// The name of a mapped file, in memory of its own: a handler may not allocate.
struct Found {
    name: [u8; LINE],
    length: usize,
}

impl Default for Found {
    fn default() -> Self {
        Self {
            name: [0; LINE],
            length: 0,
        }
    }
}

impl Found {
    fn name(&self) -> Option<&[u8]> {
        (self.length > 0).then_some(&self.name[..self.length])
    }
}

/// Looks for the file that is mapped at `address`, without allocating.
#[expect(unsafe_code, reason = "a handler may call the C library only")]
fn find(address: usize, found: &mut Found) {
    // SAFETY: the path ends in a zero byte, and the buffer has the length that is passed.
    unsafe {
        let list = libc::open(c"/proc/self/maps".as_ptr(), libc::O_RDONLY);
        if list < 0 {
            return;
        }
        let (mut line, mut length) = ([0u8; LINE], 0);
        let mut part = [0u8; 1024];
        loop {
            let read = libc::read(list, part.as_mut_ptr().cast(), part.len());
            let Ok(read @ 1..) = usize::try_from(read) else {
                break;
            };
            for &byte in &part[..read] {
                if byte != b'\n' {
                    if length < LINE {
                        line[length] = byte;
                        length += 1;
                    }
                    continue;
                }
                if let Some(name) = mapped_at(&line[..length], address) {
                    found.name[..name.len()].copy_from_slice(name);
                    found.length = name.len();
                }
                length = 0;
            }
        }
        libc::close(list);
    }
}

/// Returns the file of one line of `/proc/self/maps`, if its addresses have `address`.
fn mapped_at(line: &[u8], address: usize) -> Option<&[u8]> {
    // `7f01a000-7f01c000 r--s 00000000 08:02 131    /models/dit.data`
    let mut fields = line.splitn(6, |b| *b == b' ');
    let mut ends = fields.next()?.splitn(2, |b| *b == b'-');
    let (start, end) = (hexadecimal(ends.next()?)?, hexadecimal(ends.next()?)?);
    let name = fields.nth(4)?.trim_ascii();
    ((start..end).contains(&address) && !name.is_empty()).then_some(name)
}

fn hexadecimal(digits: &[u8]) -> Option<usize> {
    digits.iter().try_fold(0usize, |sum, digit| {
        let value = char::from(*digit).to_digit(16)?;
        sum.checked_mul(16)?.checked_add(value as usize)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;

    #[test]
    fn the_file_of_an_address_is_found() {
        for (line, address, want) in [
            ("10-20 r--s 0 08:02 131      /a b/c", 0x1f, Some("/a b/c")),
            ("10-20 r--s 0 08:02 131      /a b/c", 0x20, None),
            ("10-20 rw-p 0 00:00 0", 0x10, None),
            ("nonsense", 0x10, None),
        ] {
            let found = mapped_at(line.as_bytes(), address);
            assert_eq!(found, want.map(str::as_bytes), "{line}");
        }
    }

    #[test]
    #[expect(unsafe_code, reason = "maps a file to look for it")]
    fn a_mapped_file_is_found_in_the_systems_list() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("weights.data");
        std::fs::write(&path, [1; 100]).unwrap();
        let file = File::open(&path).unwrap();
        // SAFETY: nobody changes the file.
        let map = unsafe { memmap2::Mmap::map(&file) }.unwrap();
        let mut found = Found::default();
        find(map.as_ptr() as usize + 50, &mut found);
        assert_eq!(found.name(), path.to_str().map(str::as_bytes));
        let mut none = Found::default();
        find(16, &mut none);
        assert_eq!(none.name(), None);
    }
}
