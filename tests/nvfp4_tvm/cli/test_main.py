import errno
import inspect
import logging
import resource
import signal
import subprocess
import sys

import pytest

from nvfp4_tvm import __version__
from nvfp4_tvm._pins import TVM_VERSION
from nvfp4_tvm.errors import CheckpointError
from nvfp4_tvm.layout import LAYOUT_VERSION

COMMANDS = ("inspect", "quantize", "compile", "tune", "generate")
HELP = """
import sys
from nvfp4_tvm.cli.main import main
try:
    main()
except SystemExit as ended:
    assert not ended.code, ended.code
slow = {"tvm", "tvm_ffi", "torch", "transformers", "numpy"} & set(sys.modules)
assert not slow, slow
"""


def test_options_whose_metavar_is_their_name_say_their_name():
    """typer 0.27 takes ``metavar="DEVICE"`` of a parameter ``device`` for its name: the option is ``--DEVICE``."""
    from typer.models import OptionInfo

    from nvfp4_tvm.cli import main

    checked = 0
    for command in main.app.registered_commands:
        for name, hint in inspect.get_annotations(command.callback, eval_str=True).items():
            for info in getattr(hint, "__metadata__", ()):
                if isinstance(info, OptionInfo) and str(info.metavar).lower() == name:
                    # In `Annotated`, the first of the names is in the place of the default
                    assert f"--{name}" in (info.default, *info.param_decls), (command.name, name)
                    checked += 1
    assert checked >= 2  # --device, --target


def test_version(cli):
    done = cli("--version")
    assert done.code == 0 and done.err == ""
    assert done.out == (
        f"nvfp4-tvm {__version__} (TVM {TVM_VERSION}, tvm-ffi 0.1.14.post1, packed layout {LAYOUT_VERSION})\n"
    )


@pytest.mark.parametrize("arguments", [["--help"], *([command, "--help"] for command in COMMANDS)])
def test_help_imports_nothing_slow(arguments):
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-c", HELP, *arguments], capture_output=True, text=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr
    assert "Usage" in done.stdout
    # of processor time, which a busy machine stretches less than the clock's: 0.4 alone, 1.0 beside other tests
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1.5


def test_installed_entry_point():
    done = subprocess.run(
        [sys.executable, "-m", "nvfp4_tvm.cli.main", "--version"], capture_output=True, text=True
    )
    assert done.returncode == 0 and done.stdout.startswith("nvfp4-tvm ")
    from importlib.metadata import entry_points

    (script,) = entry_points(group="console_scripts", name="nvfp4-tvm")
    assert script.value == "nvfp4_tvm.cli.main:main"


@pytest.mark.parametrize(
    "arguments",
    [
        ["nonsense"],
        ["inspect"],
        ["compile", "a"],
        ["compile", "a", "-o", "b", "--dtype", "int8"],
        ["quantize", "a", "b", "--format", "gguf"],
        ["quantize", "a", "b", "--method", "best"],
        ["tune", "a", "--trials", "0"],
        ["generate", "a", "--max-new-tokens", "many", "--token-ids", "1"],
    ],
)
def test_usage_errors_exit_2(cli, arguments):
    done = cli(*arguments)
    assert done.code == 2 and done.out == "" and done.err


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (CheckpointError("a.safetensors:\n  found \x1b[31mred"), 2, r"a.safetensors: found \x1b[31mred"),
        (OSError(errno.ENOSPC, "No space left on device", "/full"), 2, "/full: No space left on device"),
        (PermissionError(errno.EACCES, "Permission denied", "/mine"), 2, "/mine: Permission denied"),
        (OSError("nameless"), 2, "nameless"),
    ],
)
@pytest.mark.parametrize("more", [(), ("--json",)])
def test_errors_are_one_line(cli, monkeypatch, error, code, message, more):
    def fail(*_arguments, **_options):
        raise error

    monkeypatch.setattr("nvfp4_tvm.quantize.quantize_checkpoint", fail)
    done = cli("quantize", "a", "b", *more)
    assert done == (code, "", f"nvfp4-tvm: error: {message}\n")


def test_a_long_error_is_not_wrapped(cli, tmp_path):
    done = cli("inspect", tmp_path / ("x" * 200))
    assert done.code == 2 and done.err.count("\n") == 1


def test_interrupt_exits_130(cli, monkeypatch):
    def interrupt(*_arguments, **_options):
        raise KeyboardInterrupt

    monkeypatch.setattr("nvfp4_tvm.quantize.quantize_checkpoint", interrupt)
    done = cli("quantize", "a", "b")
    assert done.code == 130 and done.out == "" and "Traceback" not in done.err


def test_an_interrupt_that_tvm_turned_into_another_error_exits_130(cli, monkeypatch):
    def compile(*_arguments, **_options):
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            raise RuntimeError("from C++") from None

    before = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr("nvfp4_tvm.quantize.quantize_checkpoint", compile)
    assert cli("quantize", "a", "b") == (130, "", "")
    assert signal.getsignal(signal.SIGINT) is before


def test_a_bug_is_not_hidden(monkeypatch):
    from nvfp4_tvm.cli.main import main

    def fail(*_arguments, **_options):
        raise AssertionError("a bug")

    monkeypatch.setattr("nvfp4_tvm.quantize.quantize_checkpoint", fail)
    monkeypatch.setattr(sys, "argv", ["nvfp4-tvm", "quantize", "a", "b"])
    with pytest.raises(AssertionError, match="a bug"):
        main()


def test_warnings_show_and_verbose_adds(cli, monkeypatch):
    logger = logging.getLogger("nvfp4_tvm.some.module")

    def log(*_arguments, **_options):
        logger.info("chosen")
        logger.warning("careful [bold]")
        raise CheckpointError("end")

    monkeypatch.setattr("nvfp4_tvm.quantize.quantize_checkpoint", log)
    level = logging.getLogger("nvfp4_tvm").level
    try:
        quiet = cli("quantize", "a", "b").err
        assert quiet == "nvfp4-tvm: warning: careful [bold]\nnvfp4-tvm: error: end\n"
        for arguments in (("-v", "quantize", "a", "b"), ("quantize", "a", "b", "--verbose")):
            logging.getLogger("nvfp4_tvm").setLevel(level)
            assert cli(*arguments).err == "nvfp4-tvm: info: chosen\n" + quiet
    finally:
        logging.getLogger("nvfp4_tvm").setLevel(level)
