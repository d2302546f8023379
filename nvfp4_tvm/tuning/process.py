"""Processes that end with the one that started them, also if that is killed."""

from __future__ import annotations

import ctypes
import os
import signal

#: ``prctl`` option (Linux, ``<linux/prctl.h>``): the signal a process gets when its parent ends.
_PR_SET_PDEATHSIG = 1


def end_with_parent(parent: int) -> None:
    """Ask the system to kill this process when ``parent``, which started it, ends. Linux only, else nothing."""
    try:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    except (OSError, AttributeError):
        return
    if os.getppid() != parent:  # it ended before the call
        os._exit(1)


def ignore_interrupts(parent: int) -> None:
    """Leave interrupts of the terminal to ``parent``, and end with it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent(parent)
