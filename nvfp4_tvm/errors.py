"""Errors that a user can cause, and so must be able to read.

Every message is one line: it names the file, tensor or layer, says what was found, what was expected, and
what to do. The command line prints it and exits with code 2; from Python it is a ``ValueError``.
"""


class NVFP4Error(ValueError):
    """Base class of all errors caused by input: checkpoints, options, targets."""


class CheckpointError(NVFP4Error):
    """A checkpoint file is unreadable, inconsistent or malformed."""


class VanishedError(CheckpointError):
    """A checkpoint file was removed, cut or lost its disk while it was being read."""


class UnsupportedFormatError(CheckpointError):
    """A checkpoint is well-formed but holds a number format or layout this package does not run."""


class ShapeError(NVFP4Error):
    """An array has the wrong shape or dtype."""


class TargetError(NVFP4Error):
    """A compilation target is unknown, unsupported, or lacks a tool it needs."""


class LibraryError(NVFP4Error):
    """A compiled output folder is incomplete, foreign, or does not fit this installation."""


class DatabaseError(NVFP4Error):
    """A tuning database is unreadable, damaged, foreign, or for other versions."""


class OutputError(NVFP4Error):
    """An output cannot be written: no room, no permission, or another process is writing it."""
