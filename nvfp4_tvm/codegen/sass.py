"""Reading images with NVIDIA's binary tools: what a fatbin holds, and the instructions of its kernels.

For tests and for whoever tunes a kernel; building and running libraries never needs it. The tools come from
the PyPI packages ``nvidia-cuda-cuobjdump`` and ``nvidia-cuda-nvdisasm`` or from a CUDA installation.
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections import Counter
from pathlib import Path

from nvfp4_tvm.codegen.toolkit import find_tool
from nvfp4_tvm.errors import TargetError


def _cuobjdump(image: bytes, *arguments: str) -> str:
    tool = find_tool("cuobjdump")
    # cuobjdump calls nvdisasm by name
    path = os.pathsep.join([str(find_tool("nvdisasm").parent), os.environ.get("PATH", "")])
    with tempfile.TemporaryDirectory(prefix="nvfp4_tvm_") as folder:
        file = Path(folder) / "image.fatbin"
        file.write_bytes(image)
        result = subprocess.run(
            [str(tool), *arguments, str(file)],
            capture_output=True,
            text=True,
            env={**os.environ, "PATH": path},
            check=False,
        )
    if result.returncode:
        reason = (result.stderr or result.stdout).strip().splitlines()
        raise TargetError(f"cuobjdump cannot read the image: {reason[0] if reason else 'no message'}")
    return result.stdout


def list_images(image: bytes) -> list[tuple[str, str]]:
    """List what a fatbin holds.

    Parameters
    ----------
    image : bytes
        A fatbin or a cubin.

    Returns
    -------
    list of (str, str)
        ``("cubin", "sm_89")`` or ``("ptx", "sm_89")``, machine code first. PTX for ``compute_89`` is listed
        with the name of its ``.target``, ``sm_89``, as in the PTX itself.

    Raises
    ------
    TargetError
        When the tools are missing or refuse the image.
    """
    text = _cuobjdump(image, "--list-elf", "--list-ptx")
    pattern = re.compile(r"^(ELF|PTX) file.*\.(sm_\d+[a-z]?)\.(?:cubin|ptx)$", re.MULTILINE)
    kinds = {"ELF": "cubin", "PTX": "ptx"}
    return sorted((kinds[kind], arch) for kind, arch in pattern.findall(text))


def dump_ptx(image: bytes, arch: str) -> str:
    """PTX text that a fatbin holds for an architecture.

    Raises
    ------
    TargetError
        When the image holds none, or the tools are missing.
    """
    text = _cuobjdump(image, "--dump-ptx", "--gpu-architecture", arch)
    if f".target {arch}" not in text:
        raise TargetError(f"the image holds no PTX for {arch}: it holds {list_images(image)}")
    return text


def sass(image: bytes, arch: str) -> str:
    """Disassemble the machine code of an image.

    Parameters
    ----------
    image : bytes
        A fatbin or a cubin.
    arch : str
        Architecture whose code to show.

    Returns
    -------
    str
        Listing with a line ``Function : NAME`` before each kernel.

    Raises
    ------
    TargetError
        When the tools are missing or the image holds no machine code for ``arch``.
    """
    if ("cubin", arch) not in list_images(image):
        raise TargetError(f"the image holds no machine code for {arch}: it holds {list_images(image)}")
    return _cuobjdump(image, "--dump-sass", "--gpu-architecture", arch)


_INSTRUCTION = re.compile(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)")


def count_instructions(listing: str) -> Counter[str]:
    """Count opcodes with their modifiers (``HMMA.16816.F32.BF16``) in a listing of `sass`."""
    return Counter(_INSTRUCTION.findall(listing))
