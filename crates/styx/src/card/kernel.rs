//! The kernel's calls for programs and what they remember: `bpf(2)`, as `linux/bpf.h` has it.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use super::code::Instruction;

const MAP_CREATE: u32 = 0;
const MAP_LOOKUP: u32 = 1;
const PROG_LOAD: u32 = 5;
const PROG_ATTACH: u32 = 8;
const PROG_DETACH: u32 = 9;
const PROG_GET_FD_BY_ID: u32 = 13;
const OBJ_GET_INFO: u32 = 15;
const PROG_QUERY: u32 = 16;
/// `BPF_MAP_TYPE_ARRAY`, `BPF_PROG_TYPE_SCHED_CLS` and `BPF_TCX_INGRESS`.
const ARRAY: u32 = 2;
const CLASSIFIER: u32 = 3;
const INGRESS: u32 = 46;
/// `BPF_F_REPLACE`.
const REPLACE: u32 = 4;
/// How often a program is offered to a kernel that asks for it again.
const TRIES: usize = 5;
/// Shown by tools that list programs.
const NAME: [u8; 16] = *b"tartarus\0\0\0\0\0\0\0\0";

/// `union bpf_attr`, as large as any call here needs it; what follows counts as zero.
#[repr(C, align(8))]
struct Request([u8; 128]);

impl Request {
    fn new() -> Self {
        Self([0; 128])
    }

    fn word(mut self, at: usize, value: u32) -> Self {
        self.0[at..at + 4].copy_from_slice(&value.to_ne_bytes());
        self
    }

    fn address<T>(mut self, at: usize, of: *const T) -> Self {
        self.0[at..at + 8].copy_from_slice(&(of as u64).to_ne_bytes());
        self
    }

    fn descriptor(self, at: usize, of: &OwnedFd) -> Self {
        self.word(at, of.as_raw_fd().cast_unsigned())
    }

    fn read(&self, at: usize) -> u32 {
        u32::from_ne_bytes([self.0[at], self.0[at + 1], self.0[at + 2], self.0[at + 3]])
    }

    /// # Safety
    /// Every address in it is valid for what `command` reads and writes there, until this returns.
    unsafe fn ask(&mut self, command: u32) -> io::Result<i32> {
        // SAFETY: the kernel reads and writes at most the size that is given, and the rest is as the caller says.
        let done = unsafe { libc::syscall(libc::SYS_bpf, command, self.0.as_mut_ptr(), self.0.len()) };
        if done < 0 { Err(io::Error::last_os_error()) } else { Ok(done as i32) }
    }

    /// # Safety
    /// As [`Self::ask`], and `command` answers with a descriptor.
    unsafe fn open(&mut self, command: u32) -> io::Result<OwnedFd> {
        // SAFETY: the caller's, and the descriptor has no other owner.
        unsafe { Ok(OwnedFd::from_raw_fd(self.ask(command)?)) }
    }
}

/// A map of one value of `words` numbers, all zero.
pub(super) fn memory(words: usize) -> io::Result<OwnedFd> {
    let size = u32::try_from(8 * words).unwrap_or(u32::MAX);
    let mut request = Request::new().word(0, ARRAY).word(4, 4).word(8, size).word(12, 1);
    request.0[28..44].copy_from_slice(&NAME);
    // SAFETY: it has no address.
    unsafe { request.open(MAP_CREATE) }
}

/// The numbers of a [`memory`] of as many.
pub(super) fn read<const WORDS: usize>(memory: &OwnedFd) -> io::Result<[u64; WORDS]> {
    let (key, mut value) = (0_u32, [0; WORDS]);
    let mut request =
        Request::new().descriptor(0, memory).address(8, &raw const key).address(16, (&raw mut value).cast_const());
    // SAFETY: both live until the call returns, and the value is as long as that of the map, which is the caller's word.
    unsafe { request.ask(MAP_LOOKUP) }?;
    Ok(value)
}

/// Has the kernel verify a program.
pub(super) fn load(program: &[Instruction]) -> io::Result<OwnedFd> {
    let license = c"GPL";
    let count = u32::try_from(program.len()).unwrap_or(u32::MAX);
    let mut request =
        Request::new().word(0, CLASSIFIER).word(4, count).address(8, program.as_ptr()).address(16, license.as_ptr());
    request.0[48..64].copy_from_slice(&NAME);
    let mut tries = 1;
    loop {
        // SAFETY: program and license live until the call returns, which only reads them.
        match unsafe { request.open(PROG_LOAD) } {
            // A signal is on its way to this process.
            Err(error) if error.raw_os_error() == Some(libc::EAGAIN) && tries < TRIES => tries += 1,
            other => return other,
        }
    }
}

/// Has every frame that comes in at a link of the calling thread's namespace pass `program`, in place of `before` where there is
/// one. It stays there as long as the link does, whoever ends.
pub(super) fn attach(link: u32, program: &OwnedFd, before: Option<&OwnedFd>) -> io::Result<()> {
    let mut request = Request::new().word(0, link).descriptor(4, program).word(8, INGRESS);
    if let Some(before) = before {
        request = request.word(12, REPLACE).descriptor(16, before);
    }
    // SAFETY: it has no address.
    unsafe { request.ask(PROG_ATTACH) }.map(drop)
}

/// Has frames that come in at a link of the calling thread's namespace not pass `program` any more.
pub(super) fn detach(link: u32, program: &OwnedFd) -> io::Result<()> {
    // SAFETY: it has no address.
    unsafe { Request::new().word(0, link).descriptor(4, program).word(8, INGRESS).ask(PROG_DETACH) }.map(drop)
}

/// The programs that frames pass which come in at a link of the calling thread's namespace, by their numbers. More than eight
/// are an error.
pub(super) fn attached(link: u32) -> io::Result<Vec<u32>> {
    let mut numbers = [0_u32; 8];
    let mut request =
        Request::new().word(0, link).word(4, INGRESS).address(16, (&raw mut numbers).cast_const()).word(24, 8);
    // SAFETY: there is place for as many numbers as it says, until the call returns.
    match unsafe { request.ask(PROG_QUERY) } {
        // There were never any.
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(Vec::new()),
        other => other?,
    };
    let count = usize::try_from(request.read(24)).unwrap_or(usize::MAX).min(numbers.len());
    Ok(numbers[..count].to_vec())
}

/// A program by its number.
pub(super) fn program(number: u32) -> io::Result<OwnedFd> {
    // SAFETY: it has no address.
    unsafe { Request::new().word(0, number).open(PROG_GET_FD_BY_ID) }
}

/// The number of a program.
pub(super) fn number(program: &OwnedFd) -> io::Result<u32> {
    let mut info = [0_u32; 8];
    let mut request = Request::new().descriptor(0, program).word(4, 32).address(8, (&raw mut info).cast_const());
    // SAFETY: there is place for as many bytes as it says, until the call returns.
    unsafe { request.ask(OBJ_GET_INFO) }?;
    Ok(info[1])
}

/// What a program makes of a frame.
#[cfg(test)]
pub(super) fn run(program: &OwnedFd, frame: &[u8]) -> io::Result<i32> {
    const PROG_TEST_RUN: u32 = 10;
    let size = u32::try_from(frame.len()).unwrap();
    let mut request = Request::new().descriptor(0, program).word(8, size).address(16, frame.as_ptr());
    // SAFETY: the frame lives until the call returns, which only reads it.
    unsafe { request.ask(PROG_TEST_RUN) }?;
    Ok(request.read(4).cast_signed())
}
