"""terrane as a user has it: regions, commands and a mount."""

import json
import os
import time

from . import fio, process


class Region:
    """A region in a folder of its own, with its own configuration or, as `beside`, that of another region."""

    def __init__(self, terrane, folder, name="bench", beside=None):
        self.terrane, self.name = terrane, name
        self.dir, self.mount_point = os.path.join(folder, name), os.path.join(folder, f"{name}-mount")
        config = beside.environment["TERRANE_CONFIG_DIR"] if beside else os.path.join(folder, "config")
        kept = {key: value for key, value in os.environ.items() if not key.startswith("TERRANE_")}
        self.environment = {**kept, "TERRANE_CONFIG_DIR": config, "TERRANE_REGION": name}
        self.server = None
        os.mkdir(self.mount_point)
        self.run("region", "init", self.dir, "--name", name)
        self.run("key", "create", "--alias", "first")
        self.run("key", "create", "--alias", "second")

    def run(self, *arguments):
        """The seconds a command took."""
        begin = time.monotonic()
        process.run([self.terrane, *arguments], self.environment)
        return time.monotonic() - begin

    def ask(self, *arguments, accept=()):
        return json.loads(process.run([self.terrane, *arguments, "--output", "json"], self.environment, accept))

    def create(self, volume, size):
        self.run("volume", "create", "--name", volume, "--size", str(size), "--key", "first")

    def snapshot(self, volume, name):
        return self.run("snapshot", "create", volume, "--name", name)

    def mount(self, threads=None):
        """The seconds until it serves."""
        begin = time.monotonic()
        command = [self.terrane, "mount", self.mount_point, "--foreground", *(["--threads", str(threads)] if threads else [])]
        ready = os.path.join(self.mount_point, "volumes")
        self.server = process.Server(command, self.mount_point, ready, self.environment)
        return time.monotonic() - begin

    def unmount(self):
        if self.server:
            self.server.end()
            self.server = None

    def kill(self):
        self.server.kill()
        self.server = None

    def file(self, volume):
        return os.path.join(self.mount_point, "by-name", "volumes", volume)

    def fill(self, volume, size):
        fio.fill(self.file(volume), size)

    def stored_files(self):
        layers = os.path.join(self.dir, "layers")
        return [os.path.join(folder, name) for folder, _, names in os.walk(layers) for name in names if name == "data"]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        # What it has not flushed yet would be written for nothing.
        if self.server:
            self.kill()
        process.remove(self.dir)
