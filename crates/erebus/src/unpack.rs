//! Input that may be compressed: recognised by its first bytes, unpacked by the system's own programs.
//!
//! The decompressor is another process with bounds of its own, so a hostile file meets its code there and not here.

use std::ffi::OsStr;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::process::{ExitStatus, Stdio};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::process::{ChildStdin, ChildStdout};

use crate::ErebusError;
use crate::tool::{Bounds, GZIP, Tool, XZ, ZSTD};

/// First bytes, and what unpacks what they start; the longest is the first.
const MAGICS: &[(&[u8], Tool)] = &[(b"\xfd7zXZ\0", XZ), (b"\x28\xb5\x2f\xfd", ZSTD), (b"\x1f\x8b", GZIP)];

/// First bytes of what people send by mistake, or compressed in a way that is not read here, and the way out.
const OTHERS: &[(&[u8], &str)] = &[
    (b"BZh", "a bzip2 file: send it as `bunzip2 -c FILE | …`"),
    (b"PK\x03\x04", "a zip file, not a tar"),
    (b"!<arch>\n", "a Debian package: send it as `dpkg-deb --fsys-tarfile FILE | …`"),
    (b"hsqs", "a squashfs file system, not a tar"),
];

/// A decompressor writes to a pipe only, and needs a few windows of memory.
const BOUNDS: Bounds = Bounds { memory: 1 << 30, file: 0, cpu: 3600 };

/// Bytes passed to a decompressor at once.
const CHUNK: usize = 64 * 1024;

/// Input, unpacked where it was packed.
pub(crate) struct Input<R> {
    head: io::Cursor<Vec<u8>>,
    rest: R,
    unpacker: Option<Unpacker>,
}

struct Unpacker {
    program: &'static str,
    stdin: Option<ChildStdin>,
    stdout: ChildStdout,
    /// The end of the child; dropping it kills the child.
    end: Pin<Box<dyn Future<Output = io::Result<ExitStatus>> + Send>>,
    /// Packed bytes on their way: those from `at` to `filled` were read and not yet passed on.
    buffer: Vec<u8>,
    at: usize,
    filled: usize,
}

impl<R: AsyncRead + Unpin> Input<R> {
    /// Looks at the first bytes and starts what unpacks them.
    pub(crate) async fn open(mut rest: R) -> Result<Self, ErebusError> {
        let mut head = vec![0; 8];
        let mut filled = 0;
        while filled < head.len() {
            match rest.read(&mut head[filled..]).await.map_err(ErebusError::Upload)? {
                0 => break,
                n => filled += n,
            }
        }
        head.truncate(filled);
        if let Some((_, what)) = OTHERS.iter().find(|(magic, _)| head.starts_with(magic)) {
            return Err(ErebusError::bad(format!("the file is {what}")));
        }
        let unpacker = match MAGICS.iter().find(|(magic, _)| head.starts_with(magic)) {
            Some((_, tool)) => Some(Unpacker::start(*tool)?),
            None => None,
        };
        Ok(Self { head: io::Cursor::new(head), rest, unpacker })
    }
}

impl Unpacker {
    fn start(tool: Tool) -> Result<Self, ErebusError> {
        let mut child = tool.spawn(&["-dc"].map(OsStr::new), Stdio::piped(), Stdio::null(), BOUNDS)?;
        let (stdin, stdout) = (child.stdin.take(), child.stdout.take());
        Ok(Self {
            program: tool.program,
            stdin,
            stdout: stdout.expect("standard output was asked for as a pipe"),
            end: Box::pin(async move { child.wait().await }),
            buffer: vec![0; CHUNK],
            at: 0,
            filled: 0,
        })
    }

    /// Passes packed bytes on until either side would block. An error is one of the source.
    fn pump(&mut self, source: &mut (impl AsyncRead + Unpin), cx: &mut Context<'_>) -> io::Result<()> {
        while let Some(stdin) = &mut self.stdin {
            if self.at < self.filled {
                match Pin::new(stdin).poll_write(cx, &self.buffer[self.at..self.filled]) {
                    Poll::Pending => return Ok(()),
                    Poll::Ready(Ok(n @ 1..)) => self.at += n,
                    // It has ended before its input did: its exit status says what to make of it.
                    Poll::Ready(_) => self.stdin = None,
                }
                continue;
            }
            let mut space = ReadBuf::new(&mut self.buffer);
            match Pin::new(&mut *source).poll_read(cx, &mut space) {
                Poll::Pending => return Ok(()),
                Poll::Ready(read) => read?,
            }
            (self.at, self.filled) = (0, space.filled().len());
            if self.filled == 0 {
                self.stdin = None;
            }
        }
        Ok(())
    }

    fn verdict(&self, end: ExitStatus) -> io::Result<()> {
        if end.success() {
            return Ok(());
        }
        let detail = format!("{} cannot unpack the file: it is damaged or cut off ({end})", self.program);
        Err(io::Error::new(io::ErrorKind::InvalidData, detail))
    }
}

/// The bytes as they came.
struct Packed<'a, R> {
    head: &'a mut io::Cursor<Vec<u8>>,
    rest: &'a mut R,
}

impl<R: AsyncRead + Unpin> AsyncRead for Packed<'_, R> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.head.position() < this.head.get_ref().len() as u64 {
            return Pin::new(&mut *this.head).poll_read(cx, buf);
        }
        Pin::new(&mut *this.rest).poll_read(cx, buf)
    }
}

impl<R: AsyncRead + Unpin> AsyncRead for Input<R> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let mut packed = Packed { head: &mut this.head, rest: &mut this.rest };
        let Some(unpacker) = &mut this.unpacker else { return Pin::new(&mut packed).poll_read(cx, buf) };
        unpacker.pump(&mut packed, cx)?;
        let before = buf.filled().len();
        ready!(Pin::new(&mut unpacker.stdout).poll_read(cx, buf))?;
        if buf.filled().len() > before || buf.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        let end = ready!(unpacker.end.as_mut().poll(cx))?;
        let verdict = unpacker.verdict(end);
        // A future must not be asked again once it has answered.
        unpacker.end = Box::pin(async move { Ok(end) });
        Poll::Ready(verdict)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{noise, packed};

    async fn read(bytes: &[u8]) -> Result<Vec<u8>, String> {
        let mut input = Input::open(bytes).await.map_err(|e| e.to_string())?;
        let mut out = Vec::new();
        input.read_to_end(&mut out).await.map_err(|e| e.to_string())?;
        // Reading on at the end says the end again.
        assert_eq!(input.read(&mut [0; 10]).await.unwrap(), 0);
        Ok(out)
    }

    #[tokio::test]
    async fn every_packing_gives_the_same_bytes() {
        for len in [0, 1, 7, 8, 9, 3_000_000] {
            let bytes = noise(len);
            assert_eq!(read(&bytes).await.unwrap(), bytes);
            for program in ["gzip", "xz", "zstd"] {
                assert_eq!(read(&packed(program, &bytes)).await.unwrap(), bytes, "{program} {len}");
            }
        }
    }

    #[tokio::test]
    async fn damage_is_told() {
        for program in ["gzip", "xz", "zstd"] {
            let mut bytes = packed(program, &noise(1_000_000));
            let middle = bytes.len() / 2;
            assert!(read(&bytes[..middle]).await.unwrap_err().contains(program), "{program} cut off");
            bytes[middle] ^= 0xff;
            assert!(read(&bytes).await.unwrap_err().contains("damaged"), "{program} damaged");
        }
    }

    #[tokio::test]
    async fn what_is_not_read_here_names_the_way_out() {
        assert!(read(b"BZh91AY&SY").await.unwrap_err().contains("bunzip2"));
        assert!(read(b"!<arch>\ndebian-binary").await.unwrap_err().contains("dpkg-deb"));
        assert_eq!(read(b"hs").await.unwrap(), b"hs");
    }

    #[tokio::test]
    async fn a_dropped_reader_ends_the_program() {
        let bytes = packed("gzip", &noise(3_000_000));
        let mut input = Input::open(&bytes[..]).await.unwrap();
        input.read_exact(&mut [0; 1000]).await.unwrap();
        drop(input);
    }
}
