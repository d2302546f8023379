"""How long a launch should take on a card: a roofline with occupancy, waves and bytes in flight.

It orders the candidates of a search, predicts the records of architectures that nobody has tuned on, and scales
what was measured of one weight to another (:mod:`.tuned`). Two times bound a launch from below, and it takes
the longer:

memory
    Bytes of weights, activations and result over the bandwidth a copy reaches, lessened where the SMs that are
    busy (waves) ask for less than that: an SM has some bytes on the way (occupancy) for a latency, and asks for
    no more than an SM of the reference. A card with less bandwidth an SM needs fewer of them busy.
multiprocessors
    What the busiest of them has to do: blocks one after the other or side by side, each some steps of 128 k.

Fitted on an H200 (2026-11-22, weights cold); other cards are scaled by their datasheet's tensor rate, clock and
bandwidth, which nobody has verified on them: records that come of it say ``predicted``. Of what it prefers it
thinks too well: see `CHOSEN`.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from functools import cache

from nvfp4_tvm import layout
from nvfp4_tvm.arch import ARCHS, Arch, Card

#: Share of the datasheet's bandwidth that a device copy reaches: 4.24 of 4.8 TB/s on an H200. Assumed elsewhere.
COPY_SHARE = 0.883
#: From asking for a byte of cold memory to having it, under load, microseconds (H200; assumed elsewhere).
LATENCY = 1.5
#: Share of the datasheet's tensor rate that mma.sync reaches: 527 of 989 TFLOP/s on an H200, whose full rate only
#: wgmma has. 0.85 elsewhere is an assumption.
MMA_SYNC_SHARE = {"sm_90": 0.533}
_MMA_SYNC_SHARE = 0.85
#: The factor by which the model is off for configurations that it prefers; for the families' own choices it is off
#: by 1.08 (97 figures on an H200, benchmarks/results/predicted_records_h200.json): the best of many predictions is
#: the most flattering one. So much must be predicted to be gained before a choice is left.
CHOSEN = 1.25
#: Bytes of 16 weights: 8 of codes, one scale.
_GROUP_BYTES = layout.GROUP_SIZE // 2 + 1


@dataclass(frozen=True)
class Footprint:
    """What a block takes of an SM: threads, registers of a thread, bytes of shared memory."""

    threads: int
    registers: int
    shared: int


@cache
def usual_card(arch: Arch) -> Card:
    """Return the card that figures of an architecture are predicted for: the fastest of its usual size.

    The size is the smaller of the two middle ones of an even number: what fills it fits the larger, not the
    other way around.
    """
    sms = statistics.median_low(card.sms for card in arch.cards)
    return max((card for card in arch.cards if card.sms == sms), key=lambda card: card.bandwidth)


#: What the figures were fitted on.
REFERENCE = usual_card(ARCHS["sm_90"])


def weight_bytes(N: int, K: int) -> int:
    """Bytes of a packed weight, without the padding of the layout."""
    return N * K * _GROUP_BYTES // layout.GROUP_SIZE


def moved_bytes(N: int, K: int, M: int) -> int:
    """Bytes that a matmul with 16-bit activations and results must move at least."""
    return weight_bytes(N, K) + 2 * M * (N + K)


def floor_us(N: int, K: int, M: int, bytes_per_second: float) -> float:
    """Time to move these bytes, microseconds."""
    return moved_bytes(N, K, M) / bytes_per_second * 1e6


def memory_us(N: int, K: int, M: int, card: Card, busy: float, in_flight: float) -> float:
    """Return the time that memory takes, microseconds.

    Parameters
    ----------
    N, K, M : int
        The matmul.
    card : Card
        Where.
    busy : float
        Share of the SMs that work, over the launch.
    in_flight : float
        Bytes an SM has asked for at a time.
    """
    of_sm = min(sm_bandwidth(REFERENCE), in_flight / (LATENCY * 1e-6))
    return floor_us(N, K, M, min(COPY_SHARE * card.bandwidth, busy * card.sms * of_sm))


def sm_bandwidth(card: Card) -> float:
    """Bytes a second that a copy moves for each SM."""
    return COPY_SHARE * card.bandwidth / card.sms


def mma_sync_rate(arch: Arch, card: Card) -> float:
    """Operations a microsecond that mma.sync reaches on one SM."""
    return card.tensor_flops * MMA_SYNC_SHARE.get(arch.name, _MMA_SYNC_SHARE) / card.sms * 1e-6


def clock_ratio(card: Card) -> float:
    """How much longer than on the reference card the same instructions take."""
    return REFERENCE.boost_hz / card.boost_hz


def busy_share(blocks: int, resident: int, sms: int) -> float:
    """Share of the SMs' slots that work while ``blocks`` run, ``resident`` on an SM at a time.

    The last wave may be short, and a grid smaller than the card leaves SMs idle. Blocks that are alone on their SM
    take what others leave, so that only whole SMs count in the first wave.
    """
    if blocks <= sms:
        return blocks / sms
    slots = min(resident, -(-blocks // sms)) * sms
    waves = -(-blocks // slots)
    return blocks / (waves * slots)
