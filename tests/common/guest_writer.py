"""Writes sectors of a volume until that fails or the machine is killed, each full of its number, and says what was synced and snapped,
and with which error it ended.

The places follow from the seed, as in tests/e2e_guest.rs.
"""
import os
import subprocess
import sys

path, write, state, sectors = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
file = os.open(path, os.O_RDWR)
try:
    while True:
        state = (state * 6364136223846793005 + 1442695040888963407) % 2**64
        os.pwrite(file, write.to_bytes(8, "little") * 512, (state >> 33) % sectors * 4096)
        if (state >> 20) % 7 == 0:
            os.fdatasync(file)
            print("synced", write, flush=True)
        if write % 60 == 0:
            terrane = [os.environ["TERRANE"], "snapshot", "create", "web", "--name", f"s{write}"]
            if subprocess.run(terrane, stdout=subprocess.DEVNULL).returncode == 0:
                print("snapped", write, flush=True)
        write += 1
except OSError as error:
    print("failed", error.errno, flush=True)
