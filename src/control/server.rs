//! The serving process's end: one thread that receives, a few that answer.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, TrySendError};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{AtFlags, FileType, FlockOperation, Mode};
use rustix::io::Errno;
use rustix::net::SocketFlags;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::folder::{RunFolder, check_peer, new_socket};
use super::frame::{self, BODY_BYTES_MAX, Reply};
use super::{ControlError, MESSAGE_TIME};

/// Connections whose message is still on its way. Each may hold 1 MiB.
const INCOMPLETE_MAX: usize = 64;
/// Threads that answer.
const ANSWERERS: usize = 8;
/// Messages that wait for one of them.
const QUEUE_MAX: usize = 128;
const BACKLOG: i32 = 1024;

/// A socket being served; dropping it answers what was received, stops, and takes the socket away.
pub struct Server {
    name: String,
    folder: RunFolder,
    identity: (u64, u64),
    wake: OwnedFd,
    threads: Vec<JoinHandle<()>>,
}

/// Serves as `name` in `run_dir`, which is made if missing. `handler` runs on several threads at once and may take its time.
pub fn serve<Req, Resp>(
    run_dir: &Path,
    name: &str,
    handler: impl Fn(Req) -> Resp + Send + Sync + 'static,
) -> Result<Server, ControlError>
where
    Req: DeserializeOwned,
    Resp: Serialize,
{
    let folder = RunFolder::make(run_dir)?;
    let (listener, identity) = bind(&folder, name)?;
    let wake = rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC).map_err(io::Error::from)?;
    let handler = Arc::new(handler);
    let (jobs, queue) = crossbeam_channel::bounded(QUEUE_MAX);
    let mut threads = Vec::with_capacity(ANSWERERS + 1);
    for _ in 0..ANSWERERS {
        let (queue, handler) = (queue.clone(), Arc::clone(&handler));
        let answer = move || answer_all(&queue, &*handler);
        threads.push(thread::Builder::new().name("terrane-control".into()).spawn(answer)?);
    }
    let stop = wake.try_clone()?;
    let reception = Reception { listener, stop, jobs, incomplete: VecDeque::new() };
    threads.push(thread::Builder::new().name("terrane-control".into()).spawn(move || reception.run())?);
    Ok(Server { name: name.into(), folder, identity, wake, threads })
}

impl Drop for Server {
    fn drop(&mut self) {
        // First the name, so that nobody is let in who is not answered.
        if identity_of(&self.folder, &self.name).is_ok_and(|found| found == Some(self.identity)) {
            let _ = rustix::fs::unlinkat(self.folder.as_fd(), &self.name, AtFlags::empty());
        }
        let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
        for thread in self.threads.drain(..) {
            // A handler may be what drops us.
            if thread.thread().id() != thread::current().id() {
                let _ = thread.join();
            }
        }
    }
}

/// Makes the socket. Two that start at once take turns by the lock of the folder, so that neither removes the other's.
fn bind(folder: &RunFolder, name: &str) -> Result<(OwnedFd, (u64, u64)), ControlError> {
    let address = folder.address(name)?;
    lock(folder)?;
    let bound = (|| {
        remove_dead(folder, name)?;
        let socket = new_socket()?;
        rustix::net::bind(&socket, &address).map_err(io::Error::from)?;
        rustix::fs::chmodat(folder.as_fd(), name, Mode::RUSR | Mode::WUSR, AtFlags::empty())
            .map_err(io::Error::from)?;
        rustix::net::listen(&socket, BACKLOG).map_err(io::Error::from)?;
        let identity = identity_of(folder, name)?.ok_or(io::ErrorKind::NotFound).map_err(io::Error::from)?;
        Ok((socket, identity))
    })();
    let _ = rustix::fs::flock(folder.as_fd(), FlockOperation::Unlock);
    bound
}

fn lock(folder: &RunFolder) -> Result<(), ControlError> {
    let until = Instant::now() + MESSAGE_TIME;
    loop {
        match rustix::fs::flock(folder.as_fd(), FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(()),
            Err(Errno::WOULDBLOCK) if Instant::now() < until => thread::sleep(Duration::from_millis(5)),
            Err(Errno::WOULDBLOCK) => return Err(ControlError::TimedOut(MESSAGE_TIME)),
            Err(error) => return Err(io::Error::from(error).into()),
        }
    }
}

/// Removes the socket of a process that is gone, and nothing else.
fn remove_dead(folder: &RunFolder, name: &str) -> Result<(), ControlError> {
    let stat = match rustix::fs::statat(folder.as_fd(), name, AtFlags::SYMLINK_NOFOLLOW) {
        Err(Errno::NOENT) => return Ok(()),
        other => other.map_err(io::Error::from)?,
    };
    if FileType::from_raw_mode(stat.st_mode) != FileType::Socket {
        return Err(ControlError::Io(io::Error::new(
            io::ErrorKind::AlreadyExists,
            format!("{name} is no socket"),
        )));
    }
    match folder.connect(name) {
        Ok(socket) => Err(ControlError::AlreadyServed { pid: check_peer(&socket)? }),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
            Err(ControlError::AlreadyServed { pid: 0 })
        }
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            rustix::fs::unlinkat(folder.as_fd(), name, AtFlags::empty()).map_err(io::Error::from)?;
            Ok(())
        }
        Err(error) => Err(error.into()),
    }
}

fn identity_of(folder: &RunFolder, name: &str) -> io::Result<Option<(u64, u64)>> {
    match rustix::fs::statat(folder.as_fd(), name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some((stat.st_dev, stat.st_ino))),
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// A connection whose message is whole.
struct Job {
    stream: UnixStream,
    message: Vec<u8>,
}

/// A connection whose message is on its way.
struct Incomplete {
    stream: UnixStream,
    message: Vec<u8>,
    end: Instant,
}

enum Step {
    Wait,
    Done,
    Drop,
}

/// The thread that receives.
struct Reception {
    listener: OwnedFd,
    stop: OwnedFd,
    jobs: Sender<Job>,
    /// In the order of their coming.
    incomplete: VecDeque<Incomplete>,
}

impl Reception {
    fn run(mut self) {
        loop {
            let wait =
                self.incomplete.front().map(|oldest| oldest.end.saturating_duration_since(Instant::now()));
            let ready = match self.poll(wait) {
                Ok(ready) => ready,
                Err(error) => {
                    tracing::error!("the control socket is no longer served: {error}");
                    return;
                }
            };
            if ready.stop {
                return;
            }
            self.advance(&ready.clients);
            let now = Instant::now();
            self.incomplete.retain(|client| client.end > now);
            if ready.listener {
                self.let_in();
            }
        }
    }

    fn poll(&self, wait: Option<Duration>) -> io::Result<Ready> {
        let mut polled =
            vec![PollFd::new(&self.stop, PollFlags::IN), PollFd::new(&self.listener, PollFlags::IN)];
        polled.extend(self.incomplete.iter().map(|client| PollFd::new(&client.stream, PollFlags::IN)));
        let wait = wait
            .map(|wait| Timespec { tv_sec: wait.as_secs() as i64, tv_nsec: i64::from(wait.subsec_nanos()) });
        match rustix::event::poll(&mut polled, wait.as_ref()) {
            Err(Errno::INTR) | Ok(_) => {}
            Err(error) => return Err(error.into()),
        }
        let mut ready = polled.iter().map(|polled| !polled.revents().is_empty());
        Ok(Ready {
            stop: ready.next().unwrap_or(false),
            listener: ready.next().unwrap_or(false),
            clients: ready.collect(),
        })
    }

    fn advance(&mut self, ready: &[bool]) {
        let clients = std::mem::take(&mut self.incomplete);
        for (mut client, ready) in clients.into_iter().zip(ready.iter().copied()) {
            match if ready { client.receive() } else { Step::Wait } {
                Step::Wait => self.incomplete.push_back(client),
                Step::Done => self.hand_over(client),
                Step::Drop => {}
            }
        }
    }

    /// Lets in everyone who waits. Most have sent their message already and go on at once; a crowd of those who have not
    /// pushes out its own oldest.
    fn let_in(&mut self) {
        for _ in 0..BACKLOG {
            let stream = match rustix::net::accept_with(
                &self.listener,
                SocketFlags::NONBLOCK | SocketFlags::CLOEXEC,
            ) {
                Ok(stream) => UnixStream::from(stream),
                Err(Errno::MFILE | Errno::NFILE | Errno::NOMEM | Errno::NOBUFS) => {
                    self.incomplete.pop_front();
                    thread::sleep(Duration::from_millis(10));
                    return;
                }
                Err(_) => return,
            };
            let mut client = Incomplete { stream, message: Vec::new(), end: Instant::now() + MESSAGE_TIME };
            if check_peer(&client.stream).is_err() {
                client.refuse("the region belongs to another user");
                continue;
            }
            match client.receive() {
                Step::Wait => {
                    if self.incomplete.len() >= INCOMPLETE_MAX {
                        self.incomplete.pop_front();
                    }
                    self.incomplete.push_back(client);
                }
                Step::Done => self.hand_over(client),
                Step::Drop => {}
            }
        }
    }

    fn hand_over(&self, client: Incomplete) {
        let job = Job { stream: client.stream, message: client.message };
        if let Err(TrySendError::Full(job) | TrySendError::Disconnected(job)) = self.jobs.try_send(job) {
            reply(job.stream, &Reply::<()>::Refused("too many requests at once; try again".into()));
        }
    }
}

struct Ready {
    stop: bool,
    listener: bool,
    clients: Vec<bool>,
}

impl Incomplete {
    /// Takes what has arrived.
    fn receive(&mut self) -> Step {
        let mut piece = [0; 16 << 10];
        loop {
            match self.stream.read(&mut piece) {
                Ok(0) => return Step::Drop,
                Ok(len) => self.message.extend_from_slice(&piece[..len]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Step::Wait,
                Err(_) => return Step::Drop,
            }
            match frame::decode(&self.message) {
                Ok(None) => {}
                Ok(Some(_)) => return Step::Done,
                Err(error) => {
                    // An answer of our version tells another version enough.
                    self.refuse(&error.to_string());
                    return Step::Drop;
                }
            }
        }
    }

    /// Says why, as far as it can be said without waiting.
    fn refuse(&mut self, words: &str) {
        if let Ok(body) = serde_json::to_vec(&Reply::<()>::Refused(words.into())) {
            let _ = self.stream.write(&frame::encode(&body));
        }
    }
}

fn answer_all<Req: DeserializeOwned, Resp: Serialize>(queue: &Receiver<Job>, handler: &dyn Fn(Req) -> Resp) {
    for job in queue {
        let Ok(Some(body)) = frame::decode(&job.message) else { continue };
        let answer = match serde_json::from_slice(body) {
            Ok(request) => match catch_unwind(AssertUnwindSafe(|| handler(request))) {
                Ok(answer) => Reply::Answer(answer),
                Err(_) => {
                    tracing::error!("a request on the control socket panicked");
                    Reply::Refused("it failed inside the serving process, whose log says where".into())
                }
            },
            Err(error) => Reply::Refused(format!("not understood: {error}")),
        };
        reply(job.stream, &answer);
    }
}

fn reply<T: Serialize>(mut stream: UnixStream, answer: &Reply<T>) {
    let body = match serde_json::to_vec(answer) {
        Ok(body) if body.len() <= BODY_BYTES_MAX => body,
        Ok(body) => refusal(&format!("the answer has {} bytes, more than fit", body.len())),
        Err(error) => refusal(&format!("the answer cannot be sent: {error}")),
    };
    let sent = stream
        .set_nonblocking(false)
        .and_then(|()| stream.set_write_timeout(Some(MESSAGE_TIME)))
        .and_then(|()| stream.write_all(&frame::encode(&body)));
    if let Err(error) = sent {
        tracing::debug!("an answer on the control socket was not taken: {error}");
    }
}

fn refusal(words: &str) -> Vec<u8> {
    serde_json::to_vec(&Reply::<()>::Refused(words.into())).expect("a string is JSON")
}
