"""What is accepted as a checkpoint, and what its digest depends on."""

import json
import shutil
import struct
from dataclasses import replace
from pathlib import Path

import huggingface_hub
import ml_dtypes
import numpy as np
import onnx
import pytest
from export_checkpoints import SD15_BLOCKS, TENSORS, change_config, projections, write_checkpoint, write_json
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError
from huggingface_hub.utils import filter_repo_objects, validate_repo_id
from safetensors.numpy import save_file

from export.checkpoint import COMPONENTS, open_checkpoint
from export.errors import ExportError
from export.folders import is_hub_id, variant_of
from export.graph_cache import SHIPPED, GraphCache, file_name
from export.specs import FAMILIES, STYLE_RANK, Architecture, Precision, Projection, TextEncoder, graphs_of
from export.weights import Weights

UNET_FILE = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "checkpoint")


def test_diffusers_folder_is_read_with_its_architecture(folder: Path) -> None:
    checkpoint = open_checkpoint(str(folder))

    assert checkpoint.name == "checkpoint"
    assert checkpoint.architecture.text_width == 32
    assert checkpoint.architecture.vae_scale_factor == 8
    np.testing.assert_array_equal(checkpoint.weights("unet")["conv_in.weight"], TENSORS["unet"]["conv_in.weight"])


@pytest.mark.parametrize(
    ("said", "name"),
    [
        ("remarque-demo", "remarque-demo"),
        ("owner/model", "owner/model"),
        ("/home/someone/model", "checkpoint"),
        (None, "checkpoint"),
    ],
)
def test_checkpoint_is_called_what_its_index_says_unless_that_is_a_path(
    folder: Path, said: str | None, name: str
) -> None:
    write_json(folder / "model_index.json", {"_class_name": "StableDiffusionPipeline", "_name_or_path": said})

    assert open_checkpoint(str(folder)).name == name


def test_path_that_is_neither_folder_nor_hub_id_is_refused() -> None:
    with pytest.raises(ExportError, match="is neither a folder nor a hub id"):
        open_checkpoint("/nowhere/at/all")


@pytest.mark.parametrize(
    "said",
    [
        *("owner/name", "o/n", "Owner_1/sd-v1.5_x", "owner/name_", f"o/{'n' * 96}"),
        *("models/sd--v1", "models/sd-v1.", "models/sd-v1-", "models./sd", "a/b..c", "owner/name.git", f"o/{'n' * 97}"),
    ],
)
def test_hub_id_is_what_the_hub_takes_for_one(said: str) -> None:
    try:
        validate_repo_id(said)
    except HFValidationError:
        with pytest.raises(ExportError, match="is neither a folder nor a hub id"):
            open_checkpoint(said)
    else:
        assert is_hub_id(said)


def test_single_file_is_refused_with_the_way_to_convert_it(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"")

    with pytest.raises(ExportError, match="is a file; a diffusers folder is served"):
        open_checkpoint(str(tmp_path / "model.safetensors"))


def test_folder_without_index_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"is not a diffusers checkpoint: it has no model_index\.json"):
        open_checkpoint(str(tmp_path))


def test_hub_that_cannot_be_reached_is_said_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*args: object, **options: object) -> str:
        raise LocalEntryNotFoundError("no network")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)

    with pytest.raises(ExportError, match="someone/model is no folder here, .* the hub is out of reach"):
        open_checkpoint("someone/model")


def hub_of(source: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Makes ``source`` what the hub holds; returns the names of all that is downloaded of it."""
    downloaded: list[str] = []

    def download(hub_id: str, allow_patterns: list[str], ignore_patterns: list[str]) -> str:
        names = [str(path.relative_to(source)) for path in source.rglob("*") if path.is_file()]
        for name in filter_repo_objects(names, allow_patterns=allow_patterns, ignore_patterns=ignore_patterns):
            (cache / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / name, cache / name)
            downloaded.append(name)
        return str(cache)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    return downloaded


def test_hub_id_with_half_precision_weights_alone_is_downloaded_with_them(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in list(folder.rglob("*.safetensors")):
        path.rename(path.with_suffix(".fp16.safetensors"))
    downloaded = hub_of(folder, tmp_path / "cache", monkeypatch)

    checkpoint = open_checkpoint("someone/model")

    assert variant_of(checkpoint.folder / "unet") == "fp16"
    assert len(downloaded) == len(set(downloaded))


def test_hub_id_with_both_kinds_of_weights_is_downloaded_without_the_half_precise(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in list(folder.rglob("*.safetensors")):
        shutil.copyfile(path, path.with_suffix(".fp16.safetensors"))
    downloaded = hub_of(folder, tmp_path / "cache", monkeypatch)

    checkpoint = open_checkpoint("someone/model")

    assert variant_of(checkpoint.folder / "unet") is None
    assert not [name for name in downloaded if "fp16" in name]


@pytest.mark.parametrize("index", [{}, {"weight_map": None}, {"weight_map": {}}])
def test_index_that_names_no_weights_is_refused(folder: Path, index: dict[str, object]) -> None:
    (folder / UNET_FILE).unlink()
    write_json(folder / f"{UNET_FILE}.index.json", index)

    with pytest.raises(ExportError, match=r"safetensors\.index\.json names no weights"):
        open_checkpoint(str(folder))


def test_other_pipelines_are_refused_by_name(folder: Path) -> None:
    write_json(folder / "model_index.json", {"_class_name": "StableDiffusion3Pipeline"})

    with pytest.raises(ExportError, match="is a StableDiffusion3Pipeline; StableDiffusionPipeline"):
        open_checkpoint(str(folder))


@pytest.mark.parametrize(
    ("component", "changes", "sentence"),
    [
        ("unet", {"_class_name": "UNet2DModel"}, "unet is a UNet2DModel; UNet2DConditionModel is served"),
        ("unet", {"in_channels": 5}, "takes 5 channels and the VAE makes 4; 4, or 9 for inpainting, are served"),
        ("unet", {"cross_attention_dim": 48}, "text encoder of width 32 with a UNet that expects 48"),
        ("unet", {"addition_embed_type": "text_time"}, "sets addition_embed_type to text_time"),
        ("text_encoder", {"architectures": ["T5EncoderModel"]}, "is a T5EncoderModel; CLIPTextModel is served"),
    ],
)
def test_networks_that_would_not_fit_together_are_refused(
    folder: Path, component: str, changes: dict[str, object], sentence: str
) -> None:
    change_config(folder, component, **changes)

    with pytest.raises(ExportError, match=sentence):
        open_checkpoint(str(folder))


def test_sd15_as_first_published_finds_its_committed_graphs(folder: Path) -> None:
    """Its configs of 2022 say less than those that today's libraries write for the same networks."""
    blocks = {"block_out_channels": [320, 640, 1280, 1280], "layers_per_block": 2, "attention_head_dim": 8}
    write_json(
        folder / "unet" / "config.json", {"_class_name": "UNet2DConditionModel", "cross_attention_dim": 768, **blocks}
    )
    vae = {"block_out_channels": [128, 256, 512, 512], "layers_per_block": 2, "latent_channels": 4}
    kinds = {"down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4}
    write_json(folder / "vae" / "config.json", {"_class_name": "AutoencoderKL", "sample_size": 512, **vae, **kinds})
    sizes = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
    text = {"architectures": ["CLIPTextModel"], "bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1, **sizes}
    write_json(folder / "text_encoder" / "config.json", text | {"vocab_size": 49408, "torch_dtype": "float32"})

    checkpoint = open_checkpoint(str(folder))

    architecture = replace(checkpoint.architecture, attention=tuple(projections(SD15_BLOCKS, 768)))
    for style_rank in (0, STYLE_RANK):
        graphs = graphs_of(architecture, style_rank)
        found = {graph.name: GraphCache(SHIPPED).find(graph, checkpoint, Precision.FP32) for graph in graphs}
        assert [name for name, model in found.items() if model is None] == []


def test_sd15s_committed_graph_takes_styles_of_the_size_that_is_declared() -> None:
    architecture = Architecture(
        FAMILIES["sd1"], (TextEncoder("text_encoder", 768, 768),), 4, 8, 8, tuple(projections(SD15_BLOCKS, 768))
    )
    unet = next(graph for graph in graphs_of(architecture) if graph.name == "unet")
    committed = {}
    for path in SHIPPED[1].glob("unet-*.onnx"):
        graph = onnx.load_model(path, load_external_data=False).graph
        inputs = {entry.name: [dim.dim_value for dim in entry.type.tensor_type.shape.dim] for entry in graph.input}
        committed[inputs.get("style", [0, 0])[1]] = list(inputs)

    assert unet.style is not None
    assert committed[unet.style.size] == [tensor.name for tensor in unet.inputs]
    assert 0 in committed


def test_missing_config_is_named(folder: Path) -> None:
    (folder / "vae" / "config.json").unlink()

    with pytest.raises(ExportError, match=r"vae/config\.json is missing"):
        open_checkpoint(str(folder))


def test_pickled_weights_are_refused(folder: Path) -> None:
    (folder / UNET_FILE).rename(folder / "unet" / "diffusion_pytorch_model.bin")

    with pytest.raises(ExportError, match="holds pickled weights only; safetensors are read"):
        open_checkpoint(str(folder))


def test_truncated_weights_are_refused(folder: Path) -> None:
    whole = (folder / UNET_FILE).read_bytes()
    (folder / UNET_FILE).write_bytes(whole[:-1])

    with pytest.raises(ExportError, match="is cut short or broken"):
        open_checkpoint(str(folder)).weights("unet")


@pytest.mark.parametrize(
    "content", [b"", b"\x80\x02pickle", struct.pack("<Q", 1 << 40) + b"{}", b"\x04\0\0\0\0\0\0\0nope"]
)
def test_file_that_is_no_safetensors_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.safetensors").write_bytes(content)

    with pytest.raises(ExportError, match=r"x\.safetensors (is not|cannot be read as) "):
        Weights([tmp_path / "x.safetensors"])


def test_bfloat16_tensors_are_read(tmp_path: Path) -> None:
    values = np.array([1.0, -2.5], ml_dtypes.bfloat16)
    header = json.dumps({"w": {"dtype": "BF16", "shape": [2], "data_offsets": [0, 4]}}).encode()
    (tmp_path / "x.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + values.tobytes())

    np.testing.assert_array_equal(Weights([tmp_path / "x.safetensors"])["w"].astype(np.float32), [1.0, -2.5])


def test_names_that_older_libraries_wrote_are_read_as_todays(folder: Path) -> None:
    old = {"decoder.mid_block.attentions.0.query.weight": np.ones((2, 2), np.float16)}
    save_file(old, folder / "vae" / "diffusion_pytorch_model.safetensors")
    text = {f"text_model.{name}": value for name, value in TENSORS["text_encoder"].items()}
    save_file(
        text | {"text_model.embeddings.position_ids": np.arange(3)}, folder / "text_encoder" / "model.safetensors"
    )

    checkpoint = open_checkpoint(str(folder))

    assert list(checkpoint.weights("vae")) == ["decoder.mid_block.attentions.0.to_q.weight"]
    assert list(checkpoint.weights("text_encoder")) == list(TENSORS["text_encoder"])


def test_digest_depends_on_weights_and_not_on_how_they_are_filed(folder: Path, tmp_path: Path) -> None:
    before = open_checkpoint(str(folder)).weights_sha256
    sharded = write_checkpoint(tmp_path / "sharded")
    (sharded / UNET_FILE).unlink()
    index = {}
    for i, (name, value) in enumerate(reversed(TENSORS["unet"].items())):
        shard = f"diffusion_pytorch_model-{i}.safetensors"
        save_file({name: value}, sharded / "unet" / shard, metadata={"format": "pt", "shard": str(i)})
        index[name] = shard
    write_json(sharded / "unet" / "diffusion_pytorch_model.safetensors.index.json", {"weight_map": index})

    assert open_checkpoint(str(sharded)).weights_sha256 == before


def test_digest_changes_with_one_bit_of_one_weight(folder: Path, tmp_path: Path) -> None:
    changed = write_checkpoint(tmp_path / "changed")
    content = bytearray((changed / UNET_FILE).read_bytes())
    content[-1] ^= 1
    (changed / UNET_FILE).write_bytes(content)

    assert open_checkpoint(str(changed)).weights_sha256 != open_checkpoint(str(folder)).weights_sha256


def test_checkpoints_that_differ_in_weights_or_in_who_saved_them_share_a_graph(folder: Path, tmp_path: Path) -> None:
    other = write_checkpoint(tmp_path / "other")
    change_config(other, "unet", _diffusers_version="9.9", sample_size=64, dtype="float16")

    assert open_checkpoint(str(other)).shape_key("unet") == open_checkpoint(str(folder)).shape_key("unet")


def test_config_that_is_silent_and_one_that_says_the_defaults_share_a_graph(folder: Path, tmp_path: Path) -> None:
    other = write_checkpoint(tmp_path / "other")
    change_config(
        other, "unet", use_linear_projection=False, mid_block_type="UNetMidBlock2DCrossAttn", time_cond_proj_dim=None
    )
    change_config(other, "vae", mid_block_add_attention=True, shift_factor=None, force_upcast=True)
    change_config(other, "text_encoder", hidden_act="quick_gelu", projection_dim=768, bos_token_id=0)

    one, two = open_checkpoint(str(folder)), open_checkpoint(str(other))

    assert [one.shape_key(c) for c in COMPONENTS] == [two.shape_key(c) for c in COMPONENTS]


@pytest.mark.parametrize(
    ("component", "changes"),
    [
        ("vae", {"mid_block_add_attention": False}),
        ("unet", {"mid_block_type": None}),
        ("unet", {"flip_sin_to_cos": False}),
        ("text_encoder", {"eos_token_id": 2}),
    ],
)
def test_settings_that_shape_a_network_are_part_of_its_graph(
    folder: Path, tmp_path: Path, component: str, changes: dict[str, object]
) -> None:
    other = write_checkpoint(tmp_path / "other")
    change_config(other, component, **changes)

    assert open_checkpoint(str(other)).shape_key(component) != open_checkpoint(str(folder)).shape_key(component)


def test_a_scaling_factor_is_part_of_the_graph(folder: Path, tmp_path: Path) -> None:
    other = write_checkpoint(tmp_path / "other")
    change_config(other, "vae", scaling_factor=0.5)

    assert open_checkpoint(str(other)).shape_key("vae") != open_checkpoint(str(folder)).shape_key("vae")


def test_a_styled_unet_and_a_plain_one_have_graphs_of_their_own(folder: Path) -> None:
    checkpoint = open_checkpoint(str(folder))
    architecture = replace(checkpoint.architecture, attention=(Projection("mid_block.attn1.to_q", 4, 4),))

    names = {
        file_name(next(g for g in graphs_of(architecture, rank) if g.name == "unet"), checkpoint, Precision.FP32)
        for rank in (0, 4, 8)
    }

    assert len(names) == 3
