from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import decoder, encoder

from plait.compiler.bundle.manifest import ModelEntry, TierBudget
from plait.compiler.bundle.placement import Placement, StagePlacement
from plait.errors import DoesNotFitError
from plait.runtime.residency import ResidencyManager, check_budget, ddr_bytes, hbm_bytes

MIB = 2**20
CHAT = decoder("chat", weights_bytes=100, num_blocks=5, workspace_bytes=30)  # 20 bytes of KV
EMBED = encoder("embed", weights_bytes=50, workspace_bytes=10)
SPARSE = encoder("sparse", weights_bytes=20, workspace_bytes=40)


def manager(*models: ModelEntry, hbm: int = 10**6, ddr: int = 10**6, tiered: bool = True) -> ResidencyManager:
    return ResidencyManager(models, TierBudget(hbm, ddr), tiered=tiered)


def place(residency: ResidencyManager, model: str, tier: str, now: float = 0.0) -> None:
    residency.begin(model, tier)  # type: ignore[arg-type]
    residency.finish(model, now)


def test_models_in_hbm_share_the_largest_workspace():
    assert hbm_bytes([CHAT, EMBED]) == 100 + 20 + 50 + 30
    assert hbm_bytes([EMBED, SPARSE]) == 50 + 20 + 40
    assert hbm_bytes([]) == 0


def test_a_model_goes_from_cold_to_warm_to_hot():
    residency = manager(CHAT)
    seen = [residency.residency("chat")]
    for tier in ("ddr", "hbm"):
        assert residency.next_hop("chat")[1] == tier
        place(residency, "chat", tier, now=1.0)
        seen.append(residency.residency("chat"))
    assert seen == ["cold", "warm", "hot"]
    assert residency.arrived_at("chat") == 1.0


def test_a_unified_target_has_no_tier_between_disk_and_hbm():
    assert manager(CHAT, tiered=False).next_hop("chat") == ("disk", "hbm")


def test_bytes_are_charged_from_the_beginning_of_a_transfer():
    residency = manager(CHAT)
    assert residency.begin("chat", "hbm") == 100
    assert residency.used_bytes("hbm") == 150
    assert not residency.is_hot("chat")


def test_a_failed_transfer_is_charged_no_longer():
    residency = manager(CHAT)
    residency.begin("chat", "hbm")
    residency.fail("chat")
    assert (residency.used_bytes("hbm"), residency.residency("chat")) == (0, "cold")


def test_evicting_a_hot_model_leaves_its_copy_below():
    residency = manager(CHAT)
    place(residency, "chat", "ddr")
    place(residency, "chat", "hbm")
    residency.evict("chat", "hbm")
    assert residency.residency("chat") == "warm"
    assert (residency.used_bytes("hbm"), residency.used_bytes("ddr")) == (0, 100)


def test_the_first_of_the_order_that_is_there_goes_first():
    residency = manager(CHAT, EMBED, SPARSE, hbm=210)
    place(residency, "embed", "hbm")
    place(residency, "sparse", "hbm")
    assert residency.victims("chat", "hbm", ["chat", "sparse", "embed"]) == ["sparse"]
    assert residency.victims("chat", "hbm", ["embed", "sparse"]) == ["embed"]


def test_nothing_is_evicted_where_there_is_room():
    residency = manager(CHAT, EMBED, hbm=200)
    place(residency, "embed", "hbm")
    assert residency.victims("chat", "hbm", ["embed"]) == []


def test_a_victim_that_a_later_one_makes_superfluous_is_spared():
    small, large = encoder("small", weights_bytes=10), encoder("large", weights_bytes=100)
    residency = manager(CHAT, small, large, hbm=240)
    place(residency, "small", "hbm")
    place(residency, "large", "hbm")
    assert residency.victims("chat", "hbm", ["small", "large"]) == ["large"]


def test_pinned_models_are_no_victims():
    pinned = encoder("pinned", weights_bytes=50, pin="hbm")
    residency = manager(CHAT, pinned, EMBED, hbm=210)
    place(residency, "pinned", "hbm")
    place(residency, "embed", "hbm")
    assert residency.victims("chat", "hbm", ["pinned", "embed"]) == ["embed"]


def test_there_are_no_victims_if_what_may_go_is_not_enough():
    residency = manager(CHAT, EMBED, SPARSE, hbm=180)
    place(residency, "embed", "hbm")
    place(residency, "sparse", "hbm")
    assert residency.victims("chat", "hbm", ["sparse"]) is None


@given(
    sizes=st.lists(st.tuples(st.integers(1, 50), st.integers(1, 30)), min_size=2, max_size=6),
    slack=st.integers(0, 60),
    allowed=st.sets(st.integers(0, 5)),
)
def test_victims_make_room_and_none_of_them_is_superfluous(sizes: list[tuple[int, int]], slack: int, allowed: set[int]):
    models = [
        encoder(f"m{i}", weights_bytes=weights, workspace_bytes=1 + work) for i, (weights, work) in enumerate(sizes)
    ]
    wanted, *others = models
    budget = max(max(_bytes([model]) for model in models), _bytes(others)) + slack
    residency = manager(*models, hbm=budget)
    for model in others:
        place(residency, model.name, "hbm")
    candidates = [model for model in others if int(model.name[1:]) in allowed]
    victims = residency.victims("m0", "hbm", [model.name for model in candidates])
    if victims is None:
        assert _bytes([wanted, *(model for model in others if model not in candidates)]) > budget
        return
    left = [model for model in others if model.name not in victims]
    assert _bytes([wanted, *left]) <= budget
    gone = [model for model in candidates if model.name in victims]
    assert len(gone) == len(victims)
    assert all(_bytes([wanted, *left, spared]) > budget for spared in gone)


def _bytes(models: list[ModelEntry]) -> int:
    """From the definition: weights, KV and the largest step."""
    stages = [stage for model in models for program in model.programs for stage in program.stages]
    steps = [stage.temporary_bytes + stage.output_bytes for stage in stages]
    kv = [m.kv.block_tokens * m.kv.num_blocks * m.kv.bytes_per_token for m in models if m.kv]
    return sum(model.weights_bytes for model in models) + sum(kv) + max(steps)


# What is left of a model in hbm

PARTS = decoder("parts", weights_bytes=100, num_blocks=5, workspace_bytes=30, num_segments=5)


def test_a_model_that_makes_room_keeps_the_segments_that_fit():
    residency = manager(PARTS, EMBED, hbm=150)
    place(residency, "parts", "hbm")
    assert residency.victims("embed", "hbm", ["parts"]) == ["parts"]
    kept = residency.kept_segments("embed", "hbm", ["parts"])
    assert kept == {"parts": 4}  # 50 of weights and 10 of workspace leave 90 bytes, KV and workspace are gone anyway
    residency.evict("parts", "hbm", kept["parts"])
    assert (residency.residency("parts"), residency.num_segments("parts")) == ("cold", 4)
    assert residency.used_bytes("hbm") == 80
    assert residency.has_room("embed", "hbm")


def test_a_model_brings_only_what_is_missing_and_is_charged_whole():
    residency = manager(PARTS, EMBED)
    place(residency, "parts", "hbm")
    residency.evict("parts", "hbm", 4)
    assert residency.begin("parts", "hbm") == 20
    assert residency.used_bytes("hbm") == 150
    residency.fail("parts")
    assert (residency.used_bytes("hbm"), residency.num_segments("parts")) == (80, 4)
    residency.begin("parts", "hbm")
    residency.finish("parts", 1.0)
    assert (residency.residency("parts"), residency.num_segments("parts")) == ("hot", 5)


def test_what_is_left_of_a_model_makes_room_in_its_turn():
    residency = manager(PARTS, EMBED, SPARSE, hbm=150)
    place(residency, "parts", "hbm")
    residency.evict("parts", "hbm", 4)
    place(residency, "embed", "hbm")
    assert residency.victims("sparse", "hbm", ["parts", "embed"]) == ["parts"]
    assert residency.kept_segments("sparse", "hbm", ["parts"]) == {"parts": 2}


def test_of_several_victims_the_last_keeps_most():
    others = [replace(PARTS, name=name) for name in "ab"]
    residency = manager(*others, encoder("new", weights_bytes=150, workspace_bytes=30), hbm=300)
    for other in others:
        place(residency, other.name, "hbm")
    assert residency.kept_segments("new", "hbm", ["a", "b"]) == {"a": 1, "b": 5}


def test_nothing_is_left_where_weights_alias_a_file():
    residency = manager(PARTS, EMBED, hbm=150, tiered=False)
    place(residency, "parts", "hbm")
    assert residency.kept_segments("embed", "hbm", ["parts"]) == {"parts": 0}


# What can never fit


def test_a_budget_of_exactly_the_largest_model_beside_the_pinned_ones_is_enough():
    pinned = encoder("pinned", weights_bytes=20, workspace_bytes=40, pin="hbm")
    least = _bytes([CHAT, pinned])
    check_budget([CHAT, EMBED, pinned], TierBudget(least, 100), tiered=True)
    with pytest.raises(DoesNotFitError, match=r"model 'chat' beside the pinned models"):
        check_budget([CHAT, EMBED, pinned], TierBudget(least - 1, 100), tiered=True)


def test_a_model_too_large_for_hbm_is_named_with_its_terms_and_levers():
    chat = decoder("chat", weights_bytes=3 * MIB, num_blocks=MIB // 4, workspace_bytes=MIB // 2)
    with pytest.raises(DoesNotFitError, match="of hbm") as raised:
        check_budget([chat], TierBudget(4 * MIB, 4 * MIB), tiered=True)
    assert str(raised.value) == (
        "model 'chat' needs 4.5 MiB of hbm, the budget is 4.0 MiB (short 0.5 MiB); "
        "largest: weights of chat 3.0 MiB, KV of chat 1.0 MiB, workspace 0.5 MiB; "
        "raise the hbm budget to 4718592 bytes or lower kv_tokens of chat"
    )
    assert raised.value.shortfall_bytes == MIB // 2


def test_a_model_kept_out_by_pinned_ones_names_them_as_a_lever():
    pinned = encoder("pinned", weights_bytes=3 * MIB, pin="hbm")
    other = encoder("other", weights_bytes=2 * MIB)
    with pytest.raises(DoesNotFitError, match=r"'other' beside the pinned models .* or unpin pinned$"):
        check_budget([pinned, other], TierBudget(4 * MIB, 8 * MIB), tiered=True)


def test_a_model_too_large_for_ddr_is_refused_on_a_tiered_target_alone():
    budget = TierBudget(10**6, 99)
    with pytest.raises(DoesNotFitError, match=r"'chat' needs .* of ddr, .* raise the ddr budget to 100 bytes"):
        check_budget([CHAT], budget, tiered=True)
    check_budget([CHAT], budget, tiered=False)


@pytest.mark.parametrize("order", [*itertools.permutations(range(3))], ids=str)
def test_the_verdict_does_not_depend_on_the_order_of_the_models(order: tuple[int, ...]):
    models = [CHAT, EMBED, encoder("pinned", weights_bytes=20, pin="hbm")]
    with pytest.raises(DoesNotFitError, match="of hbm"):
        check_budget([models[index] for index in order], TierBudget(120, 10**6), tiered=True)


def over_two_devices(name: str, *shares: tuple[int, int]) -> ModelEntry:
    """A decoder of two pipeline stages with (weights, KV) bytes each and a workspace of 10."""
    entry = decoder(name, weights_bytes=sum(weights for weights, _ in shares))
    stages = tuple(StagePlacement({}, (number,), *share) for number, share in enumerate(shares))
    programs = tuple(replace(program, stages=program.stages * len(shares)) for program in entry.programs)
    return replace(entry, placement=Placement({}, (), stages), programs=programs)


def test_the_fullest_device_counts_against_the_budget() -> None:
    staged = over_two_devices("staged", (100, 5), (300, 1))
    one = decoder("one", weights_bytes=150, num_blocks=1)  # on the first device, 4 bytes of KV
    assert hbm_bytes([staged]) == 300 + 1 + 10
    assert hbm_bytes([staged, one]) == max(300 + 1, 100 + 5 + 150 + 4) + 10
    assert ddr_bytes([staged, one]) == 300
    residency = manager(staged, one, hbm=311, ddr=300)
    assert residency.begin("staged", "hbm") == 300  # devices load side by side
    residency.finish("staged", 0.0)
    assert residency.has_room("one", "hbm")
    with pytest.raises(DoesNotFitError, match=r"'staged' needs .* of hbm.*; largest: weights of staged") as failure:
        check_budget([staged, one], TierBudget(hbm=310, ddr=300), tiered=True)
    assert failure.value.demand_bytes == 311
