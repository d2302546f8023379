import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers

from nvfp4_tvm.cli.detokenize import TextStream, load_tokenizer
from nvfp4_tvm.errors import CheckpointError


@pytest.fixture(scope="session")
def fallback_tokenizer():
    """A SentencePiece-like one, as Llama 2 has: unknown characters become one token a byte."""
    words = ["<unk>", "▁", "▁a", "b", "c", "▁bc", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokenizer = Tokenizer(
        models.BPE(
            vocab={word: i for i, word in enumerate(words)}, merges=[], byte_fallback=True, unk_token="<unk>"
        )
    )
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return tokenizer


def pieces(tokenizer, ids):
    stream = TextStream(tokenizer)
    return [*(stream.feed(i) for i in ids), stream.finish()]


TEXTS = st.text(st.sampled_from("ab c\n’é漢😀👩‍👩‍👧"), max_size=40)


@settings(deadline=None)
@given(text=TEXTS)
def test_pieces_make_the_text(byte_tokenizer, fallback_tokenizer, text):
    for tokenizer in (byte_tokenizer, fallback_tokenizer):
        ids = tokenizer.encode(text).ids
        found = pieces(tokenizer, ids)
        assert "".join(found) == tokenizer.decode(ids)
        # what is incomplete is held back, never shown as a replacement character
        assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in found)


@settings(deadline=None)
@given(ids=st.lists(st.integers(3, 511), max_size=40))
def test_bytes_that_are_no_text(byte_tokenizer, ids):
    assert "".join(pieces(byte_tokenizer, ids)) == byte_tokenizer.decode(ids)


@settings(deadline=None)
@given(ids=st.lists(st.integers(0, 261), max_size=40))
def test_bytes_that_are_no_text_do_not_stop_a_fallback_tokenizer(fallback_tokenizer, ids):
    stream = TextStream(fallback_tokenizer)
    shown = "".join(map(stream.feed, ids))
    assert not shown.endswith("\N{REPLACEMENT CHARACTER}")
    stream.finish()
    assert stream.finish() == ""


def test_text_comes_as_early_as_it_can(byte_tokenizer):
    ids = [
        byte_tokenizer.token_to_id(token) for token in ("a", "ð", "Ł", "ĺ", "Ģ", "b")
    ]  # a 😀 b, byte by byte
    assert pieces(byte_tokenizer, ids) == ["a", "", "", "", "😀", "b", ""]
    assert pieces(byte_tokenizer, ids[:3]) == ["a", "", "", "\N{REPLACEMENT CHARACTER}"]


def test_special_tokens_are_silent(byte_tokenizer):
    ids = [byte_tokenizer.token_to_id(token) for token in ("<s>", "a", "</s>")]
    assert pieces(byte_tokenizer, ids) == ["", "a", "", ""]


def test_load_tokenizer(tmp_path, byte_tokenizer):
    assert load_tokenizer(tmp_path) is None
    byte_tokenizer.save(str(tmp_path / "tokenizer.json"))
    assert load_tokenizer(tmp_path).get_vocab() == byte_tokenizer.get_vocab()
    for broken in ("", "{}", '{"version": "1.0"}', "\x00"):
        (tmp_path / "tokenizer.json").write_text(broken)
        with pytest.raises(CheckpointError, match=r"tokenizer\.json: found no tokenizer"):
            load_tokenizer(tmp_path)
