"""How many threads TVM's CPU kernels run on."""

from __future__ import annotations

import os
from pathlib import Path

_TOPOLOGY = Path("/sys/devices/system/cpu")


def cores() -> int:
    """Return the physical cores this process may run on: hyperthreads share one core's vector units."""
    if not hasattr(os, "sched_getaffinity"):
        return os.cpu_count() or 1
    allowed = os.sched_getaffinity(0)
    siblings = set()
    for cpu in allowed:
        try:
            siblings.add((_TOPOLOGY / f"cpu{cpu}" / "topology" / "thread_siblings_list").read_text().strip())
        except OSError:
            return len(allowed)
    return len(siblings)


def configure_threads() -> None:
    """Let TVM run on every physical core, and leave the calling thread where it is.

    TVM reads ``TVM_NUM_THREADS`` and ``TVM_BIND_THREADS`` when its pool starts, at the first parallel kernel of
    a process. Its own defaults are half of the processors, taking them for hyperthreads even where they are
    none, and to pin the calling thread, whose later threads (torch's) then share one core. Values that the
    environment holds already are kept.
    """
    os.environ.setdefault("TVM_NUM_THREADS", str(cores()))
    os.environ.setdefault("TVM_BIND_THREADS", "0")
