"""Our reading of style files against peft's and diffusers' own, for files that they and trainers' naming make.

Every case compares the whole changed weight of every layer, so a layer that one side leaves out is a difference too.
The networks are tiny and random; the files are written here, by the libraries themselves where they can.
"""

import copy
from types import SimpleNamespace

import numpy as np
import pytest

from orchestrator.clients.storage import Storage
from orchestrator.diffusion.deltas import LowRank, merged, stacked
from orchestrator.diffusion.lora_names import spellings
from orchestrator.styles import StyleShelf

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")
safetensors_torch = pytest.importorskip("safetensors.torch")

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    # peft guesses at a base model's config that these networks have not.
    pytest.mark.filterwarnings("ignore:Could not find a config file:UserWarning"),
    # peft asks transformers in the way of its last version.
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"),
]
WIDTH = 16
ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]
EVERYTHING = [*ATTENTION, "proj_in", "ff.net.0.proj", "ff.net.2", "conv1", "conv_shortcut", "time_emb_proj", "conv_in"]
TEXT = ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"]
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def unet():
    torch.manual_seed(0)
    return diffusers.UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(16, 32),
        layers_per_block=2,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=WIDTH,
        attention_head_dim=8,
        norm_num_groups=8,
    )


@pytest.fixture(scope="module")
def text_encoder():
    torch.manual_seed(1)
    config = transformers.CLIPTextConfig(
        vocab_size=64, hidden_size=WIDTH, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2
    )
    return transformers.CLIPTextModel(config)


@pytest.fixture(scope="module")
def networks(unet, text_encoder):
    return {"unet": weights_of(unet), "text_encoder": weights_of(text_encoder)}


def weights_of(network) -> dict[str, np.ndarray]:
    """Every linear and convolutional layer's weight by the layer's name."""
    return {
        name.removeprefix("text_model."): module.weight.detach().numpy().copy()
        for name, module in network.named_modules()
        if isinstance(module, torch.nn.Linear | torch.nn.Conv2d)
    }


def read(path, networks):
    layers = {name: {layer: w.shape for layer, w in weights.items()} for name, weights in networks.items()}
    served = SimpleNamespace(name="tiny", cross_attention_dim=WIDTH, layers=layers)
    inputs = Storage(path.parent.as_uri(), allowed_input_prefixes=[path.parent.as_uri()]).inputs
    return StyleShelf(inputs, served).get(str(path)).lora


def ours(lora, networks, weight=1.0):
    deltas = {"unet": lora.unet, "text_encoder": lora.text_encoder}
    return {
        network: {
            name: merged(layer, deltas[network][name], weight) if name in deltas[network] else layer
            for name, layer in layers.items()
        }
        for network, layers in networks.items()
    }


def assert_same(ours, theirs, base, changed):
    """Equal in every layer, and ``changed`` of them are not the base's any more."""
    assert ours.keys() == theirs.keys()
    worst = {name: np.abs(ours[name] - theirs[name]).max() / np.abs(theirs[name]).max() for name in theirs}
    assert max(worst.values()) < TOLERANCE, max(worst.items(), key=lambda item: item[1])
    assert sum(np.abs(theirs[name] - base[name]).max() > 1e-4 for name in theirs) == changed


def randomised(model):
    """The adapter's tensors drawn anew: a fresh one does nothing, and a magnitude of its own tells DoRA's formula."""
    torch.manual_seed(7)
    for name, parameter in model.named_parameters():
        if any(part in name for part in ("lora_", "hada_", "lokr_")):
            factor = parameter.data if "magnitude" in name else torch.ones_like(parameter)
            parameter.data = (
                factor * (1 + 0.2 * torch.randn(parameter.shape))
                if "magnitude" in name
                else (0.2 * torch.randn(parameter.shape))
            )
    return model


def lora(**changes):
    return peft.LoraConfig(**{"r": 4, "lora_alpha": 16, "target_modules": ATTENTION} | changes)


PEFT_CONFIGS = {
    "as artists' trainers write it": lora(r=8, lora_alpha=32),
    "every kind of layer": lora(target_modules=EVERYTHING),
    "rank and alpha patterns": lora(
        target_modules=EVERYTHING,
        rank_pattern={"to_q": 2, "down_blocks.*attn2.to_k": 6, "conv1": 3},
        alpha_pattern={r"mid_block.attentions.0.transformer_blocks.\d+.attn[12].to_(v|q)": 3, "conv_in": 1},
    ),
    "rsLoRA": lora(use_rslora=True, rank_pattern={"to_v": 9}),
    "DoRA": lora(use_dora=True, target_modules=EVERYTHING),
    "LoHa": peft.LoHaConfig(r=3, alpha=6, target_modules=EVERYTHING, rank_pattern={"to_q": 2}),
    "LoHa, Tucker": peft.LoHaConfig(r=3, alpha=6, target_modules=["conv1", "to_k"], use_effective_conv2d=True),
    "LoKr": peft.LoKrConfig(r=2, alpha=6, target_modules=EVERYTHING, alpha_pattern={"to_q": 2}),
    "LoKr, both sides": peft.LoKrConfig(r=1, alpha=2, target_modules=EVERYTHING, decompose_both=True),
    "LoKr, Tucker": peft.LoKrConfig(r=2, alpha=2, target_modules=["conv1"], use_effective_conv2d=True),
}


@pytest.mark.parametrize("config", PEFT_CONFIGS.values(), ids=PEFT_CONFIGS.keys())
def test_a_folder_that_peft_saved_changes_the_unet_as_peft_merges_it(config, unet, networks, tmp_path):
    model = randomised(peft.get_peft_model(copy.deepcopy(unet), copy.deepcopy(config)))
    model.save_pretrained(tmp_path / "style")
    ours_ = ours(read(tmp_path / "style", networks), networks)
    changed = len({name.partition(".base_layer")[0] for name, _ in model.named_modules() if ".base_layer" in name})
    theirs = weights_of(model.merge_and_unload())
    assert_same(ours_["unet"], theirs, networks["unet"], changed)


@pytest.mark.parametrize("use_dora", [False, True])
def test_a_folder_that_peft_saved_changes_the_text_encoder_as_peft_merges_it(
    use_dora, text_encoder, networks, tmp_path
):
    config = lora(target_modules=TEXT, use_dora=use_dora)
    model = randomised(peft.get_peft_model(copy.deepcopy(text_encoder), config))
    model.save_pretrained(tmp_path / "style")
    found = ours(read(tmp_path / "style" / "adapter_model.safetensors", networks), networks)["text_encoder"]
    assert_same(found, weights_of(model.merge_and_unload()), networks["text_encoder"], 12)


class Loader(diffusers.loaders.StableDiffusionLoraLoaderMixin):
    """Diffusers' own loading, without the rest of a pipeline."""

    _lora_loadable_modules = ("unet", "text_encoder")
    num_fused_loras = 0

    def __init__(self, unet, text_encoder):
        self.unet, self.text_encoder = copy.deepcopy(unet), copy.deepcopy(text_encoder)
        self.components = {"unet": self.unet, "text_encoder": self.text_encoder}
        self.hf_device_map = None
        self._merged_adapters = set()

    def fused(self, scale=1.0):
        self.fuse_lora(components=["unet", "text_encoder"], lora_scale=scale)
        for network in (self.unet, self.text_encoder):
            diffusers.utils.recurse_remove_peft_layers(network)
        return {"unet": weights_of(self.unet), "text_encoder": weights_of(self.text_encoder)}


def adapted(network, config):
    network = copy.deepcopy(network)
    network.add_adapter(config)
    return randomised(network), peft.get_peft_model_state_dict(network)


@pytest.mark.parametrize("scale", [1.0, 0.4])
@pytest.mark.parametrize("style", ["peft's names", "diffusers' names", "its metadata", "DoRA"])
def test_a_file_that_diffusers_saved_changes_both_networks_as_diffusers_fuses_it(
    style, scale, unet, text_encoder, networks, tmp_path
):
    config = lora(use_dora=style == "DoRA", rank_pattern={"to_v": 2} if style == "its metadata" else {})
    _, unet_state = adapted(unet, config)
    # Transformers 5.23 leaves DoRA's magnitudes of a text encoder as they were before the training.
    text_state = {} if style == "DoRA" else adapted(text_encoder, lora(target_modules=TEXT[:4]))[1]
    if style == "diffusers' names":
        convert = diffusers.utils.convert_state_dict_to_diffusers
        unet_state, text_state = convert(unet_state), convert(text_state)
    remarks = {}
    if style == "its metadata":
        from diffusers.training_utils import _collate_lora_metadata

        carriers = {
            "unet": adapted(unet, config)[0],
            "text_encoder": adapted(text_encoder, lora(target_modules=TEXT[:4]))[0],
        }
        remarks = _collate_lora_metadata(carriers)
    diffusers.StableDiffusionPipeline.save_lora_weights(
        tmp_path / "style", unet_lora_layers=unet_state, text_encoder_lora_layers=text_state, **remarks
    )
    loader = Loader(unet, text_encoder)
    loader.load_lora_weights(str(tmp_path / "style"))
    found = read(tmp_path / "style" / "pytorch_lora_weights.safetensors", networks)
    assert found.family == "diffusers"
    theirs, mine = loader.fused(scale), ours(found, networks, scale)
    assert_same(mine["unet"], theirs["unet"], networks["unet"], len(unet_state) // (3 if style == "DoRA" else 2))
    assert_same(mine["text_encoder"], theirs["text_encoder"], networks["text_encoder"], len(text_state) // 2)


def kohya_file(path, networks, names):
    """Factors for the layers ``names`` (by how they are written), each with a rank and an alpha of its own."""
    torch.manual_seed(3)
    tensors = {}
    for i, (written, weight) in enumerate(names.items()):
        rank, (out, into, *kernel) = 2 + i % 3, weight.shape
        ones = [1] * len(kernel)
        tensors[f"{written}.lora_down.weight"] = 0.2 * torch.randn(rank, into, *kernel)
        tensors[f"{written}.lora_up.weight"] = 0.2 * torch.randn(out, rank, *ones)
        # Diffusers 0.42 drops alphas that differ from layer to layer; see the test with peft below.
        tensors[f"{written}.alpha"] = torch.tensor(3.0)
    safetensors_torch.save_file(tensors, path, metadata={"ss_base_model_version": "sdxl_base_v1-0"})
    return path


def flat(networks, layers):
    return {
        f"lora_{'unet' if network == 'unet' else 'te_text_model'}_{name.replace('.', '_')}": weight
        for network, weights in networks.items()
        for name, weight in weights.items()
        if any(name.endswith(layer) for layer in layers)
    }


def test_a_file_with_kohyas_names_changes_both_networks_as_diffusers_fuses_it(unet, text_encoder, networks, tmp_path):
    names = flat(networks, [*EVERYTHING, *TEXT])
    path = kohya_file(tmp_path / "style.safetensors", networks, names)
    loader = Loader(unet, text_encoder)
    loader.load_lora_weights(str(path))
    mine, theirs = ours(read(path, networks), networks), loader.fused()
    changed = sum(name.startswith("lora_unet") for name in names)
    assert_same(mine["unet"], theirs["unet"], networks["unet"], changed)
    assert_same(mine["text_encoder"], theirs["text_encoder"], networks["text_encoder"], len(names) - changed)


@pytest.mark.parametrize("use_dora", [False, True])
def test_kohyas_alphas_and_magnitudes_count_layer_by_layer_as_in_peft(use_dora, unet, networks, tmp_path):
    config = lora(use_dora=use_dora, alpha_pattern={"to_q": 1, "attn2.to_k": 7}, rank_pattern={"to_k": 2})
    model = randomised(peft.get_peft_model(copy.deepcopy(unet), config))
    tensors = {}
    for name, module in model.base_model.model.named_modules():
        if hasattr(module, "lora_A"):
            written = "lora_unet_" + name.replace(".", "_")
            tensors[f"{written}.lora_down.weight"] = module.lora_A["default"].weight.data
            tensors[f"{written}.lora_up.weight"] = module.lora_B["default"].weight.data
            tensors[f"{written}.alpha"] = torch.tensor(float(module.lora_alpha["default"]))
            if use_dora:
                tensors[f"{written}.dora_scale"] = module.lora_magnitude_vector["default"].weight.data[:, None]
    safetensors_torch.save_file(tensors, tmp_path / "style.safetensors")
    mine = ours(read(tmp_path / "style.safetensors", networks), networks)
    assert_same(
        mine["unet"], weights_of(model.merge_and_unload()), networks["unet"], len(tensors) // (4 if use_dora else 3)
    )


def test_names_after_stabilitys_blocks_mean_the_layers_that_diffusers_takes_them_for(unet, networks, tmp_path):
    written = {
        spelling: networks["unet"][layer.name]
        for spelling, layer in spellings({"unet": networks["unet"]}).items()
        if spelling.startswith(("lora_unet_input", "lora_unet_middle", "lora_unet_output"))
        # Diffusers takes the second place of a block without attention for an attention; Stability's code has its
        # upsampler there.
        and not spelling.endswith("_1_conv")
    }
    assert len(written) > 100
    path = kohya_file(tmp_path / "style.safetensors", networks, written)
    state, alphas = Loader.lora_state_dict(str(path), unet_config=unet.config)
    theirs = copy.deepcopy(unet)
    Loader.load_lora_into_unet(state, alphas, theirs)
    theirs.fuse_lora()
    diffusers.utils.recurse_remove_peft_layers(theirs)
    mine = ours(read(path, networks), networks)
    assert_same(mine["unet"], weights_of(theirs), networks["unet"], len(written))


def test_attention_processors_of_old_diffusers_are_read_like_todays(unet, text_encoder, networks, tmp_path):
    state = adapted(unet, lora())[1]
    old = {"to_q": "to_q_lora", "to_k": "to_k_lora", "to_v": "to_v_lora", "to_out.0": "to_out_lora"}
    tensors = {}
    for key, tensor in state.items():
        layer, side = key.removesuffix(".weight").rsplit(".", 1)
        attention, projection = next(
            (layer.removesuffix(f".{new}"), name) for new, name in old.items() if layer.endswith(f".{new}")
        )
        tensors[f"unet.{attention}.processor.{projection}.{'down' if side == 'lora_A' else 'up'}.weight"] = tensor
    path = tmp_path / "pytorch_lora_weights.safetensors"
    safetensors_torch.save_file(tensors, path)
    loader = Loader(unet, text_encoder)
    loader.load_lora_weights(str(path))
    mine = ours(read(path, networks), networks)
    assert_same(mine["unet"], loader.fused()["unet"], networks["unet"], len(state) // 2)


@pytest.mark.filterwarnings("ignore:Already found a .peft_config. attribute:UserWarning")
def test_two_styles_with_weights_of_their_own_add_up_as_in_diffusers(unet, text_encoder, networks, tmp_path):
    loader = Loader(unet, text_encoder)
    found = []
    for i, layers in enumerate((ATTENTION, ["to_q", "ff.net.2", "fc1"])):
        path = kohya_file(tmp_path / f"{i}.safetensors", networks, flat(networks, layers))
        loader.load_lora_weights(str(path), adapter_name=f"style{i}")
        found.append(read(path, networks))
    loader.set_adapters(["style0", "style1"], [0.7, -0.3])
    theirs = loader.fused()["unet"]
    mine = dict(networks["unet"])
    for name, weight in networks["unet"].items():
        both = [(lora.unet[name], scale) for lora, scale in zip(found, (0.7, -0.3), strict=True) if name in lora.unet]
        if both:
            assert all(isinstance(delta, LowRank) for delta, _ in both)
            A, B = stacked(both)
            mine[name] = weight + (B @ A).reshape(weight.shape)
    assert_same(mine, theirs, networks["unet"], sum(any(name in lora.unet for lora in found) for name in mine))


def test_a_style_in_half_precision_is_read_to_its_last_bit(unet, networks, tmp_path):
    for dtype in (torch.float16, torch.bfloat16):
        model = randomised(peft.get_peft_model(copy.deepcopy(unet), lora())).to(dtype)
        model.save_pretrained(tmp_path / str(dtype))
        state = safetensors_torch.load_file(tmp_path / str(dtype) / "adapter_model.safetensors")
        for name, delta in read(tmp_path / str(dtype), networks).unet.items():
            A, B = delta.factors()
            prefix = f"base_model.model.{name}.lora_"
            assert np.array_equal(A, state[f"{prefix}A.weight"].float().numpy())
            assert np.array_equal(B, 4 * state[f"{prefix}B.weight"].float().numpy())
