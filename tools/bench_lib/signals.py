"""Ctrl-C and its kin as an exception, kept back while something is begun or ended that must not be left half done."""

import contextlib
import signal
import threading

CAUGHT = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupted(SystemExit):
    """Ended by a signal; the exit status is the shell's."""

    def __init__(self, number):
        super().__init__(128 + number)


class _State:
    depth = 0
    pending = None


def _arrived(number, _frame):
    if _State.depth:
        _State.pending = number
    else:
        raise Interrupted(number)


def catch():
    for number in CAUGHT:
        signal.signal(number, _arrived)


@contextlib.contextmanager
def held():
    """A signal that arrives within is raised at the end. Signals come to the main thread alone."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _State.depth += 1
    try:
        yield
    finally:
        _State.depth -= 1
        number = _State.pending
        if number is not None and not _State.depth:
            _State.pending = None
            raise Interrupted(number)
