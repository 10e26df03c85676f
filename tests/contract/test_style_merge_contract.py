"""A style merged by export, ahead of serving, is the style that the orchestrator would merge, under the same name."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from export.checkpoint import Checkpoint, open_checkpoint
from export.description import layers_of
from export.errors import ExportError
from export.stability import stability_names
from export.styles import merge, name_of, open_style
from orchestrator.clients.storage import Storage
from orchestrator.diffusion.deltas import merged
from orchestrator.diffusion.lora_names import spellings
from orchestrator.errors import LoraIncompatible
from orchestrator.style_ways import AppliedStyle, merged_name
from orchestrator.styles import StyleShelf

ROOT = Path(__file__).parents[2]
SELF = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
OUT = "mid_block.attentions.0.transformer_blocks.0.attn1.to_out.0"
CROSS = "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k"
CONV = "mid_block.resnets.0.conv1"
TIME = "time_embedding.linear_1"
TEXT = "encoder.layers.0.self_attn.q_proj"
TEXT_MLP = "encoder.layers.1.mlp.fc1"
STABILITY = {
    SELF: "middle_block_1_transformer_blocks_0_attn1_to_q",
    CROSS: "input_blocks_3_1_transformer_blocks_0_attn2_to_k",
    CONV: "middle_block_0_in_layers_2",
    TIME: "time_embed_0",
    "up_blocks.1.upsamplers.0.conv": "output_blocks_3_2_conv",
}
SDXL = [
    "add_embedding.linear_2",
    *(f"down_blocks.{b}.resnets.{i}.conv2" for b in range(3) for i in range(2)),
    *(f"up_blocks.{b}.resnets.{i}.conv2" for b in range(3) for i in range(3)),
    *(f"down_blocks.{b}.attentions.{i}.transformer_blocks.1.ff.net.2" for b in (1, 2) for i in range(2)),
    *(f"up_blocks.{b}.attentions.{i}.transformer_blocks.9.attn1.to_out.0" for b in (0, 1) for i in range(3)),
    *(f"{side}_blocks.{b}.{side}samplers.0.conv" for side in ("down", "up") for b in (0, 1)),
    "mid_block.resnets.1.time_emb_proj",
    "mid_block.attentions.0.proj_out",
]
GENERATOR = np.random.default_rng(11)


@pytest.fixture(scope="module")
def demo() -> Checkpoint:
    return open_checkpoint(str(ROOT / "demo" / "checkpoint"))


@pytest.fixture(scope="module")
def networks(demo: Checkpoint) -> dict[str, dict[str, np.ndarray]]:
    return {name: dict(demo.weights(name)) for name in ("unet", "text_encoder")}


def factors(networks: dict[str, Any], network: str, layer: str, rank: int) -> tuple[np.ndarray, np.ndarray]:
    out, into, *kernel = networks[network][f"{layer}.weight"].shape
    down = GENERATOR.standard_normal((rank, into, *kernel)).astype(np.float32) * 0.1
    up = GENERATOR.standard_normal((out, rank, *(1 for _ in kernel))).astype(np.float32) * 0.1
    return down, up


def peft_folder(folder: Path, networks: dict[str, Any], layers: tuple[str, ...], **config: Any) -> Path:
    tensors = {}
    for layer in layers:
        rank = config.get("rank_pattern", {}).get(layer, config.get("r", 8))
        network = "text_encoder" if layer.startswith("text_model.") else "unet"
        down, up = factors(networks, network, layer.removeprefix("text_model."), rank)
        tensors |= {f"base_model.model.{layer}.lora_A.weight": down, f"base_model.model.{layer}.lora_B.weight": up}
    folder.mkdir(parents=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    said = {"peft_type": "LORA", "r": 8, "lora_alpha": 32, "init_lora_weights": True} | config
    (folder / "adapter_config.json").write_text(json.dumps(said))
    return folder


def kohya_file(path: Path, networks: dict[str, Any]) -> Path:
    """Each layer with a rank and an alpha of its own, some without."""
    tensors = {}
    for i, (network, layer) in enumerate(
        [
            ("unet", SELF),
            ("unet", OUT),
            ("unet", CONV),
            ("unet", TIME),
            ("text_encoder", TEXT),
            ("text_encoder", TEXT_MLP),
        ]
    ):
        down, up = factors(networks, network, layer, 2 + i)
        prefix = "lora_unet_" if network == "unet" else "lora_te_text_model_"
        written = prefix + layer.replace(".", "_")
        tensors |= {f"{written}.lora_down.weight": down, f"{written}.lora_up.weight": up}
        if i != 2:
            tensors[f"{written}.alpha"] = np.array(1.5 * i + 1, np.float32)
    save_file(tensors, path)
    return path


def stability_file(path: Path, networks: dict[str, Any]) -> Path:
    """As sd-scripts writes SDXL's: the same layers under the numbers that Stability's code gives their blocks."""
    tensors = {}
    for layer, name in STABILITY.items():
        down, up = factors(networks, "unet", layer, 4)
        written = f"lora_unet_{name}"
        tensors |= {f"{written}.lora_down.weight": down, f"{written}.lora_up.weight": up}
    save_file(tensors, path)
    return path


def diffusers_file(path: Path, networks: dict[str, Any], metadata: dict[str, Any] | None = None) -> Path:
    down, up = factors(networks, "unet", OUT, 4)
    text_down, text_up = factors(networks, "text_encoder", TEXT, 4)
    tensors = {
        f"unet.{OUT}.lora.down.weight": down,
        f"unet.{OUT}.lora.up.weight": up,
        f"text_encoder.text_model.{TEXT}.lora_linear_layer.down.weight": text_down,
        f"text_encoder.text_model.{TEXT}.lora_linear_layer.up.weight": text_up,
    }
    save_file(tensors, path, None if metadata is None else {"lora_adapter_metadata": json.dumps(metadata)})
    return path


def old_diffusers_file(path: Path, networks: dict[str, Any]) -> Path:
    tensors = {}
    for layer, written in ((SELF, "to_q_lora"), (OUT, "to_out_lora")):
        down, up = factors(networks, "unet", layer, 4)
        head = f"unet.{layer.partition('.to_')[0]}.processor.{written}"
        tensors |= {f"{head}.down.weight": down, f"{head}.up.weight": up}
    save_file(tensors, path)
    return path


def written(kind: str, folder: Path, networks: dict[str, Any]) -> Path:
    if kind == "peft":
        return peft_folder(folder / "style", networks, (SELF, OUT, CROSS, CONV))
    if kind == "peft, rsLoRA and patterns":
        alphas = {"to_q": 3, r"down_blocks.*attn2.to_k": 5}
        return peft_folder(
            folder / "style",
            networks,
            (SELF, OUT, CROSS),
            use_rslora=True,
            rank_pattern={CROSS: 4},
            alpha_pattern=alphas,
        )
    if kind == "peft, a text encoder with patterns":
        whole = {f"text_model.{TEXT}": 4}
        layers = tuple(f"text_model.{layer}" for layer in (TEXT, TEXT_MLP))
        return peft_folder(
            folder / "style", networks, layers, r=1, lora_alpha=1, rank_pattern=whole, alpha_pattern=whole
        )
    if kind == "diffusers":
        return diffusers_file(folder / "style.safetensors", networks)
    if kind == "diffusers, metadata":
        said = {"unet.r": 4, "unet.lora_alpha": 6, "text_encoder.r": 4, "text_encoder.lora_alpha": 2}
        return diffusers_file(folder / "pytorch_lora_weights.safetensors", networks, said).parent
    if kind == "diffusers, metadata of the UNet only":
        return diffusers_file(folder / "style.safetensors", networks, {"unet.r": 4, "unet.lora_alpha": 6})
    if kind == "diffusers, old":
        return old_diffusers_file(folder / "style.safetensors", networks)
    if kind == "Stability's blocks":
        return stability_file(folder / "style.safetensors", networks)
    return kohya_file(folder / "style.safetensors", networks)


KINDS = (
    "peft",
    "peft, rsLoRA and patterns",
    "peft, a text encoder with patterns",
    "diffusers",
    "diffusers, metadata",
    "diffusers, metadata of the UNet only",
    "diffusers, old",
    "kohya",
    "Stability's blocks",
)


def applied(path: Path, weight: float, demo: Checkpoint) -> AppliedStyle:
    """What the orchestrator reads at ``path``."""
    served: Any = SimpleNamespace(name="demo", cross_attention_dim=128, layers=layers_of(demo))
    inputs = Storage(path.parent.as_uri(), allowed_input_prefixes=[path.parent.as_uri()]).inputs
    style = StyleShelf(inputs, served).get(str(path))
    return AppliedStyle(style=style, weight=weight, path=str(path), record=None)  # type: ignore[arg-type]


def assert_equal_merges(
    demo: Checkpoint, networks: dict[str, Any], paths: tuple[tuple[Path, float], ...]
) -> dict[str, dict[str, Any]]:
    found = merge(networks, [open_style(f"{path}={weight}") for path, weight in paths])
    expected: dict[str, dict[str, Any]] = {"unet": {}, "text_encoder": {}}
    for path, weight in paths:
        style = applied(path, weight, demo).style
        for network, weights in expected.items():
            for layer, delta in style.deltas(network).items():
                base = weights.get(f"{layer}.weight", networks[network][f"{layer}.weight"].astype(np.float32))
                weights[f"{layer}.weight"] = merged(base, delta, weight)
    assert {name: sorted(weights) for name, weights in found.items()} == {
        name: sorted(weights) for name, weights in expected.items() if weights
    }
    for network, weights in found.items():
        for name, weight in weights.items():
            np.testing.assert_allclose(weight, expected[network][name], rtol=0, atol=2e-6, err_msg=name)
            assert np.abs(weight - networks[network][name]).max() > 1e-3
    return found


@pytest.mark.parametrize("weight", [1.0, -0.6])
@pytest.mark.parametrize("kind", KINDS)
def test_style_changes_the_weights_as_the_orchestrator_changes_them(
    kind: str, weight: float, demo: Checkpoint, networks: dict[str, Any], tmp_path: Path
) -> None:
    assert_equal_merges(demo, networks, ((written(kind, tmp_path, networks), weight),))


@pytest.mark.parametrize("model", ["demo", "SDXL"])
def test_a_layer_has_the_name_of_stabilitys_code_that_the_orchestrator_reads(model: str, demo: Checkpoint) -> None:
    layers = list(layers_of(demo)["unet"]) if model == "demo" else SDXL

    found = stability_names(layers)

    known = spellings({"unet": layers})
    assert {f"lora_unet_{name.replace('.', '_')}": layer for layer, name in found.items()} == {
        written: layer.name
        for written, layer in known.items()
        if written.startswith("lora_unet_") and written != f"lora_unet_{layer.name.replace('.', '_')}"
    }


def test_two_styles_on_one_layer_add_up_as_in_the_orchestrator(
    demo: Checkpoint, networks: dict[str, Any], tmp_path: Path
) -> None:
    first = peft_folder(tmp_path / "first", networks, (SELF, OUT))
    second = kohya_file(tmp_path / "second.safetensors", networks)

    assert_equal_merges(demo, networks, ((first, 0.5), (second, 1.25)))


def test_a_second_style_never_inherits_the_first(networks: dict[str, Any], tmp_path: Path) -> None:
    first, second = (peft_folder(tmp_path / layer, networks, (layer,)) for layer in (SELF, CROSS))

    merge(networks, [open_style(str(first))])
    found = merge(networks, [open_style(str(second))])

    assert list(found["unet"]) == [f"{CROSS}.weight"]


@pytest.mark.parametrize("kind", KINDS)
def test_merged_model_has_the_name_that_the_orchestrator_looks_for(
    kind: str, demo: Checkpoint, networks: dict[str, Any], tmp_path: Path
) -> None:
    path, other = written(kind, tmp_path, networks), peft_folder(tmp_path / "other", networks, (SELF,))
    styles = [applied(path, 0.8, demo), applied(other, 1.0, demo)]

    name = name_of("unet", "ab" * 32, [open_style(f"{path}=0.8"), open_style(str(other))])

    assert name == merged_name("unet", "ab" * 32, styles)


def test_style_of_another_method_is_refused_instead_of_merged_in_part(networks: dict[str, Any], tmp_path: Path) -> None:
    folder = peft_folder(tmp_path / "style", networks, (SELF,), use_dora=True)

    with pytest.raises(ExportError, match="is no plain LoRA"):
        merge(networks, [open_style(str(folder))])


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ({"init_lora_weights": "pissa_niter_4"}, "its init_lora_weights is 'pissa_niter_4', which changes the base"),
        ({"layer_replication": [[0, 1]]}, "its configuration sets layer_replication"),
        ({"rank_pattern": {"to_q": 4}}, "has rank 8; its configuration says 4"),
        ({"lora_alpha": None}, "its configuration lacks r or lora_alpha"),
        ({"alpha_pattern": {"(": 1}}, "lora_alpha or holds a broken pattern"),
    ],
)
def test_configuration_that_the_orchestrator_refuses_is_refused(
    config: dict[str, Any], sentence: str, demo: Checkpoint, networks: dict[str, Any], tmp_path: Path
) -> None:
    folder = peft_folder(tmp_path / "style", networks, (SELF,), **config)

    with pytest.raises(ExportError, match=sentence):
        merge(networks, [open_style(str(folder))])
    with pytest.raises(LoraIncompatible):
        applied(folder, 1.0, demo)


def broken(case: str, networks: dict[str, Any]) -> dict[str, np.ndarray]:
    down, up = factors(networks, "unet", CROSS, 4)
    tensors = {f"unet.{CROSS}.lora.down.weight": down, f"unet.{CROSS}.lora.up.weight": up}
    return {
        "NaN": tensors | {f"unet.{CROSS}.lora.up.weight": up * np.float32("nan")},
        "an infinite alpha": tensors | {f"unet.{CROSS}.alpha": np.array(np.inf, np.float32)},
        "an alpha of two": tensors | {f"unet.{CROSS}.alpha": np.ones(2, np.float32)},
        "a layer twice": tensors | {f"{CROSS}.lora.down.weight": down, f"{CROSS}.lora.up.weight": up},
        "a tensor twice": tensors | {f"unet.{CROSS}.lora_A.weight": down},
        "an alpha beside metadata": tensors | {f"unet.{CROSS}.alpha": np.array(4, np.float32)},
        "partners of different ranks": tensors | {f"unet.{CROSS}.lora.up.weight": up[:, :3].copy()},
        "a flat factor": tensors | {f"unet.{CROSS}.lora.up.weight": up.reshape(-1)},
        "sides exchanged": dict(zip(tensors, (up.T.copy(), down.T.copy()), strict=True)),
    }[case]


@pytest.mark.parametrize(
    ("case", "metadata", "sentence"),
    [
        ("NaN", None, "lora.up.weight and its partner hold NaN, infinity"),
        ("an infinite alpha", None, "lora.up.weight and its partner hold NaN, infinity"),
        ("an alpha of two", None, r".alpha has the shape \(2,\); one number is expected"),
        ("a layer twice", None, f"names {CROSS}.weight a second time, in another spelling"),
        ("a tensor twice", None, "are the same tensor twice"),
        ("an alpha beside metadata", {"unet.r": 4, "unet.lora_alpha": 4}, ".alpha comes with a configuration"),
        ("partners of different ranks", None, r"lora.up.weight has the shape \(\d+, 3\); its partner has \(4, 128\)"),
        ("a flat factor", None, r"lora.up.weight has the shape \(\d+,\); its partner has \(4, 128\)"),
        ("sides exchanged", None, "the style was made for another"),
    ],
)
def test_tensors_that_the_orchestrator_refuses_are_refused(
    case: str,
    metadata: dict[str, Any] | None,
    sentence: str,
    demo: Checkpoint,
    networks: dict[str, Any],
    tmp_path: Path,
) -> None:
    path = tmp_path / "style.safetensors"
    said = None if metadata is None else {"lora_adapter_metadata": json.dumps(metadata)}
    save_file(broken(case, networks), path, said)

    with pytest.raises(ExportError, match=sentence):
        merge(networks, [open_style(str(path))])
    with pytest.raises(LoraIncompatible):
        applied(path, 1.0, demo)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("unet.no_such_block.to_q.lora.down.weight", "belongs to no layer of this checkpoint"),
        (f"lora_unet_{SELF.replace('.', '_')}.hada_w1_a", "is no factor of a plain low-rank style"),
        (f"lora_unet_{SELF.replace('.', '_')}.lora_down.weight", "has no partner"),
        (f"lora_unet_{SELF.replace('.', '_')}.alpha", "has no partner"),
    ],
)
def test_tensor_that_fits_nothing_is_named(networks: dict[str, Any], tmp_path: Path, name: str, sentence: str) -> None:
    save_file({name: np.ones((2, 2), np.float32)}, tmp_path / "style.safetensors")

    with pytest.raises(ExportError, match=sentence):
        merge(networks, [open_style(str(tmp_path / "style.safetensors"))])


def test_style_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="does not exist; a .safetensors file or a trainer's folder is read"):
        open_style(f"{tmp_path / 'nothing'}=0.5")
