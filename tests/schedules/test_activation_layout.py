import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from nvfp4_tvm import layout
from nvfp4_tvm.schedules.activation_layout import BOX_WORDS, chunk_of, tile_activations, tiles_shape


def slots(tiles, tile, block, token):
    """The 128 activations of a token in the order in which eight wgmma steps read them, by undoing the swizzle."""
    values = []
    for step in range(8):
        for half in range(2):
            box, chunk = chunk_of(step // 2, step % 2, half, token)
            values += list(tiles[tile, block, box, token, 4 * chunk : 4 * chunk + 4].view(np.uint16))
    return np.array(values).reshape(8, 16)


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 70), st.integers(1, 20), st.sampled_from([16, 32, 48]))
def test_slots_meet_the_codes_that_a_thread_decodes(M, sixteenths, tokens):
    K = 16 * sixteenths
    x = np.arange(1, M * K + 1, dtype=np.uint32).astype(np.uint16).reshape(M, K)
    tiles = tile_activations(x.view(np.float16), tokens)
    assert tiles.shape == tiles_shape(M, K, tokens)
    padded = np.zeros((tiles.shape[0] * tokens, tiles.shape[1] * layout.TILE_K), np.uint16)
    padded[:M, :K] = x
    for row in {0, M // 2, M - 1, padded.shape[0] - 1}:
        for block in range(tiles.shape[1]):
            read = slots(tiles, row // tokens, block, row % tokens)
            for lane in range(4):
                for i in range(layout.WORDS_PER_LANE):
                    # The word's eight codes: the first k from the layout, as A registers of steps (i, 0), (i, 1)
                    _, k = layout.word_origin(0, block, 0, lane, i)
                    for j in range(2):
                        a_columns = [2 * lane, 2 * lane + 1, 2 * lane + 8, 2 * lane + 9]
                        assert (read[2 * i + j, a_columns] == padded[row, k + 4 * j : k + 4 * j + 4]).all()


def test_a_row_fills_its_128_bytes():
    for row in range(8):
        found = {chunk_of(i, j, half, row) for i in range(4) for j in range(2) for half in range(2)}
        assert found == {(box, chunk) for box in range(2) for chunk in range(BOX_WORDS // 4)}
