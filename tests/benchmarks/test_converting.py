from pathlib import Path

import benchmark_modules  # noqa: F401

from benchmarks import converting


def test_every_script_is_run_and_exists(tmp_path):
    commands = converting.commands(tmp_path, "/scratch", quick=False)
    assert all((converting.ROOT / command[0]).is_file() for command in commands)
    assert [Path(command[0]).stem for command in commands] == [
        "convert",
        "quantize",
        "compile_time",
        "large_models",
    ]
    assert commands[3][-2:] == ["--folder", "/scratch"]
    assert converting.commands(tmp_path, None, quick=True) == commands[:2]
