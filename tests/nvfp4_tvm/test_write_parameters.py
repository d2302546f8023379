import hashlib
from dataclasses import replace

import numpy as np
import pytest
from make_checkpoints import make_modelopt

from nvfp4_tvm.checkpoint import open_checkpoint
from nvfp4_tvm.checkpoint.storage import open_shards
from nvfp4_tvm.compiler import _export
from nvfp4_tvm.models.config import DecoderConfig
from nvfp4_tvm.models.parameters import quantized_modules
from nvfp4_tvm.output_folder import output_folder
from nvfp4_tvm.runtime.folder import PARAMS
from nvfp4_tvm.target import resolve_target
from nvfp4_tvm.write_parameters import write_parameters


@pytest.fixture(scope="module")
def planned(tmp_path_factory):
    """A checkpoint, and the plan of what a model for the CPU takes of it."""
    checkpoint = open_checkpoint(make_modelopt(tmp_path_factory.mktemp("checkpoint"), seed=8))
    config = DecoderConfig.from_hf(checkpoint.config)
    _, plan = _export(config, "float32", resolve_target("llvm"), quantized_modules(checkpoint), 64)
    return checkpoint, plan


def test_every_parameter_is_written_once_with_its_digest(planned, tmp_path):
    checkpoint, plan = planned
    reports = []
    with output_folder(tmp_path / "out", "key") as work:
        digests = write_parameters(checkpoint, plan, work, lambda *report: reports.append(report))
    shards = open_shards(tmp_path / "out", PARAMS)
    assert list(digests) == list(plan.specs) and set(shards) == set(plan.specs)
    total = sum(checkpoint.tensor_info(name).nbytes for name in checkpoint.names())
    assert reports[0] == (0, reports[0][1]) and reports[-1] == (reports[0][1],) * 2
    assert 0 < reports[0][1] <= total
    assert [done for done, _ in reports] == sorted(done for done, _ in reports)


def test_digests_are_of_the_bytes(planned, tmp_path):
    from safetensors.numpy import load_file

    checkpoint, plan = planned
    with output_folder(tmp_path / "out", "key") as work:
        digests = write_parameters(checkpoint, plan, work, lambda *_: None)
    written = {}
    for file in sorted((tmp_path / "out").glob(f"{PARAMS}*.safetensors")):
        written |= load_file(file)
    assert {
        name: hashlib.sha256(np.ascontiguousarray(a)).hexdigest() for name, a in written.items()
    } == digests


def test_what_was_written_before_a_stop_is_not_written_again(planned, tmp_path, caplog):
    checkpoint, plan = planned
    with output_folder(tmp_path / "whole", "key") as work:
        expected = write_parameters(checkpoint, plan, work, lambda *_: None)

    def stop(done, total):
        if done > total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), output_folder(tmp_path / "out", "key") as work:
        write_parameters(checkpoint, plan, work, stop)
    assert not (tmp_path / "out").exists()
    with (
        caplog.at_level("INFO", "nvfp4_tvm.write_parameters"),
        output_folder(tmp_path / "out", "key") as work,
    ):
        assert write_parameters(checkpoint, plan, work, lambda *_: None) == expected
    before = [message for message in caplog.messages if "written before" in message]
    assert 0 < len(before) < len(plan.outputs)
    whole, again = (
        {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("whole", "out")
    )
    assert whole == again


def test_the_digest_of_a_plan_is_of_what_it_writes(planned):
    _, plan = planned
    name, (dtype, shape) = next(iter(plan.specs.items()))
    assert replace(plan).digest == plan.digest
    assert replace(plan, specs={**plan.specs, name: (dtype, (*shape, 1))}).digest != plan.digest
    assert replace(plan, canonical=plan.canonical[::-1]).digest != plan.digest
    assert replace(plan, outputs=plan.outputs[::-1]).digest != plan.digest
