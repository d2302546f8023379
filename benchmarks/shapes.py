"""Weights and rows of activations that kernels are measured at."""

from __future__ import annotations

import argparse

#: Weights by name, (N, K): linear layers of Gemma, Llama 3 and a square one.
SHAPES: dict[str, tuple[int, int]] = {
    "gemma4-31b gate_up": (43008, 5376),
    "gemma4-31b gate": (21504, 5376),
    "gemma4-31b down": (5376, 21504),
    "gemma4-12b up": (15360, 3840),
    "gemma4-12b down": (3840, 15360),
    "square-4096": (4096, 4096),
    "llama3-8b gate_up": (28672, 4096),
    "llama3-8b down": (4096, 14336),
    "llama3-8b qkv": (6144, 4096),
    "llama3-70b down": (8192, 28672),
}

#: Rows of activations: decoding, small batches, prompts, and numbers that fit no tile.
ROWS = (1, 2, 3, 4, 5, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 300, 482, 777, 1024, 2048, 4096)


def parse_shapes(text: str) -> list[tuple[int, int]]:
    """Read names of `SHAPES` and ``NxK``, separated by commas; ``all`` is all of `SHAPES`. For argparse."""
    shapes = []
    for word in [] if not text else list(SHAPES) if text == "all" else text.split(","):
        N, _, K = word.partition("x")
        if word not in SHAPES and not (N.isdigit() and K.isdigit()):
            raise argparse.ArgumentTypeError(f"found the shape {word!r}, expected a name or NxK")
        shapes.append(SHAPES[word] if word in SHAPES else (int(N), int(K)))
    return shapes


def parse_rows(text: str) -> list[int]:
    """Read numbers of rows separated by commas; ``all`` is `ROWS`. For argparse."""
    return list(ROWS) if text == "all" else [int(word) for word in text.split(",")]


def parse_words(text: str) -> list[str]:
    """Read words separated by commas. For argparse."""
    return text.split(",")
