"""restic: two repositories with passwords of their own, so that its `copy` encrypts anew, as ours does."""

import os

from . import disk_image, process
from .contestants import password

NAME = "restic"
PROGRAMS = ["restic"]


class Restic:
    """Source and target repository in a folder of their own."""

    def __init__(self, folder):
        self.folder = folder
        self.source, self.target = os.path.join(folder, "restic.source"), os.path.join(folder, "restic.target")
        self.source_password, self.target_password = password(folder, "restic.source"), password(folder, "restic.target")
        # Its own choice would be to try to compress what can't be.
        self.environment = {**os.environ, "RESTIC_COMPRESSION": "off", "RESTIC_CACHE_DIR": os.path.join(folder, "restic.cache")}
        self._run(self.source, self.source_password, "init")
        self.make_target()

    def _run(self, repository, secret, *arguments):
        command = ["restic", "--quiet", "--repo", repository, "--password-file", secret, *arguments]
        return process.run(command, self.environment)

    def make_target(self):
        process.remove(self.target)
        self._run(self.target, self.target_password, "init")

    def back_up(self, raw):
        self._run(self.source, self.source_password, "backup", raw)

    def copy(self):
        """What the target lacks; all files of it, to be read first, are `source`."""
        origin = ["--from-repo", self.source, "--from-password-file", self.source_password]
        self._run(self.target, self.target_password, "copy", *origin)

    def target_bytes(self):
        return disk_image.stored_bytes(os.path.join(self.target, "data"))
