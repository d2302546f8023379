"""Frozen table of the GPU architectures that kernels are generated for.

Limits are those of the tables "Technical Specifications per Compute Capability" and "Feature Support per
Compute Capability" in the CUDA C++ Programming Guide 12.9 (chapter "Compute Capabilities"), and of the
"Ampere", "Ada" and "Hopper" tuning guides, which say the same. Figures of cards come from NVIDIA's
architecture whitepapers (A100, GA102, Ada, H100) and datasheets; each card names its source.

Everything that needs one of these numbers imports it from here. Sizes are bytes unless a name says otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass

from nvfp4_tvm.errors import TargetError

KIB = 1024
MIB = 1024 * KIB

WARP_SIZE = 32
"""Threads of a warp, on every architecture so far."""

MAX_THREADS_PER_BLOCK = 1024
"""Same on every compute capability since 2.0 (Programming Guide, "Technical Specifications")."""

STATIC_SHARED_BYTES = 48 * KIB
"""Shared memory a kernel may use without asking: statically declared arrays can never hold more.

More must be dynamic and asked for by ``cuFuncSetAttribute`` (Programming Guide, "Shared Memory" of each
compute capability); TVM's runtime asks for it at the first launch.
"""

RESERVED_SHARED_BYTES = 1 * KIB
"""Shared memory that the system takes from each resident block on compute capability 8.x and 9.0."""


@dataclass(frozen=True)
class Card:
    """A product: what an architecture's limits leave open.

    Attributes
    ----------
    name : str
        Marketing name with the variant that the figures belong to.
    sms : int
        Enabled streaming multiprocessors.
    l2_bytes : int
        Size of the level-2 cache.
    bandwidth : float
        Peak memory bandwidth of the datasheet in bytes per second (10^9, not 2^30).
    tensor_flops : float
        Peak of dense bf16 tensor cores with fp32 accumulation, operations per second. GeForce cards accumulate in
        fp32 at half the rate of the same chip on a professional card.
    boost_hz : float
        Boost clock.
    source : str
        Where the figures are from.
    """

    name: str
    sms: int
    l2_bytes: int
    bandwidth: float
    tensor_flops: float
    boost_hz: float
    source: str

    def __post_init__(self) -> None:
        assert 8 <= self.sms <= 160, (self.name, self.sms)
        assert self.l2_bytes % (512 * KIB) == 0 and self.l2_bytes >= MIB, (self.name, self.l2_bytes)
        # A slip between GB/s, GiB/s and bytes/s is the likely mistake here
        assert 1e11 <= self.bandwidth <= 1e13, (self.name, self.bandwidth)
        # 512 (GeForce) to 4096 (Hopper) operations a clock of an SM; sparse figures would be twice that
        assert 500 <= self.tensor_flops / self.sms / self.boost_hz <= 4200, self.name
        assert self.source, self.name


@dataclass(frozen=True)
class Arch:
    """One compute capability: its limits and the instructions that kernels may use.

    Attributes
    ----------
    name : str
        ``sm_XY``: the name used in targets, databases and messages.
    compile_arch : str
        Architecture a kernel is compiled for when it uses every instruction listed here. ``sm_90a`` for
        sm_90: ``wgmma`` is in the architecture-specific set only (PTX ISA, directive ``.target``), and
        such code runs on compute capability 9.0 and no other. Kernels without it use ``name`` instead, whose
        PTX later GPUs can translate.
    shared_per_block : int
        Most dynamic shared memory a block may ask for.
    shared_per_sm : int
        Shared memory of an SM; each resident block takes `RESERVED_SHARED_BYTES` besides its own.
    registers_per_sm, registers_per_block, registers_per_thread : int
        32-bit registers.
    max_warps_per_sm, max_blocks_per_sm : int
        Resident at the same time.
    mma_bf16 : bool
        ``mma.sync.m16n8k16`` with bf16 operands.
    cp_async : bool
        ``cp.async`` from global to shared memory.
    wgmma, tma : bool
        Warpgroup matrix multiply; bulk tensor copies (``cp.async.bulk.tensor``).
    pdl : bool
        Programmatic dependent launch (``griddepcontrol``).
    cards : tuple of Card
        Known products.
    """

    name: str
    compile_arch: str
    shared_per_block: int
    shared_per_sm: int
    max_warps_per_sm: int
    max_blocks_per_sm: int
    mma_bf16: bool
    cp_async: bool
    wgmma: bool
    tma: bool
    pdl: bool
    cards: tuple[Card, ...]
    registers_per_sm: int = 64 * KIB
    registers_per_block: int = 64 * KIB
    registers_per_thread: int = 255

    def __post_init__(self) -> None:
        assert self.name.startswith("sm_") and self.name[3:].isdigit(), self.name
        assert self.compile_arch in (self.name, self.name + "a"), self.compile_arch
        assert (self.compile_arch == self.name + "a") == self.wgmma, "wgmma is in the 'a' feature set only"
        # On 8.x and 9.0 the largest block is the whole SM less the reserved KiB
        assert self.shared_per_block == self.shared_per_sm - RESERVED_SHARED_BYTES, self.name
        assert self.shared_per_block > STATIC_SHARED_BYTES, self.name
        assert self.registers_per_block <= self.registers_per_sm, self.name
        assert self.max_warps_per_sm * WARP_SIZE >= MAX_THREADS_PER_BLOCK, self.name
        assert 0 < self.max_blocks_per_sm <= self.max_warps_per_sm, self.name
        assert self.registers_per_thread == 255, "R255 is the zero register"
        # Every kernel family here is built on bf16 mma.sync and cp.async; wgmma kernels feed from TMA
        assert self.mma_bf16 and self.cp_async, self.name
        assert self.tma or not self.wgmma, self.name
        assert self.cards and len({card.name for card in self.cards}) == len(self.cards), self.name

    @property
    def capability(self) -> tuple[int, int]:
        """Compute capability as (major, minor)."""
        return int(self.name[3:-1]), int(self.name[-1])

    @property
    def max_threads_per_sm(self) -> int:
        """Resident threads of an SM."""
        return self.max_warps_per_sm * WARP_SIZE

    def blocks_per_sm(self, threads: int, registers: int, shared: int) -> int:
        """Blocks that can be resident on one SM at the same time.

        Parameters
        ----------
        threads : int
            Threads of a block.
        registers : int
            Registers of a thread, as ptxas reports them.
        shared : int
            Static and dynamic shared memory of a block in bytes.

        Returns
        -------
        int
            0 when a block cannot run at all. Registers are allocated to warps in units of 256, shared memory
            to blocks in units of 128 bytes (CUDA Occupancy Calculator, compute capability 8.0 to 9.0).
        """
        warps = -(-threads // WARP_SIZE)
        if threads > MAX_THREADS_PER_BLOCK or registers > self.registers_per_thread:
            return 0
        if shared > self.shared_per_block:
            return 0
        per_warp = -(-max(registers, 1) * WARP_SIZE // 256) * 256
        # Each of the four partitions of an SM holds a quarter of the registers and hosts whole warps
        warps_by_registers = 4 * (self.registers_per_sm // 4 // per_warp)
        per_block = -(-(shared + RESERVED_SHARED_BYTES) // 128) * 128
        return min(
            self.max_blocks_per_sm,
            self.max_warps_per_sm // warps,
            warps_by_registers // warps,
            self.shared_per_sm // per_block,
        )


_ARCHS = (
    Arch(
        name="sm_80",
        compile_arch="sm_80",
        shared_per_block=163 * KIB,
        shared_per_sm=164 * KIB,
        max_warps_per_sm=64,
        max_blocks_per_sm=32,
        mma_bf16=True,
        cp_async=True,
        wgmma=False,
        tma=False,
        pdl=False,
        cards=(
            Card(
                "A100 SXM 40GB",
                108,
                40 * MIB,
                1555e9,
                312e12,
                1.41e9,
                "A100 Tensor Core GPU datasheet; A100 whitepaper",
            ),
            Card(
                "A100 PCIe 80GB",
                108,
                40 * MIB,
                1935e9,
                312e12,
                1.41e9,
                "A100 80GB datasheet; A100 whitepaper",
            ),
            Card(
                "A100 SXM 80GB", 108, 40 * MIB, 2039e9, 312e12, 1.41e9, "A100 80GB datasheet; A100 whitepaper"
            ),
        ),
    ),
    Arch(
        name="sm_86",
        compile_arch="sm_86",
        shared_per_block=99 * KIB,
        shared_per_sm=100 * KIB,
        max_warps_per_sm=48,
        max_blocks_per_sm=16,
        mma_bf16=True,
        cp_async=True,
        wgmma=False,
        tma=False,
        pdl=False,
        cards=(
            Card("GeForce RTX 3090", 82, 6 * MIB, 936e9, 71e12, 1.695e9, "GA102 whitepaper v2.1, appendix"),
        ),
    ),
    Arch(
        name="sm_89",
        compile_arch="sm_89",
        shared_per_block=99 * KIB,
        shared_per_sm=100 * KIB,
        max_warps_per_sm=48,
        max_blocks_per_sm=24,
        mma_bf16=True,
        cp_async=True,
        wgmma=False,
        tma=False,
        pdl=False,
        cards=(
            Card(
                "GeForce RTX 4090",
                128,
                72 * MIB,
                1008e9,
                165.2e12,
                2.52e9,
                "Ada whitepaper v2.02, appendix A",
            ),
            Card(
                "L40S",
                142,
                96 * MIB,
                864e9,
                362e12,
                2.52e9,
                "L40S datasheet; L2 as of the L40, Ada whitepaper",
            ),
        ),
    ),
    Arch(
        name="sm_90",
        compile_arch="sm_90a",
        shared_per_block=227 * KIB,
        shared_per_sm=228 * KIB,
        max_warps_per_sm=64,
        max_blocks_per_sm=32,
        mma_bf16=True,
        cp_async=True,
        wgmma=True,
        tma=True,
        pdl=True,
        cards=(
            Card("H100 PCIe", 114, 50 * MIB, 2000e9, 756e12, 1.755e9, "H100 datasheet; H100 whitepaper"),
            Card("H100 SXM", 132, 50 * MIB, 3350e9, 989e12, 1.83e9, "H100 datasheet; H100 whitepaper"),
            Card(
                "H200 SXM",
                132,
                60 * MIB,
                4800e9,
                989e12,
                1.83e9,
                "H200 datasheet; L2 as its driver reports it",
            ),
        ),
    ),
)

ARCHS: dict[str, Arch] = {arch.name: arch for arch in _ARCHS}
"""All supported architectures by name, oldest first."""

SUPPORTED = ", ".join(ARCHS)
"""Names of the supported architectures as messages print them."""


def get_arch(name: str) -> Arch:
    """Look an architecture up.

    Parameters
    ----------
    name : str
        ``sm_89``, or an architecture's `Arch.compile_arch` (``sm_90a``).

    Returns
    -------
    Arch

    Raises
    ------
    TargetError
        When it is not one of `SUPPORTED`; the message says why.
    """
    for arch in ARCHS.values():
        if name in (arch.name, arch.compile_arch):
            return arch
    raise TargetError(
        f"GPU architecture {name!r} is not supported: {_reason(name)}; choose one of {SUPPORTED}"
    )


def arch_of_capability(version: str) -> Arch:
    """Look the architecture of a device up by its compute capability as drivers print it, such as ``8.9``.

    Raises
    ------
    TargetError
        When that capability is not supported.
    """
    major, dot, minor = version.partition(".")
    if not (dot and major.isdigit() and minor.isdigit()):
        raise TargetError(f"compute capability {version!r} is malformed: expected MAJOR.MINOR such as 8.9")
    return get_arch(f"sm_{major}{minor}")


def _reason(name: str) -> str:
    digits = name.removeprefix("sm_").rstrip("abcdefghijklmnopqrstuvwxyz")
    if not (name.startswith("sm_") and digits.isdigit() and len(digits) >= 2):
        return "a name has the form sm_XY"
    capability = int(digits)
    if digits in {arch.name[3:] for arch in ARCHS.values()}:
        return f"sm_{digits} has no such feature set"
    if capability < 80:
        return "it has no bf16 mma.sync and no cp.async, which came with sm_80"
    if capability >= 100:
        return "it has FP4 units of its own, which this package does not use"
    return "it is not in the architecture table"
