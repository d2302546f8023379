import logging

import pytest

from nvfp4_tvm.codegen import cache
from nvfp4_tvm.codegen.cache import VARIABLE, cache_folder, compile_cached, entry_name

SOURCE = 'extern "C" __global__ void twice(float* x) { x[threadIdx.x] *= 2.0f; }'


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv(VARIABLE, str(tmp_path / "kernels"))
    return tmp_path / "kernels"


@pytest.fixture
def compilations(monkeypatch):
    """Architectures for which the compiler really ran."""
    ran = []
    compiler = cache.compile_machine_code

    def counted(source, arch, ptx):
        ran.append(arch)
        return compiler(source, arch, ptx)

    monkeypatch.setattr(cache, "compile_machine_code", counted)
    return ran


def test_a_second_compilation_is_read_back(folder, compilations):
    first, second = compile_cached(SOURCE, "sm_89"), compile_cached(SOURCE, "sm_89")
    assert first == second and compilations == ["sm_89"]
    assert second.usage["twice"].registers > 0 and second.ptx_arch == "sm_89"
    assert [path.name for path in folder.iterdir()] == [entry_name(SOURCE, "sm_89")]


def test_source_and_architecture_are_the_key(folder, compilations):
    compile_cached(SOURCE, "sm_80")
    compile_cached(SOURCE, "sm_89")
    compile_cached(SOURCE + "\n", "sm_89")
    assert compilations == ["sm_80", "sm_89", "sm_89"] and len(list(folder.iterdir())) == 3


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty"])
def test_a_damaged_entry_is_reported_and_made_again(folder, compilations, caplog, damage):
    good = compile_cached(SOURCE, "sm_89")
    path = folder / entry_name(SOURCE, "sm_89")
    data = bytearray(path.read_bytes())
    if damage == "flipped":
        data[-20] ^= 1
    path.write_bytes({"truncated": data[: len(data) // 2], "flipped": data, "empty": b""}[damage])
    with caplog.at_level(logging.WARNING):
        assert compile_cached(SOURCE, "sm_89") == good
    assert "damaged entry" in caplog.text and path.name in caplog.text and len(compilations) == 2
    caplog.clear()
    assert compile_cached(SOURCE, "sm_89") == good and not caplog.text


@pytest.mark.parametrize(("arch", "ptx"), [("sm_90", "sm_90"), ("sm_90a", None)])
def test_only_portable_code_has_ptx(folder, arch, ptx):
    assert compile_cached(SOURCE, arch).ptx_arch == compile_cached(SOURCE, arch).ptx_arch == ptx


def test_zero_turns_it_off(tmp_path, monkeypatch, compilations):
    monkeypatch.setenv(VARIABLE, "0")
    assert cache_folder() is None
    assert compile_cached(SOURCE, "sm_89") == compile_cached(SOURCE, "sm_89")
    assert len(compilations) == 2


def test_the_default_is_the_users_cache_folder(monkeypatch, tmp_path):
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setattr(cache.platformdirs, "user_cache_dir", lambda name, appauthor: str(tmp_path / name))
    assert cache_folder() == tmp_path / "nvfp4_tvm" / "kernels"


def test_a_folder_that_cannot_be_written_is_a_warning(tmp_path, monkeypatch, caplog):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(VARIABLE, str(tmp_path / "file" / "kernels"))
    with caplog.at_level(logging.WARNING):
        assert compile_cached(SOURCE, "sm_89").usage
    assert "cannot be written" in caplog.text
