import pytest

from nvfp4_tvm.arch import ARCHS
from nvfp4_tvm.schedules import model


def test_bytes_of_a_matmul():
    assert model.weight_bytes(32, 64) == 32 * 64 // 2 + 32 * 64 // 16
    assert model.floor_us(4096, 4096, 1, 4.24e12) == pytest.approx(2.23, abs=0.01)


@pytest.mark.parametrize(("arch", "name"), [("sm_80", "A100 SXM 80GB"), ("sm_89", "GeForce RTX 4090")])
def test_the_card_that_is_predicted_for(arch, name):
    assert model.usual_card(ARCHS[arch]).name == name


@pytest.mark.parametrize(
    ("blocks", "resident", "busy"),
    # 132 SMs: idle ones, a full wave, a wave and one block, two blocks an SM at a time
    [
        (66, 1, 0.5),
        (132, 1, 1.0),
        (133, 1, 133 / 264),
        (264, 2, 1.0),
        (200, 2, 200 / 264),
        (265, 2, 265 / 528),
    ],
)
def test_waves(blocks, resident, busy):
    assert model.busy_share(blocks, resident, 132) == pytest.approx(busy)


def test_memory_is_slower_with_idle_sms_and_few_bytes_in_flight():
    card = model.REFERENCE
    full = model.memory_us(4096, 4096, 1, card, 1.0, 1e6)
    assert full == pytest.approx(model.floor_us(4096, 4096, 1, model.COPY_SHARE * card.bandwidth))
    assert model.memory_us(4096, 4096, 1, card, 0.5, 1e6) == pytest.approx(2 * full)
    assert model.memory_us(4096, 4096, 1, card, 1.0, 1e4) > 2 * full


def test_an_sm_of_another_card_asks_for_no_more_than_the_reference_s():
    reference, card = model.REFERENCE, model.usual_card(ARCHS["sm_89"])
    assert model.sm_bandwidth(card) < model.sm_bandwidth(reference)
    floor = model.floor_us(4096, 4096, 1, model.COPY_SHARE * card.bandwidth)
    # A card with less bandwidth an SM reaches it with fewer of them busy
    enough = model.sm_bandwidth(card) / model.sm_bandwidth(reference)
    assert model.memory_us(4096, 4096, 1, card, 1.0, 1e6) == pytest.approx(floor)
    assert model.memory_us(4096, 4096, 1, card, enough, 1e6) == pytest.approx(floor)
    assert model.memory_us(4096, 4096, 1, card, enough / 2, 1e6) == pytest.approx(2 * floor)


def test_rates_are_below_the_datasheets():
    for arch in ARCHS.values():
        card = model.usual_card(arch)
        assert 0.4 < model.mma_sync_rate(arch, card) * card.sms * 1e6 / card.tensor_flops < 1
