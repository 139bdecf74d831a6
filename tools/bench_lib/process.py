"""Programs that are run, servers that are ended, folders that are removed: whatever happens, none is left."""

import os
import shutil
import signal
import subprocess
import tempfile
import time

from .signals import held

START_SECONDS = 60
# A mount flushes what it holds before it ends; past this it is stuck.
END_SECONDS = 60

_running = set()
_servers = []
_folders = []


class Failed(Exception):
    """A program failed; its words."""


def _start(command, **how):
    # In a session of its own: a terminal's Ctrl-C is for the bench, which ends what it began in order.
    with held():
        child = subprocess.Popen(command, start_new_session=True, **how)
        _running.add(child)
    return child


def _kill(child):
    try:
        os.killpg(child.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    child.wait()


def run(command, environment=None, accept=()):
    """The standard output of a program, which must end well."""
    child = _start(command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        out, words = child.communicate()
    finally:
        with held():
            if child.poll() is None:
                _kill(child)
            _running.discard(child)
    if child.returncode not in (0, *accept):
        raise Failed(f"{' '.join(command[:3])} failed ({child.returncode}): {(words + out).strip()[-2000:]}")
    return out


class Background:
    """A program that runs beside others until it is told to end."""

    def __init__(self, command):
        self.child = _start(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def ended(self):
        return self.child.poll() is not None

    def end(self, number):
        """By this signal; waits for it."""
        with held():
            if not self.ended():
                self.child.send_signal(number)
                try:
                    self.child.wait(END_SECONDS)
                except subprocess.TimeoutExpired:
                    _kill(self.child)
            _running.discard(self.child)


class Server:
    """A program that mounts something at `mount_point`, up once `ready` is there or, for a mounted file, mounted."""

    def __init__(self, command, mount_point, ready=None, environment=None, ends_unmounted=True):
        self.mount_point, self.ends_unmounted = mount_point, ends_unmounted
        self.words = tempfile.TemporaryFile()
        with held():
            self.child = _start(command, env=environment, stdin=subprocess.DEVNULL, stdout=self.words, stderr=self.words)
            _servers.append(self)
        self.pid = self.child.pid
        self._wait_until_up(ready)

    def _wait_until_up(self, ready):
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline and self.child.poll() is None:
            if is_mounted(self.mount_point) and (ready is None or os.path.exists(ready)):
                return
            time.sleep(0.02)
        self.words.seek(0)
        said = self.words.read().decode(errors="replace").strip()
        self.end()
        raise Failed(f"{' '.join(self.child.args[:2])} did not mount {self.mount_point}: {said[-2000:]}")

    def kill(self):
        """As a power cut for the process; what it mounted is taken away."""
        with held():
            if self in _servers:
                _kill(self.child)
                self._finish()

    def end(self):
        """Unmounts, and waits until all is written and the process gone."""
        with held():
            if self not in _servers:
                return
            if is_mounted(self.mount_point):
                _unmount(self.mount_point)
            if not (self.ends_unmounted and self._ended_within(END_SECONDS)):
                self.child.terminate()
                if not self._ended_within(END_SECONDS):
                    _kill(self.child)
            self._finish()

    def _ended_within(self, seconds):
        try:
            self.child.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        return True

    def _finish(self):
        if is_mounted(self.mount_point):
            _unmount(self.mount_point, lazily=True)
        _running.discard(self.child)
        self.words.close()
        _servers.remove(self)


def is_mounted(place):
    wanted = os.path.realpath(os.path.dirname(place)) + "/" + os.path.basename(place)
    with open("/proc/self/mounts", encoding="utf-8", errors="replace") as mounts:
        return any(line.split(" ")[1].replace("\\040", " ") == wanted for line in mounts)


def _unmount(place, lazily=False):
    for command in (["umount", *(["-l"] if lazily else [])], ["fusermount3", "-u", *(["-z"] if lazily else [])]):
        # A moment's reader (an indexer, say) must not keep it.
        for _ in range(20 if os.getuid() == 0 or command[0] != "umount" else 1):
            if subprocess.run([*command, place], capture_output=True, start_new_session=True).returncode == 0:
                return
            if not is_mounted(place):
                return
            time.sleep(0.1)


def folder(parent, prefix):
    """A new folder, which is removed at the end."""
    with held():
        made = tempfile.mkdtemp(dir=parent, prefix=prefix)
        _folders.append(made)
    return made


def remove(path):
    """A folder and all below it, but nothing that is mounted there."""
    with held():
        subprocess.run(["rm", "-rf", "--one-file-system", path], start_new_session=True)
        if path in _folders and not os.path.exists(path):
            _folders.remove(path)


def remove_file(path):
    if os.path.exists(path):
        os.unlink(path)


def has(program):
    return shutil.which(program, path=os.environ["PATH"] + ":/usr/sbin:/sbin") is not None


def sweep():
    """Ends and removes whatever is still there."""
    with held():
        for child in list(_running - {server.child for server in _servers}):
            _kill(child)
            _running.discard(child)
        for server in list(_servers):
            server.kill()
        for path in list(_folders):
            remove(path)
