"""A style's tensors matched to layers: every spelling, every method, and what is refused with which sentence."""

import json
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_checkpoint import WIDTH
from small_styles import CHANNELS, CONV, KEY, LAYERS, QUERY, kohya_style, numbers, peft_config

from orchestrator.clients.weights import read_weights
from orchestrator.diffusion.deltas import LowRank, StoredTensor, merged, stacked
from orchestrator.diffusion.lora import Lora, read_lora
from orchestrator.diffusion.lora_names import spellings
from orchestrator.diffusion.lora_scales import config_of, metadata_of
from orchestrator.errors import LoraIncompatible

FLAT = f"lora_unet_{QUERY.replace('.', '_')}"
FLAT_CONV = f"lora_unet_{CONV.replace('.', '_')}"
PEFT = f"base_model.model.{QUERY}"
C = CHANNELS


@dataclass
class Small:
    name: str = "small"
    cross_attention_dim: int = WIDTH
    layers: dict[str, dict[str, tuple[int, ...]]] = field(default_factory=lambda: LAYERS)


def style(tensors: dict[str, np.ndarray], config: bytes | None = None) -> Lora:
    scalings = {} if config is None else dict.fromkeys(("unet", "text_encoder"), config_of(config))
    return read_lora({key: StoredTensor(tensor) for key, tensor in tensors.items()}, scalings, Small())


def refusal(tensors: dict[str, np.ndarray], config: bytes | None = None) -> str:
    with pytest.raises(LoraIncompatible) as refused:
        style(tensors, config)
    return str(refused.value)


def pair(prefix: str, down: str, up: str, rank: int = 2, shape: tuple[int, ...] = (C, C)) -> dict[str, np.ndarray]:
    out, *into = shape
    return {f"{prefix}{down}": numbers(rank, *into), f"{prefix}{up}": numbers(out, rank)}


def kohya(prefix: str = FLAT, **shape: object) -> dict[str, np.ndarray]:
    return pair(prefix, ".lora_down.weight", ".lora_up.weight", **shape)  # type: ignore[arg-type]


def test_a_file_of_kohyas_trainer_is_read_whole() -> None:
    found = read_lora(read_weights(kohya_style()).tensors, {}, Small())
    assert (found.family, found.ranks, found.methods, found.is_low_rank) == ("kohya", (2,), ("LoRA",), True)
    assert (set(found.unet), set(found.text_encoder)) == ({QUERY, KEY}, {"encoder.layers.0.mlp.fc1"})


def test_the_scale_is_alpha_by_rank_and_is_folded_into_b() -> None:
    tensors = kohya() | {f"{FLAT}.alpha": np.array(8.0, np.float32)}
    A, B = style(tensors).unet[QUERY].factors(0.5)  # type: ignore[union-attr]
    assert np.array_equal(A, tensors[f"{FLAT}.lora_down.weight"])
    assert np.array_equal(B, tensors[f"{FLAT}.lora_up.weight"] * np.float32(8 / 2 * 0.5))


def test_without_an_alpha_the_scale_is_1() -> None:
    tensors = kohya()
    assert np.array_equal(style(tensors).unet[QUERY].factors()[1], tensors[f"{FLAT}.lora_up.weight"])  # type: ignore[union-attr]


SPELLINGS = {
    "peft": (".lora_A.weight", ".lora_B.weight", PEFT, b"config"),
    "peft with the adapter's name": (".lora_A.default.weight", ".lora_B.default.weight", PEFT, b"config"),
    "diffusers": (".lora_A.weight", ".lora_B.weight", f"unet.{QUERY}", None),
    "diffusers before peft": (".lora.down.weight", ".lora.up.weight", f"unet.{QUERY}", None),
    "a UNet saved by itself": (".lora.down.weight", ".lora.up.weight", QUERY, None),
    "attention processors": (
        ".processor.to_q_lora.down.weight",
        ".processor.to_q_lora.up.weight",
        f"unet.{QUERY.removesuffix('.to_q')}",
        None,
    ),
    "kohya": (".lora_down.weight", ".lora_up.weight", FLAT, None),
    "Stability's blocks": (
        ".lora_down.weight",
        ".lora_up.weight",
        "lora_unet_input_blocks_1_1_transformer_blocks_0_attn1_to_q",
        None,
    ),
}


@pytest.mark.parametrize(("down", "up", "prefix", "config"), SPELLINGS.values(), ids=SPELLINGS.keys())
def test_a_layer_is_known_in_every_trainers_spelling(down: str, up: str, prefix: str, config: bytes | None) -> None:
    found = style(pair(prefix, down, up), config and peft_config())
    assert (list(found.unet), list(found.text_encoder)) == ([QUERY], [])


TEXT_SPELLINGS = [
    ("lora_te_text_model_encoder_layers_0_self_attn_out_proj", ".lora_down.weight", ".lora_up.weight"),
    ("lora_te1_text_model_encoder_layers_0_self_attn_out_proj", ".lora_down.weight", ".lora_up.weight"),
    ("text_encoder.text_model.encoder.layers.0.self_attn.out_proj", ".lora_A.weight", ".lora_B.weight"),
    ("text_encoder.encoder.layers.0.self_attn.out_proj", ".lora_A.weight", ".lora_B.weight"),
    (
        "text_encoder.text_model.encoder.layers.0.self_attn.out_proj",
        ".lora_linear_layer.down.weight",
        ".lora_linear_layer.up.weight",
    ),
    ("text_encoder.text_model.encoder.layers.0.self_attn.to_out", "_lora.down.weight", "_lora.up.weight"),
]


@pytest.mark.parametrize(("prefix", "down", "up"), TEXT_SPELLINGS)
def test_a_layer_of_the_text_encoder_is_known_in_every_spelling(prefix: str, down: str, up: str) -> None:
    found = style(pair(prefix, down, up, shape=(WIDTH, WIDTH)))
    assert (list(found.unet), list(found.text_encoder)) == ([], ["encoder.layers.0.self_attn.out_proj"])


def sd15_layers() -> list[str]:
    """Names of SD 1.5's UNet, one layer of each kind in each place."""
    inner = {"resnets": ["conv1", "conv2", "time_emb_proj", "conv_shortcut"], "attentions": ["proj_in"]}
    places = [(f"down_blocks.{b}", 2, b < 3) for b in range(4)] + [(f"up_blocks.{b}", 3, b > 0) for b in range(4)]
    names = ["conv_in", "conv_out", "time_embedding.linear_1", "mid_block.attentions.0.proj_in"]
    names += [f"mid_block.resnets.{i}.{name}" for i in range(2) for name in inner["resnets"]]
    for block, count, attends in places:
        for kind in ("resnets", "attentions") if attends else ("resnets",):
            names += [f"{block}.{kind}.{i}.{name}" for i in range(count) for name in inner[kind]]
    names += [f"down_blocks.{b}.downsamplers.0.conv" for b in range(3)]
    return names + [f"up_blocks.{b}.upsamplers.0.conv" for b in range(3)]


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("input_blocks_0_0", "conv_in"),
        ("out_2", "conv_out"),
        ("time_embed_0", "time_embedding.linear_1"),
        ("input_blocks_1_0_in_layers_2", "down_blocks.0.resnets.0.conv1"),
        ("input_blocks_2_1_proj_in", "down_blocks.0.attentions.1.proj_in"),
        ("input_blocks_3_0_op", "down_blocks.0.downsamplers.0.conv"),
        ("input_blocks_7_0_skip_connection", "down_blocks.2.resnets.0.conv_shortcut"),
        ("input_blocks_8_1_proj_in", "down_blocks.2.attentions.1.proj_in"),
        ("input_blocks_11_0_emb_layers_1", "down_blocks.3.resnets.1.time_emb_proj"),
        ("middle_block_0_in_layers_2", "mid_block.resnets.0.conv1"),
        ("middle_block_1_proj_in", "mid_block.attentions.0.proj_in"),
        ("middle_block_2_out_layers_3", "mid_block.resnets.1.conv2"),
        ("output_blocks_0_0_in_layers_2", "up_blocks.0.resnets.0.conv1"),
        ("output_blocks_2_1_conv", "up_blocks.0.upsamplers.0.conv"),
        ("output_blocks_5_2_conv", "up_blocks.1.upsamplers.0.conv"),
        ("output_blocks_11_1_proj_in", "up_blocks.3.attentions.2.proj_in"),
    ],
)
def test_stabilitys_blocks_are_those_of_sd_1_5(written: str, name: str) -> None:
    assert spellings({"unet": sd15_layers()})[f"lora_unet_{written}"].name == name


def test_no_two_layers_share_a_spelling() -> None:
    names = sd15_layers()
    found = spellings({"unet": names})
    assert {layer.name for layer in found.values()} == set(names)
    assert sum(spelling.startswith("lora_unet_") for spelling in found) == 2 * len(names)


def test_a_convolution_is_low_rank_over_its_whole_kernel() -> None:
    tensors = kohya(FLAT_CONV, shape=(C, C, 3, 3))
    tensors[f"{FLAT_CONV}.lora_up.weight"] = tensors[f"{FLAT_CONV}.lora_up.weight"].reshape(C, 2, 1, 1)
    delta = style(tensors).unet[CONV]
    A, B = delta.factors()  # type: ignore[union-attr]
    assert (A.shape, B.shape, delta.delta().shape) == ((2, 9 * C), (C, 2), (C, C, 3, 3))  # type: ignore[union-attr]


def test_a_convolution_may_be_written_flat_as_dylora_does() -> None:
    tensors = kohya(FLAT_CONV, shape=(C, C, 3, 3))
    flat = tensors | {f"{FLAT_CONV}.lora_down.weight": tensors[f"{FLAT_CONV}.lora_down.weight"].reshape(2, 9 * C)}
    deltas = [style(one).unet[CONV].delta() for one in (tensors, flat)]  # type: ignore[union-attr]
    assert np.array_equal(*deltas)


def test_a_tucker_core_stays_low_rank() -> None:
    down, mid, up = numbers(2, C, 1, 1), numbers(2, 2, 3, 3), numbers(C, 2, 1, 1)
    keys = (f"{FLAT_CONV}.lora_{name}.weight" for name in ("down", "mid", "up"))
    found = style(dict(zip(keys, (down, mid, up), strict=True)))
    expected = np.einsum("or,rshw,sc->ochw", up[..., 0, 0], mid, down[..., 0, 0])
    assert found.is_low_rank
    np.testing.assert_allclose(found.unet[CONV].delta(), expected, atol=1e-7)  # type: ignore[union-attr]


@pytest.mark.parametrize("sides", [(2, 2), (2, 4)])
def test_a_1x1_convolution_may_be_written_as_a_linear_layer(sides: tuple[int, int]) -> None:
    name = "down_blocks.0.attentions.0.proj_in"
    shapes = [(2, C, 1, 1)[: sides[0]], (C, 2, 1, 1)[: sides[1]]]
    tensors = {f"unet.{name}.lora_{ab}.weight": numbers(*shape) for ab, shape in zip("AB", shapes, strict=True)}
    assert style(tensors).unet[name].shape == (C, C, 1, 1)


def test_the_norm_is_that_of_the_delta() -> None:
    delta = style(kohya()).unet[QUERY]
    assert delta.norm() == pytest.approx(np.linalg.norm(delta.delta()), rel=1e-6)  # type: ignore[union-attr]


def test_stacked_styles_add_their_deltas() -> None:
    first, second = (style(kohya(rank=rank)).unet[QUERY] for rank in (2, 3))
    assert isinstance(first, LowRank)
    assert isinstance(second, LowRank)
    A, B = stacked([(first, 0.5), (second, -1.0)])
    assert A.shape == (5, C)
    np.testing.assert_allclose(B @ A, 0.5 * first.delta() - second.delta(), atol=1e-6)


def test_dora_needs_the_layers_own_weight() -> None:
    tensors = kohya() | {f"{FLAT}.dora_scale": np.full((C, 1), 2.0, np.float32)}
    delta = style(tensors).unet[QUERY]
    changed = merged(numbers(C, C, seed=9), delta)
    np.testing.assert_allclose(np.linalg.norm(changed, axis=1), 2.0, rtol=1e-5)


def test_patterns_of_peft_decide_rank_and_scale() -> None:
    config = peft_config(r=4, lora_alpha=4, rank_pattern={"attn1.to_q": 2}, alpha_pattern={r".*attn\d.to_(q|v)": 6})
    tensors = pair(PEFT, ".lora_A.weight", ".lora_B.weight", rank=2)
    _, B = style(tensors, config).unet[QUERY].factors()  # type: ignore[union-attr]
    assert np.array_equal(B, tensors[f"{PEFT}.lora_B.weight"] * 3)


def test_a_rank_for_each_of_sdxls_layers_by_its_whole_name_is_read() -> None:
    names = [f"down_blocks.2.attentions.{i}.transformer_blocks.0.attn1.to_q" for i in range(700)]
    config = peft_config(r=4, rank_pattern={f"^{name}": 2 for name in [*names, QUERY]})
    assert style(pair(PEFT, ".lora_A.weight", ".lora_B.weight"), config).ranks == (2,)


def test_metadata_of_diffusers_decides_the_scale_of_each_network() -> None:
    metadata = {"lora_adapter_metadata": json.dumps({"unet.r": 2, "unet.lora_alpha": 1, "unet.use_rslora": True})}
    scalings = metadata_of(metadata)
    assert scalings.keys() == {"unet"}
    assert scalings["unet"].scale_of("any", 2) == pytest.approx(1 / 2**0.5)


LOHA = {
    f"{FLAT}.hada_w1_a": numbers(C, 2), f"{FLAT}.hada_w1_b": numbers(2, C),
    f"{FLAT}.hada_w2_a": numbers(C, 2), f"{FLAT}.hada_w2_b": numbers(2, C),
}  # fmt: skip
LOKR = {f"{FLAT}.lokr_w1": numbers(2, 2), f"{FLAT}.lokr_w2": numbers(C // 2, C // 2)}


def test_an_alpha_without_a_rank_to_divide_it_by_counts_for_nothing() -> None:
    found = style(LOKR | {f"{FLAT}.alpha": np.array(np.inf, np.float16)}).unet[QUERY]
    assert np.array_equal(found.delta(), style(LOKR).unet[QUERY].delta())  # type: ignore[union-attr]


TEXT = "text_model_encoder_layers_0_self_attn_out_proj"
SHORT = "down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
REFUSED: dict[str, tuple[dict[str, np.ndarray], bytes | None, str]] = {
    "no tensors": ({}, None, "the file holds no tensors"),
    "a key of nothing": ({"emb_params": numbers(4)}, None, "emb_params is no tensor of a LoRA"),
    "a bias": (kohya() | {f"{FLAT}.diff_b": numbers(C)}, None, f"{SHORT}.diff_b is no tensor of a LoRA"),
    "OFT": ({f"{FLAT}.oft_blocks": numbers(2, 2)}, None, ".oft_blocks is no tensor"),
    "another network": (kohya("lora_te2_text_model_x"), None, "lora_te2_text_model_x.lora_down.weight names no layer of"),
    "another layer": (kohya(f"{FLAT}_x"), None, f"{FLAT}_x.lora_down.weight names no layer of small"),
    "down without up": ({f"{FLAT}.lora_down.weight": numbers(2, C)}, None, ".lora_down.weight has no partner 'up'"),
    "up without down": ({f"{FLAT}.lora_up.weight": numbers(C, 2)}, None, ".lora_up.weight has no partner 'down'"),
    "an alpha alone": ({f"{FLAT}.alpha": numbers(1)}, None, ".alpha has no partner 'down'"),
    "half a LoHa": ({f"{FLAT}.hada_w1_a": numbers(C, 2)}, None, ".hada_w1_a has no partner 'hada_w1_b'"),
    "half a LoKr": ({f"{FLAT}.lokr_w1": numbers(2, 2)}, None, ".lokr_w1 has no partner 'lokr_w2_a'"),
    "two methods": (kohya() | LOHA, None, "does not belong to the other tensors of"),
    "a wrong input": (kohya(shape=(C, C + 1)), None, ".lora_down.weight has the shape [2, 9]; [2, 8] is expected there"),
    "a wrong output": (kohya(shape=(C + 1, C)), None, ".lora_up.weight has the shape [9, 2]; [8, 2] is expected there"),
    "a flat tensor": (kohya() | {f"{FLAT}.lora_down.weight": numbers(C)}, None, "ranks of 1 to 4096 are served"),
    "a kernel for a linear layer": (kohya(shape=(C, C, 3, 3)), None, "has the shape [2, 8, 3, 3]; [2, 8] is expected"),
    "a core for a linear layer": (kohya() | {f"{FLAT}.lora_mid.weight": numbers(2, 2, 3, 3)}, None, "the layer is linear"),
    "NaN": (kohya() | {f"{FLAT}.lora_up.weight": np.full((C, 2), np.nan, np.float32)}, None, "lora_up.weight holds NaN"),
    "infinity": (kohya() | {f"{FLAT}.alpha": np.array(np.inf, np.float32)}, None, ".alpha holds NaN or infinity"),
    "overflow": (kohya() | {f"{FLAT}.alpha": np.array(3e38, np.float32), f"{FLAT}.lora_up.weight": np.full((C, 2), 99.0, np.float32)}, None, "would become infinite"),
    "an alpha of two": (kohya() | {f"{FLAT}.alpha": numbers(2)}, None, ".alpha has the shape [2]; one number"),
    "one layer in two spellings": (kohya() | kohya("lora_unet_input_blocks_1_1_transformer_blocks_0_attn1_to_q"), None, f"names layer {QUERY} a second time"),
    "a text encoder with and without its number": (kohya(f"lora_te_{TEXT}", shape=(WIDTH, WIDTH)) | kohya(f"lora_te1_{TEXT}", shape=(WIDTH, WIDTH)), None, "names layer encoder.layers.0.self_attn.out_proj a second time"),
    "one tensor in two spellings": (pair(QUERY, ".lora_A.weight", ".lora_B.weight") | {f"{QUERY}.lora.down.weight": numbers(2, C)}, None, "are the same tensor twice"),
    "blocks that do not divide": (LOKR | {f"{FLAT}.lokr_w1": numbers(3, 2)}, None, "blocks of [3, 2] do not divide a layer of shape [8, 8]"),
    "a magnitude for each input": (kohya() | {f"{FLAT}.dora_scale": numbers(1, C)}, None, "one magnitude for each of 8 outputs"),
    "no magnitude": (pair(PEFT, ".lora_A.weight", ".lora_B.weight"), peft_config(use_dora=True), "has no partner 'magnitude'"),
    "another rank": (pair(PEFT, ".lora_A.weight", ".lora_B.weight", rank=3), peft_config(), f"layer {QUERY} has rank 3; adapter_config.json says 2"),
    "two scales": (pair(PEFT, ".lora_A.weight", ".lora_B.weight") | {f"{PEFT}.alpha": numbers(1)}, peft_config(), "comes with adapter_config.json"),
    "no JSON": (kohya(), b"{", "adapter_config.json is not JSON"),
    "a list": (kohya(), b"[]", "adapter_config.json is no JSON object"),
    "another method": (kohya(), peft_config(peft_type="IA3"), "peft_type in adapter_config.json is 'IA3'; LORA, LOHA, LOKR are read"),
    "another base": (kohya(), peft_config(init_lora_weights="pissa_niter_4"), "changes the base model"),
    "an invocation": (kohya(), peft_config(alora_invocation_tokens=[1]), "alora_invocation_tokens is set"),
    "no rank": (kohya(), peft_config(r=None), "r in adapter_config.json is None; a number is expected"),
    "rank 0": (kohya(), peft_config(r=0), "r in adapter_config.json is 0; a rank of 1 or more"),
    "a pattern below 1": (kohya(), peft_config(rank_pattern={"to_q": 0}), "holds a rank below 1"),
    "patterns in a list": (kohya(), peft_config(rank_pattern=["to_q"]), "rank_pattern in adapter_config.json is no JSON object"),
    "an expression to hang in": (kohya(), peft_config(rank_pattern={"(a*)*b": 1}), "the layer pattern '(a*)*b' is not read"),
    "an endless name": (kohya(), peft_config(alpha_pattern={"a" * 301: 1}), "a layer pattern has 301 characters"),
    "countless choices": (kohya(), peft_config(alpha_pattern={"(a|b)" * 9: 1}), "has over 64 choices"),
    "countless expressions": (kohya(), peft_config(alpha_pattern={f"{i}{'.*' * 99}": 1 for i in range(150)}), "too many expressions"),
}  # fmt: skip


@pytest.mark.parametrize(("tensors", "config", "told"), REFUSED.values(), ids=REFUSED.keys())
def test_what_does_not_fit_is_refused_with_the_key_and_what_was_expected(
    tensors: dict[str, np.ndarray], config: bytes | None, told: str
) -> None:
    assert told in refusal(tensors, config)


@pytest.mark.parametrize(("width", "base"), [(768, "SD 1.x"), (1024, "SD 2.x"), (2048, "SDXL"), (4096, "another base")])
@pytest.mark.parametrize("method", ["LoRA", "LoHa", "LoKr"])
def test_the_base_model_is_told_by_the_width_of_the_text_whatever_else_is_wrong(
    method: str, width: int, base: str
) -> None:
    prefix = "lora_unet_input_blocks_4_1_transformer_blocks_9_attn2_to_k"  # a block that the small UNet lacks
    tensors = {
        "LoRA": kohya(prefix, shape=(C, width)),
        "LoHa": {f"{prefix}.hada_w1_b": numbers(2, width)},
        "LoKr": {f"{prefix}.lokr_w1": numbers(2, 4), f"{prefix}.lokr_w2_b": numbers(2, width // 4)},
    }[method]
    assert f"reads text of width {width}, as {base}" in refusal(tensors)
    assert f"small serves styles of width {WIDTH}" in refusal(tensors)


def test_a_hostile_key_makes_no_long_or_unprintable_sentence() -> None:
    told = refusal({"\x1b[2J" + "x" * 10_000: numbers(2)})
    assert len(told) < 400
    assert told.isprintable()


@given(
    st.sampled_from([FLAT, FLAT_CONV, PEFT, QUERY]),
    st.dictionaries(
        st.sampled_from(
            [".lora_A.weight", ".lora_B.weight", ".lora_down.weight", ".lora_up.weight", ".lora_mid.weight", ".alpha"]
            + [f".{a}_{b}" for a in ("hada", "lokr") for b in ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b", "t1", "t2")]
            + [".dora_scale", ".lora_magnitude_vector", ".diff"]
        ),
        st.lists(st.sampled_from([1, 2, 3, 4, C]), max_size=4),
        max_size=6,
    ),
)
def test_any_mixture_of_tensors_is_refused_or_changes_its_layer(prefix: str, shapes: dict[str, list[int]]) -> None:
    try:
        found = style({f"{prefix}{role}": numbers(*shape) for role, shape in shapes.items()})
    except LoraIncompatible:
        return
    for name, delta in found.unet.items():
        assert merged(np.ones(LAYERS["unet"][name], np.float32), delta).shape == LAYERS["unet"][name]
