import numpy as np
import pytest
import tvm
from make_checkpoints import make_plain
from plain_build import plain_build
from reference import cosine, reference_logits, reference_model, reference_steps
from tvm import relax

from nvfp4_tvm.errors import LibraryError, NVFP4Error
from nvfp4_tvm.runtime import GenerationResult, Runner

PROMPT = np.random.default_rng(5).integers(0, 512, 20).tolist()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_plain(tmp_path_factory.mktemp("runner"), dtype="float32")


@pytest.fixture(scope="module")
def build(folder):
    return plain_build(folder)


@pytest.fixture(scope="module")
def model(folder):
    return reference_model(folder)


@pytest.fixture(scope="module")
def greedy(model):
    return reference_steps(model, PROMPT, 12)[0]


def test_prefill_decode_and_logits_agree(build, model):
    runner = build.runner(chunk=8)
    scores = runner.logits(PROMPT)
    assert runner.position == 20
    assert cosine(scores, reference_logits(model, PROMPT)).min() >= 0.99999
    runner.reset()
    assert runner.position == 0
    np.testing.assert_allclose(runner.prefill(PROMPT[:13]), scores[12], atol=1e-4)
    np.testing.assert_allclose(runner.prefill(PROMPT[13:15]), scores[14], atol=1e-4)  # goes on
    np.testing.assert_allclose(runner.decode(PROMPT[15]), scores[15], atol=1e-4)
    assert runner.position == 16


def test_greedy_generation(build, greedy):
    runner, seen = build.runner(), []
    result = runner.generate(PROMPT, 12, on_token=seen.append)
    assert list(result.token_ids) == greedy == seen
    assert (result.prompt_tokens, result.finish_reason) == (20, "length")
    assert result.seconds_prefill > 0 and result.seconds_decode > 0
    assert result.tokens_per_second == pytest.approx(11 / result.seconds_decode)
    assert runner.generate(PROMPT, 12).token_ids == result.token_ids  # from an empty cache again
    one = runner.generate(PROMPT, 1)
    assert list(one.token_ids) == greedy[:1] and one.tokens_per_second == 0.0


def test_stop_token(build, greedy):
    stop = greedy[4]
    result = build.runner().generate(PROMPT, 12, stop_token_ids=[stop, 511])
    assert list(result.token_ids) == greedy[: greedy.index(stop) + 1] and result.finish_reason == "stop"


def test_full_context_ends_generation(build, greedy):
    runner = build.runner(context=25)
    result = runner.generate(PROMPT, 12)
    # five tokens are fed after the prompt of 20, and each gives one more
    assert list(result.token_ids) == greedy[:6] and result.finish_reason == "context"
    assert runner.position == 25
    assert list(build.runner(context=20).generate(PROMPT, 12).token_ids) == greedy[:1]


def test_sampled_generation(build):
    runner = build.runner()
    first, second, other = (
        runner.generate(PROMPT, 10, temperature=1.0, top_p=0.95, seed=seed) for seed in (1, 1, 2)
    )
    assert first.token_ids == second.token_ids != other.token_ids


@pytest.mark.parametrize("bad", [-1, 512, 2**31])
def test_ids_outside_the_vocabulary(build, bad):
    runner = build.runner()
    for call in (runner.prefill, runner.logits, lambda ids: runner.generate(ids, 2)):
        with pytest.raises(NVFP4Error, match=rf"token ids: found {bad}, expected 0\.\.511"):
            call([3, bad, 4])
    with pytest.raises(NVFP4Error, match="the vocabulary"):
        runner.decode(bad)
    assert runner.position == 0


@pytest.mark.parametrize("bad", [[], [1.5], [[1, 2]], ["a"], [True, False]])
def test_no_token_ids(build, bad):
    with pytest.raises(NVFP4Error, match="expected at least one integer"):
        build.runner().prefill(bad)


def test_too_long_for_the_context(build):
    runner = build.runner(context=30)
    runner.prefill(PROMPT)
    with pytest.raises(NVFP4Error, match="found 20 after 20 in the cache, expected at most 30 in all"):
        runner.prefill(PROMPT)
    runner.prefill(PROMPT[:10])
    with pytest.raises(NVFP4Error, match="found 1 after 30"):
        runner.decode(1)
    with pytest.raises(NVFP4Error, match="found 31 after 0"):
        runner.logits([1] * 31)


def test_options_out_of_range(build):
    runner = build.runner()
    with pytest.raises(NVFP4Error, match="max_new_tokens is 0"):
        runner.generate(PROMPT, 0)
    with pytest.raises(NVFP4Error, match="temperature is -1"):
        runner.generate(PROMPT, 1, temperature=-1)


def metadata(build, **change):
    return {
        "param_names": build.param_names,
        "vocab_size": 512,
        "context_length": 64,
        "prefill_chunk_size": 16,
        **change,
    }


def test_exported_library_and_parameters_in_order(build, tmp_path):
    path = tmp_path / "model.so"
    build.executable.export_library(str(path))
    params = [tvm.runtime.tensor(build.params[name]) for name in build.param_names]
    runner = Runner(path, params, metadata(build), tvm.cpu())
    np.testing.assert_array_equal(runner.logits(PROMPT), build.runner(chunk=16).logits(PROMPT))


def test_library_and_parameters_that_do_not_fit(build, tmp_path):
    with pytest.raises(LibraryError, match="parameters: found 0, expected 15"):
        Runner(build.executable, [], metadata(build), tvm.cpu())
    names = [*build.param_names, "extra"]
    with pytest.raises(LibraryError, match="parameters: found no extra"):
        Runner(build.executable, build.params, metadata(build, param_names=names), tvm.cpu())
    with pytest.raises(NVFP4Error, match="vocab_size is 0"):
        Runner(build.executable, build.params, metadata(build, vocab_size=0), tvm.cpu())
    broken = tmp_path / "broken.so"
    broken.write_bytes(b"no library")
    with pytest.raises(LibraryError, match=r"broken\.so: cannot be loaded") as error:
        Runner(broken, build.params, metadata(build), tvm.cpu())
    assert "\n" not in str(error.value)


def test_library_without_the_functions():
    builder, x = relax.BlockBuilder(), relax.Var("x", relax.TensorType((2,), "float32"))
    with builder.function("prefill", [x]):
        builder.emit_func_output(x)
    other = tvm.compile(builder.finalize(), target="llvm")
    sizes = {"param_names": [], "vocab_size": 8, "context_length": 16, "prefill_chunk_size": 8}
    with pytest.raises(LibraryError, match="library: found no function score"):
        Runner(other, [], sizes, tvm.cpu())


def test_speed_of_a_single_token_is_zero():
    assert GenerationResult((1,), 3, 0.1, 0.0, "length").tokens_per_second == 0.0
