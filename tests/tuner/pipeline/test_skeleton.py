"""Modules without memory: from the catalog's configs and from a folder's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import WanTransformer3DModel
from torch import nn
from transformers import T5Config, T5EncoderModel

from registry.errors import InvalidInput, UnknownModel
from tests.tuner.pipeline.tiny import FLUX, SDXL, WORKLOAD, saved
from tuner.models import resolve_model
from tuner.pipeline.classes import component_class, pipeline_class
from tuner.pipeline.components import describe_component
from tuner.pipeline.dtypes import cast, keep_float32
from tuner.pipeline.inventory import take_inventory
from tuner.pipeline.skeleton import Skeleton, build_skeleton


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(FLUX, tmp_path_factory.mktemp("flux"))


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    """The folder's small files alone, to be changed."""
    for path in folder.rglob("*.json"):
        target = tmp_path / "copy" / path.relative_to(folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    return tmp_path / "copy"


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def from_folder(path: Path) -> Skeleton:
    return build_skeleton(resolve_model(str(path)), torch.float32)


@pytest.mark.parametrize("spec", [FLUX, SDXL], ids=["flux", "sdxl"])
def test_parameters_take_no_memory_and_buffers_are_real(spec: Any) -> None:
    skeleton = build_skeleton(spec, torch.bfloat16)
    for module in skeleton.modules.values():
        assert {item.device.type for item in module.parameters()} == {"meta"}
        assert {item.dtype for item in module.parameters()} == {torch.bfloat16}
        assert all(item.device.type == "cpu" for item in module.buffers())
        assert not module.training
    position_ids = skeleton.modules["text_encoder"].get_buffer("embeddings.position_ids")
    assert position_ids.tolist() == [list(range(32))]
    assert torch.get_default_dtype() == torch.float32


@pytest.mark.parametrize(
    ("name", "component", "elements"),
    [
        ("flux-dev", "text_encoder_2", 4_762_310_656),
        ("flux-dev", "transformer", 11_901_408_320),
        ("flux-schnell", "transformer", 11_891_178_560),
        ("sdxl", "unet", 2_567_463_684),
    ],
)
def test_full_models_have_their_known_sizes(name: str, component: str, elements: int) -> None:
    skeleton = build_skeleton(resolve_model(name, weights="random"), torch.bfloat16)
    assert describe_component(component, skeleton.modules[component]).elements == elements


def test_tied_weights_are_counted_once() -> None:
    encoder = build_skeleton(FLUX, torch.float32).modules["text_encoder_2"]
    assert isinstance(encoder, T5EncoderModel)
    assert encoder.shared.weight is encoder.encoder.embed_tokens.weight
    counted = describe_component("text_encoder_2", encoder)
    assert counted.elements == sum(item.numel() for item in encoder.parameters())


def test_a_folder_gives_what_its_catalog_model_gives(folder: Path) -> None:
    ours = take_inventory(FLUX, WORKLOAD, lambda *_: None)
    theirs = take_inventory(resolve_model(str(folder)), WORKLOAD, lambda *_: None)
    assert theirs.architecture == ours.architecture
    assert theirs.components == ours.components
    assert theirs.profiles == ours.profiles
    assert theirs.weights != ours.weights


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_dtype_is_the_plans_and_not_the_folders(copy: Path, dtype: torch.dtype) -> None:
    edit(copy / "text_encoder_2" / "config.json", dtype="float64")
    skeleton = build_skeleton(resolve_model(str(copy)), dtype)
    for module in skeleton.modules.values():
        assert {item.dtype for item in module.parameters()} == {dtype}


def test_another_config_or_scheduler_is_another_architecture(folder: Path, copy: Path) -> None:
    before = take_inventory(resolve_model(str(folder)), WORKLOAD, lambda *_: None).architecture
    spec = resolve_model(str(copy), weights="random")
    assert take_inventory(spec, WORKLOAD, lambda *_: None).architecture == before
    edit(copy / "scheduler" / "scheduler_config.json", shift=1.0)
    assert take_inventory(spec, WORKLOAD, lambda *_: None).architecture != before


def test_library_versions_in_configs_change_nothing(folder: Path, copy: Path) -> None:
    before = take_inventory(resolve_model(str(folder)), WORKLOAD, lambda *_: None).architecture
    edit(copy / "transformer" / "config.json", _diffusers_version="0.1.0", _name_or_path="x")
    edit(copy / "text_encoder" / "config.json", transformers_version="4.0.0")
    spec = resolve_model(str(copy), weights="random")
    assert take_inventory(spec, WORKLOAD, lambda *_: None).architecture == before


def test_folder_without_model_index(tmp_path: Path) -> None:
    with pytest.raises(UnknownModel, match=r"no model_index\.json"):
        resolve_model(str(tmp_path))


def test_optional_components_may_be_null(copy: Path) -> None:
    assert from_folder(copy).others["image_encoder"] is None
    edit(copy / "model_index.json", feature_extractor=[None, None])
    assert from_folder(copy).others["feature_extractor"] is None


@pytest.mark.parametrize("value", [[None, None], None], ids=["null", "absent"])
def test_needed_components_may_not(copy: Path, value: Any) -> None:
    index = json.loads((copy / "model_index.json").read_text()) | {"text_encoder_2": value}
    if value is None:
        del index["text_encoder_2"]
    (copy / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(InvalidInput, match=r"FluxPipeline needs text_encoder_2"):
        from_folder(copy)


def test_components_the_pipeline_does_not_know(copy: Path) -> None:
    (copy / "adapter").mkdir()
    (copy / "adapter" / "config.json").write_bytes((copy / "vae" / "config.json").read_bytes())
    edit(copy / "model_index.json", adapter=["diffusers", "AutoencoderKL"])
    with pytest.raises(InvalidInput, match=r"FluxPipeline has no component adapter"):
        from_folder(copy)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (["my_module", "MyModel"], r"a model's own code is not run"),
        (["stable_diffusion", "StableDiffusionSafetyChecker"], r"own code is not run"),
        (["diffusers", "NoSuchModel"], r"has no class 'NoSuchModel'"),
        (["transformers", "pipeline"], r"is not a model, scheduler, tokenizer or processor"),
        (["diffusers", "FluxPipeline"], r"is not a model, scheduler, tokenizer or processor"),
        (["os", "system"], r"own code is not run"),
    ],
)
def test_classes_that_a_folder_may_not_name(copy: Path, value: list[str], message: str) -> None:
    edit(copy / "model_index.json", vae=value)
    with pytest.raises(InvalidInput, match=message):
        from_folder(copy)


def test_pipeline_classes_that_a_folder_may_not_name(copy: Path) -> None:
    edit(copy / "model_index.json", _class_name="AutoencoderKL")
    with pytest.raises(InvalidInput, match=r"no pipeline class 'AutoencoderKL'"):
        from_folder(copy)


def test_a_component_cannot_lie_outside_the_folder(copy: Path) -> None:
    edit(copy / "model_index.json", **{"../vae": ["diffusers", "AutoencoderKL"]})
    with pytest.raises(InvalidInput, match=r"'\.\./vae' is not a component's name"):
        from_folder(copy)


@pytest.mark.parametrize("component", ["transformer", "text_encoder_2", "scheduler", "tokenizer_2"])
def test_missing_component_folders_are_named(copy: Path, component: str) -> None:
    for path in (copy / component).iterdir():
        path.unlink()
    with pytest.raises(InvalidInput, match=rf"copy/{component}: no \w+ can be made of it"):
        from_folder(copy)


def test_configs_that_make_no_module_are_named(copy: Path) -> None:
    edit(copy / "transformer" / "config.json", num_attention_heads="four")
    with pytest.raises(InvalidInput, match=r"copy/transformer: no FluxTransformer2DModel"):
        from_folder(copy)


def test_classes_by_name() -> None:
    assert component_class("transformers.T5EncoderModel") is T5EncoderModel
    assert pipeline_class("FluxPipeline").__name__ == "FluxPipeline"


def wan() -> Any:
    with torch.device("meta"):
        model: Any = WanTransformer3DModel(
            num_attention_heads=2,
            attention_head_dim=12,
            in_channels=4,
            out_channels=4,
            text_dim=16,
            freq_dim=16,
            ffn_dim=32,
            num_layers=1,
        )
    return model


def float32_names(module: nn.Module) -> set[str]:
    return {name for name, item in module.named_parameters() if item.dtype == torch.float32}


def test_diffusers_classes_keep_what_they_want_in_float32() -> None:
    model = wan().to(torch.bfloat16)
    keep_float32(model, torch.bfloat16)
    kept = float32_names(model)
    assert "scale_shift_table" in kept
    assert "condition_embedder.time_embedder.linear_1.weight" in kept
    assert "blocks.0.ffn.net.2.weight" not in kept


@pytest.mark.parametrize(("dtype", "keeps"), [(torch.float16, True), (torch.bfloat16, False)])
def test_t5_keeps_its_output_layer_in_float32_under_float16_alone(
    dtype: torch.dtype, keeps: bool
) -> None:
    with torch.device("meta"):
        model: nn.Module = T5EncoderModel(
            T5Config(vocab_size=8, d_model=8, d_ff=8, num_layers=1, feed_forward_proj="gated-gelu")
        )
    model.to(dtype)
    keep_float32(model, dtype)
    wanted = {"encoder.block.0.layer.1.DenseReluDense.wo.weight"} if keeps else set()
    assert float32_names(model) == wanted


class WithBuffers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 2)
        self.register_buffer("table", torch.ones(2), persistent=False)
        self.register_buffer("mean", torch.ones(2))
        self.register_buffer("count", torch.ones(2, dtype=torch.int64))


def test_cast_leaves_tables_and_counts_as_they_are() -> None:
    module = WithBuffers()
    cast(module, torch.bfloat16)
    assert module.linear.weight.dtype == torch.bfloat16
    assert module.get_buffer("mean").dtype == torch.bfloat16
    assert module.get_buffer("table").dtype == torch.float32
    assert module.get_buffer("count").dtype == torch.int64
