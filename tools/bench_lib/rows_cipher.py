"""The cipher on one core: `benches/cipher.rs`, which has OpenSSL's XTS beside ours, and AWS-LC's (`benches/aws_lc`), in turn, some rounds."""

import json
import os

from . import process
from .row import OURS, Goal, rate

NAME = "cipher"
XTS = "XTS-AES-256, sectors of 4 KiB, one core"
PORTABLE = "the same, portable path"
SEALED = "XTS and tag together"
OPENSSL, AWS_LC, ALONE = "OpenSSL EVP", "AWS-LC EVP", "XTS alone"
MEASURED = {"encrypt": "fastest/encrypt", "portable": "portable/encrypt", "seal": "fastest/seal_sectors", "openssl": "openssl/encrypt"}
# Of a 1 MiB request.
RUN_BYTES = 1 << 20


def row_names():
    return [XTS, PORTABLE, SEALED]


def measure(context):
    """Where the processor lacks the paths of vectors there is one path, and its own bound holds."""
    wide = context.machine["wide"]
    notes = [] if wide else ["this processor has only the portable path"]
    xts = rate(XTS, "GB/s", [Goal(2, OPENSSL), Goal(1, AWS_LC)] if wide else [], notes)
    portable = rate(PORTABLE, "GB/s", [Goal(0.65, OPENSSL)])
    sealed = rate(SEALED, "GB/s", [Goal(0.55, ALONE)], notes)
    for number in range(context.rounds):
        context.say(f"round {number + 1} of {context.rounds}: cipher")
        speed = {name: _criterion(context, bench) for name, bench in MEASURED.items()}
        for row, ours, to, other in [
            (xts, "encrypt", OPENSSL, "openssl"),
            (portable, "portable", OPENSSL, "openssl"),
            (sealed, "seal", ALONE, "encrypt"),
        ]:
            row.add(OURS, speed[ours])
            row.add(to, speed[other])
        if context.aws_lc:
            xts.add(AWS_LC, _aws_lc(context))
    return [xts, portable, sealed]


def _criterion(context, bench):
    """GB/s, by the median that Criterion leaves."""
    seconds = ["--warm-up-time", "0.2", "--measurement-time", str(min(context.seconds, 2)), "--noplot"]
    target = os.path.join(context.work, "criterion")
    environment = {**os.environ, "CRITERION_HOME": target}
    process.run([context.cipher, "--bench", f"^run/{bench}$", *seconds], environment)
    path = os.path.join(target, "run", bench.replace("/", "_"), "new", "estimates.json")
    with open(path, encoding="utf-8") as file:
        nanoseconds = json.load(file)["median"]["point_estimate"]
    return RUN_BYTES / nanoseconds


def _aws_lc(context):
    return RUN_BYTES / int(process.run([context.aws_lc, str(min(context.seconds, 2))]))
