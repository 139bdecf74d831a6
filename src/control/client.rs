//! The command's end.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::ControlError;
use super::folder::{RunFolder, check_peer};
use super::frame::{self, BODY_BYTES_MAX, FrameError, HEADER_BYTES, Reply};

/// Asks who serves as `name` in `run_dir` and waits at most `timeout` for the answer.
pub fn call<Req: Serialize, Resp: DeserializeOwned>(
    run_dir: &Path,
    name: &str,
    request: &Req,
    timeout: Duration,
) -> Result<Resp, ControlError> {
    let deadline = Deadline { end: Instant::now() + timeout, timeout };
    let body = serde_json::to_vec(request).map_err(io::Error::from)?;
    if body.len() > BODY_BYTES_MAX {
        return Err(ControlError::Damaged(FrameError::TooLong(body.len()).to_string()));
    }
    let folder = RunFolder::open(run_dir)?.ok_or(ControlError::NotRunning)?;
    let mut stream = connect(&folder, name, &deadline)?;
    check_peer(&stream)?;
    send(&mut stream, &frame::encode(&body), &deadline)?;
    let answer = receive(&mut stream, &deadline)?;
    match serde_json::from_slice(&answer).map_err(|error| ControlError::Damaged(error.to_string()))? {
        Reply::Answer(answer) => Ok(answer),
        Reply::Refused(words) => Err(ControlError::Refused(words)),
    }
}

struct Deadline {
    end: Instant,
    timeout: Duration,
}

impl Deadline {
    fn left(&self) -> Result<Duration, ControlError> {
        let left = self.end.saturating_duration_since(Instant::now());
        if left.is_zero() { Err(ControlError::TimedOut(self.timeout)) } else { Ok(left) }
    }
}

fn connect(folder: &RunFolder, name: &str, deadline: &Deadline) -> Result<UnixStream, ControlError> {
    loop {
        match folder.connect(name) {
            Ok(socket) => {
                let stream = UnixStream::from(socket);
                stream.set_nonblocking(false)?;
                return Ok(stream);
            }
            // Too many are waiting to be let in.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                thread::sleep(deadline.left()?.min(Duration::from_millis(5)));
            }
            Err(error) => {
                return Err(match error.kind() {
                    io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => ControlError::NotRunning,
                    _ => error.into(),
                });
            }
        }
    }
}

fn send(stream: &mut UnixStream, bytes: &[u8], deadline: &Deadline) -> Result<(), ControlError> {
    stream.set_write_timeout(Some(deadline.left()?))?;
    match stream.write_all(bytes) {
        Err(error) if is_timeout(&error) => Err(ControlError::TimedOut(deadline.timeout)),
        // Refused before it was read whole: the reason is there to be read.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => Ok(other?),
    }
}

fn receive(stream: &mut UnixStream, deadline: &Deadline) -> Result<Vec<u8>, ControlError> {
    let mut bytes = Vec::new();
    let mut piece = vec![0; 64 << 10];
    loop {
        match frame::decode(&bytes) {
            Ok(Some(body)) => return Ok(body.to_vec()),
            Ok(None) => {}
            Err(FrameError::Version(theirs)) => {
                return Err(ControlError::Version { ours: frame::VERSION, theirs });
            }
            Err(error) => return Err(ControlError::Damaged(error.to_string())),
        }
        debug_assert!(bytes.len() < HEADER_BYTES + BODY_BYTES_MAX);
        stream.set_read_timeout(Some(deadline.left()?))?;
        match stream.read(&mut piece) {
            Ok(0) => return Err(ControlError::Ended),
            Ok(len) => bytes.extend_from_slice(&piece[..len]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if is_timeout(&error) => return Err(ControlError::TimedOut(deadline.timeout)),
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Err(ControlError::Ended),
            Err(error) => return Err(error.into()),
        }
    }
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}
