//! A minimal HTTP/1.1 client over one kept connection: what a program that speaks to the API all day would have. It
//! trusts its server no further than not to read for ever.

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use super::process::go_on;

/// Longest line of a head or of a chunk's size.
const MAX_LINE: usize = 16 * 1024;
/// Longest body.
const MAX_BODY: usize = 16 << 20;
/// How often a read looks whether it should go on.
const LOOK: Duration = Duration::from_millis(200);

/// One connection.
pub(super) struct Connection {
    address: String,
    key: String,
    stream: Option<BufReader<Patient>>,
}

/// What was answered.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) body: Vec<u8>,
}

impl Answer {
    /// The JSON of a success.
    ///
    /// # Errors
    /// When it is none; the text has what the server said.
    pub(super) fn json(&self) -> Result<serde_json::Value> {
        self.success()?;
        serde_json::from_slice(&self.body).context("the server's answer is no JSON")
    }

    fn success(&self) -> Result<()> {
        if !(200..300).contains(&self.status) {
            let said: String = String::from_utf8_lossy(&self.body).chars().take(500).collect();
            bail!("the server answered {}: {said}", self.status);
        }
        Ok(())
    }
}

impl Connection {
    /// Connects with the first request. `address` is `HOST:PORT`.
    pub(super) fn new(address: &str, key: &str) -> Self {
        Self { address: address.to_owned(), key: key.to_owned(), stream: None }
    }

    /// One request and its whole answer, within `patience`.
    ///
    /// # Errors
    /// When there is no answer; the connection is not used again then.
    pub(super) fn request(&mut self, request: &Request<'_>, patience: Duration) -> Result<Answer> {
        let ends_at = Instant::now() + patience;
        let asked = self.ask(request, ends_at);
        if asked.is_err() {
            self.stream = None;
        }
        let (answer, kept) = asked.with_context(|| format!("{} {}", request.method, request.path))?;
        if !kept {
            self.stream = None;
        }
        Ok(answer)
    }

    fn ask(&mut self, request: &Request<'_>, ends_at: Instant) -> Result<(Answer, bool)> {
        let text = request.encode(&self.address, &self.key);
        let stream = match &mut self.stream {
            Some(stream) => stream,
            None => self.stream.insert(connect(&self.address, ends_at)?),
        };
        stream.get_mut().ends_at = ends_at;
        stream.get_mut().stream.write_all(&text).context("cannot send")?;
        read_answer(stream)
    }
}

fn connect(address: &str, ends_at: Instant) -> Result<BufReader<Patient>> {
    let stream = TcpStream::connect(address).with_context(|| format!("cannot connect to {address}"))?;
    // A request is one write, and its answer is waited for.
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(LOOK))?;
    stream.set_write_timeout(Some(Duration::from_secs(10)))?;
    Ok(BufReader::new(Patient { stream, ends_at }))
}

/// Reads until a moment, and no longer than somebody wants the benchmark to go on.
struct Patient {
    stream: TcpStream,
    ends_at: Instant,
}

impl Read for Patient {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        loop {
            match self.stream.read(buffer) {
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                    go_on().map_err(std::io::Error::other)?;
                    if Instant::now() > self.ends_at {
                        return Err(ErrorKind::TimedOut.into());
                    }
                }
                result => return result,
            }
        }
    }
}

/// What is asked.
#[derive(Debug)]
pub(super) struct Request<'a> {
    pub(super) method: &'a str,
    pub(super) path: &'a str,
    /// JSON.
    pub(super) body: Option<&'a serde_json::Value>,
    pub(super) idempotency_key: Option<&'a str>,
}

impl<'a> Request<'a> {
    pub(super) fn get(path: &'a str) -> Self {
        Self { method: "GET", path, body: None, idempotency_key: None }
    }

    fn encode(&self, address: &str, key: &str) -> Vec<u8> {
        let body = self.body.map(ToString::to_string).unwrap_or_default();
        let mut head =
            format!("{} {} HTTP/1.1\r\nhost: {address}\r\nauthorization: Bearer {key}\r\n", self.method, self.path);
        if let Some(key) = self.idempotency_key {
            head.push_str(&format!("idempotency-key: {key}\r\n"));
        }
        if self.body.is_some() {
            head.push_str(&format!("content-type: application/json\r\ncontent-length: {}\r\n", body.len()));
        }
        format!("{head}\r\n{body}").into_bytes()
    }
}

/// How long a body is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Body {
    Length(usize),
    Chunked,
    UntilClose,
}

/// An answer, and whether the connection may be used again.
fn read_answer(stream: &mut impl BufRead) -> Result<(Answer, bool)> {
    loop {
        let status = status(&line(stream)?)?;
        let (body, keep) = headers(stream)?;
        match status {
            100..=199 => {}
            204 | 304 => return Ok((Answer { status, body: Vec::new() }, keep)),
            _ => return Ok((Answer { status, body: read_body(stream, body)? }, keep && body != Body::UntilClose)),
        }
    }
}

fn status(line: &str) -> Result<u16> {
    let mut words = line.split(' ');
    match (words.next(), words.next().and_then(|status| status.parse().ok())) {
        (Some("HTTP/1.1"), Some(status)) => Ok(status),
        _ => bail!("no HTTP/1.1 answer: {line:?}"),
    }
}

fn headers(stream: &mut impl BufRead) -> Result<(Body, bool)> {
    let (mut body, mut keep) = (Body::UntilClose, true);
    for _ in 0..100 {
        let line = line(stream)?;
        if line.is_empty() {
            return Ok((body, keep));
        }
        let (name, value) = line.split_once(':').context("a header without colon")?;
        let value = value.trim();
        match name.to_ascii_lowercase().as_str() {
            "transfer-encoding" if value.eq_ignore_ascii_case("chunked") => body = Body::Chunked,
            "transfer-encoding" => bail!("the transfer encoding {value:?} is unknown"),
            "content-length" if body != Body::Chunked => body = Body::Length(value.parse().context("content-length")?),
            "connection" if value.eq_ignore_ascii_case("close") => keep = false,
            _ => {}
        }
    }
    bail!("more than 100 headers")
}

fn read_body(stream: &mut impl BufRead, body: Body) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    match body {
        Body::Length(length) => append(stream, length, &mut bytes)?,
        Body::Chunked => {
            while let Some(length) = chunk_size(&line(stream)?)? {
                append(stream, length, &mut bytes)?;
                if !line(stream)?.is_empty() {
                    bail!("a chunk is longer than it says");
                }
            }
            // Trailers, of which none is expected.
            while !line(stream)?.is_empty() {}
        }
        Body::UntilClose => {
            stream.take(MAX_BODY as u64 + 1).read_to_end(&mut bytes)?;
            if bytes.len() > MAX_BODY {
                bail!("a body of more than {MAX_BODY} bytes");
            }
        }
    }
    Ok(bytes)
}

fn append(stream: &mut impl BufRead, length: usize, bytes: &mut Vec<u8>) -> Result<()> {
    let start = bytes.len();
    let end = start.checked_add(length).filter(|end| *end <= MAX_BODY);
    let end = end.with_context(|| format!("a body of more than {MAX_BODY} bytes"))?;
    bytes.resize(end, 0);
    stream.read_exact(&mut bytes[start..]).context("the body was cut off")
}

/// The size in a chunk's first line, without extensions; `None` of the last one.
fn chunk_size(line: &str) -> Result<Option<usize>> {
    let digits = line.split(';').next().unwrap_or(line).trim();
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
        bail!("{line:?} is no size of a chunk");
    }
    let size = usize::from_str_radix(digits, 16).with_context(|| format!("{line:?} is no size of a chunk"))?;
    Ok((size > 0).then_some(size))
}

/// A line without its end.
fn line(stream: &mut impl BufRead) -> Result<String> {
    let mut bytes = Vec::new();
    stream.take(MAX_LINE as u64).read_until(b'\n', &mut bytes).context("cannot read the answer")?;
    let Some(line) = bytes.strip_suffix(b"\n") else {
        bail!("the answer was cut off, or has a line of more than {MAX_LINE} bytes");
    };
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    String::from_utf8(line.to_vec()).context("the answer's head is no text")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<(Answer, bool)> {
        read_answer(&mut text.as_bytes())
    }

    fn answer(status: u16, body: &str) -> Answer {
        Answer { status, body: body.as_bytes().to_vec() }
    }

    #[test]
    fn bodies_with_a_length_in_chunks_or_to_the_end_are_read() {
        let text = "HTTP/1.1 202 Accepted\r\nContent-Length: 3\r\n\r\nabcHTTP/1.1";
        assert_eq!(read(text).unwrap(), (answer(202, "abc"), true));
        let text =
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\nA;x=y\r\n0123456789\r\n0\r\nt: v\r\n\r\n";
        assert_eq!(read(text).unwrap(), (answer(200, "abc0123456789"), true));
        assert_eq!(read("HTTP/1.1 200 OK\r\n\r\nrest").unwrap(), (answer(200, "rest"), false));
        assert_eq!(read("HTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n").unwrap(), (answer(204, ""), false));
        let text = "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
        assert_eq!(read(text).unwrap(), (answer(200, ""), true));
    }

    #[test]
    fn a_body_that_is_cut_off_or_lies_is_an_error() {
        let chunked = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
        for bad in [
            "",
            "HTTP/1.0 200 OK\r\n\r\n",
            "HTTP/1.1 abc\r\n\r\n",
            "HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
            "HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nabc",
            "HTTP/1.1 200 OK\r\ncontent-length: 99999999999\r\n\r\n",
            "HTTP/1.1 200 OK\r\ntransfer-encoding: gzip\r\n\r\n",
            &format!("{chunked}3\r\nabcd\r\n0\r\n\r\n"),
            &format!("{chunked}3\r\nabc\r\n"),
            &format!("{chunked}3\r\nabc\r\n0\r\n"),
            &format!("{chunked}-3\r\nabc\r\n0\r\n\r\n"),
            &format!("{chunked}fffffffffffffffff\r\n"),
            &format!("{chunked}\r\n"),
        ] {
            assert!(read(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_request_says_who_asks_and_how_long_it_is() {
        let body = serde_json::json!({"a": 1});
        let request = Request { method: "POST", path: "/v1/x", body: Some(&body), idempotency_key: Some("k") };
        let text = String::from_utf8(request.encode("127.0.0.1:1", "secret")).unwrap();
        assert!(text.starts_with("POST /v1/x HTTP/1.1\r\nhost: 127.0.0.1:1\r\n"), "{text}");
        assert!(text.ends_with("content-length: 7\r\n\r\n{\"a\":1}"), "{text}");
        assert!(text.contains("authorization: Bearer secret\r\n") && text.contains("idempotency-key: k\r\n"), "{text}");
    }

    #[test]
    fn a_kept_connection_is_used_again() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let server = std::thread::spawn(move || {
            let (stream, _) = listener.accept().unwrap();
            let mut reader = BufReader::new(stream);
            for _ in 0..2 {
                while !line(&mut reader).unwrap().is_empty() {}
                reader.get_mut().write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}").unwrap();
            }
        });
        let mut connection = Connection::new(&address, "k");
        for _ in 0..2 {
            let answer = connection.request(&Request::get("/"), Duration::from_secs(10)).unwrap();
            assert_eq!(answer.json().unwrap(), serde_json::json!({}));
        }
        server.join().unwrap();
    }
}
