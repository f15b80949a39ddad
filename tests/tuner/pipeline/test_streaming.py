"""Streamed blocks with the CPU as the device: equal pictures, whatever the order or the scheme; no
recompilation; and the right weights again after a call that failed."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from itertools import compress
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from registry.errors import DeviceError, InvalidPlan
from registry.plan import (
    Compilation,
    ComponentPlan,
    Plan,
    Quantization,
    Scheme,
    StreamedBlocks,
)
from tests.tuner.pipeline.tiny import CPU, FLUX, SDXL, load, picture, plan
from tuner.blocks import block_kinds, blocks_of
from tuner.layers import quantized_layers
from tuner.model_spec import ModelSpec
from tuner.models import resolve_model
from tuner.pipeline.artifacts import compile_counters
from tuner.pipeline.components import describe_component
from tuner.pipeline.quantize import layer_types, quantize_layer
from tuner.pipeline.skeleton import build_skeleton
from tuner.pipeline.streaming import NothingToStream, host, stream_blocks, streamed_names
from tuner.pipeline.streaming.layout import BlockTensors, plain
from tuner.pipeline.streaming.packing import HOST_RUN

SCHEMES: tuple[Scheme, ...] = ("none", "int8_weight_only", "int8_dynamic", "float8_weight_only")
MIXED = Quantization(
    scheme="mixed",
    layers={"*": "int8_weight_only", "*.to_*": "float8_weight_only", "*blocks.1.*": "int8_dynamic"},
)
"""Layers of one block differ, and so do blocks of one class: their runs of bytes have other layouts
in the same slots."""
QUANTIZATIONS = (*(Quantization(scheme=scheme) for scheme in SCHEMES), MIXED)
REGIONAL = Compilation(scope="regional", fullgraph=True)
FEATURES = 8


class Block(nn.Module):
    """A block whose result tells its weights apart; fails on demand."""

    def __init__(self, features: int = FEATURES) -> None:
        super().__init__()
        self.linear = nn.Linear(features, features)
        self.register_buffer("shift", torch.randn(features))
        self.fails = False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.fails:
            raise ValueError("as asked")
        return torch.tanh(self.linear(x) + self.shift)


class Other(Block):
    pass


class Model(nn.Module):
    """Blocks in a list, called in any order."""

    _repeated_blocks = ("Block", "Other")

    def __init__(self, count: int, others: int = 0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(FEATURES, FEATURES)
        self.blocks: Any = nn.ModuleList([Block() for _ in range(count)])
        self.others: Any = nn.ModuleList([Other() for _ in range(others)])
        self.order = list(range(count + others))
        self.requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        blocks = [*self.blocks, *self.others]
        x = self.first(x)
        for number in self.order:
            x = blocks[number](x)
        return x


class Copies:
    """What was copied to the device, block by block, and whether a block had to wait for it."""

    def __init__(self) -> None:
        self.all: list[int] = []

    def since(self, number: int) -> int:
        return len(self.all) - number


@pytest.fixture
def copies(monkeypatch: pytest.MonkeyPatch) -> Copies:
    from tuner.pipeline.streaming.link import PlainLink

    seen, copy = Copies(), PlainLink.copy

    def counted(self: Any, source: torch.Tensor, target: Any) -> None:
        seen.all.append(source.data_ptr())
        copy(self, source, target)

    monkeypatch.setattr(PlainLink, "copy", counted)
    return seen


@pytest.fixture
def on_demand(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """For each block called, whether its weights were not yet on their way."""
    from tuner.pipeline.streaming.lane import Lane

    seen: list[bool] = []
    enter = Lane.enter

    def watched(self: Any, block: Any) -> Any:
        seen.append(block.slot is None)
        return enter(self, block)

    monkeypatch.setattr(Lane, "enter", watched)
    return seen


def x(batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, FEATURES, generator=torch.Generator().manual_seed(1))


def streamed(**options: Any) -> ComponentPlan:
    placement = StreamedBlocks(**options.pop("placement", {}))
    return ComponentPlan(placement=placement, **options)


STEPS = [
    (count, slots, resident)
    for count in (3, 4, 5, 8)
    for slots in (2, 3)
    for resident in (0, 1, 2)
    if count - resident > slots
]


@pytest.mark.parametrize(("count", "slots", "resident"), STEPS)
def test_every_step_is_the_residents_to_the_bit(count: int, slots: int, resident: int) -> None:
    wanted = Model(count)(x())
    model = Model(count)
    report = stream_blocks(model, CPU, resident_blocks=resident, slots=slots)
    assert len(report.streamed) == count - resident
    assert {*report.streamed, *report.resident} == {f"blocks.{n}" for n in range(count)}
    for _ in range(4):
        assert torch.equal(model(x()), wanted)


def test_each_block_is_copied_once_a_step_and_always_ahead(
    copies: Copies, on_demand: list[bool]
) -> None:
    """The first blocks of the next step come while the last ones of this one run."""
    model = Model(5, others=4)
    stream_blocks(model, CPU)
    assert copies.since(0) == 4
    for _ in range(3):
        before = len(copies.all)
        model(x())
        assert copies.since(before) == 9
        assert len(set(copies.all[before:])) == 9
    assert not any(on_demand)


def test_the_order_is_learnt_from_the_first_call(on_demand: list[bool]) -> None:
    wanted, model = Model(7), Model(7)
    wanted.order = model.order = [0, 1, 5, 6, 2, 3, 4]
    stream_blocks(model, CPU)
    assert torch.equal(model(x()), wanted(x()))
    assert any(on_demand)
    on_demand.clear()
    for _ in range(3):
        assert torch.equal(model(x()), wanted(x()))
    assert not any(on_demand[7:])


def test_an_order_that_changes_costs_time_and_no_result(on_demand: list[bool]) -> None:
    """Backwards, with blocks left out, with one called twice in a row, and in order again."""
    wanted, model = Model(6), Model(6)
    stream_blocks(model, CPU)
    for order in ([5, 4, 3, 2, 1, 0], [0, 2, 4], [1, 1, 3, 3, 1], [0], [], list(range(6))):
        wanted.order = model.order = order
        for _ in range(3):
            assert torch.equal(model(x()), wanted(x())), order
    on_demand.clear()
    model(x())
    assert not any(on_demand)


@pytest.mark.parametrize("failing", range(6))
def test_after_a_call_that_failed_the_next_one_is_right(failing: int) -> None:
    wanted = Model(6)(x())
    model = Model(6)
    stream_blocks(model, CPU, resident_blocks=1)
    for _ in range(2):
        block = model.blocks[failing]
        block.fails = True
        with pytest.raises(ValueError, match="as asked"):
            model(x())
        block.fails = False
        for _ in range(2):
            assert torch.equal(model(x()), wanted)


def test_a_failed_call_teaches_no_order(on_demand: list[bool]) -> None:
    model = Model(6)
    stream_blocks(model, CPU)
    model(x())
    model.blocks[2].fails = True
    with contextlib.suppress(ValueError):
        model(x())
    model.blocks[2].fails = False
    model(x())
    on_demand.clear()
    model(x())
    assert not any(on_demand)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, contextlib.nullcontext])
def test_under_any_gradient_mode_and_batch(mode: Any) -> None:
    model, resident = Model(5), Model(5)
    with torch.inference_mode():
        stream_blocks(model, CPU)
    for chosen in (torch.inference_mode, mode, torch.no_grad):
        for batch in (1, 4):
            with chosen():
                assert torch.equal(model(x(batch)), resident(x(batch)))


def test_weights_leave_the_module_and_slots_stay_few() -> None:
    model = Model(9)
    report = stream_blocks(model, CPU, slots=3)
    one = sum(item.nbytes for item in model.blocks[0].state_dict().values())
    addresses = {block.linear.weight.data_ptr() for block in model.blocks}
    assert len(addresses) == 3
    assert report.host_bytes * 3 == report.slot_bytes * 9
    assert one <= report.slot_bytes / 3 < one + 3 * 256


def test_blocks_of_one_class_may_differ_in_layout() -> None:
    """As SDXL's blocks of two widths, and T5's first block, which has one tensor more."""
    model, wanted = Model(6), Model(6)
    for item in (model, wanted):
        torch.manual_seed(3)
        for number in (0, 4):
            item.blocks[number].linear = nn.Sequential(
                nn.Linear(FEATURES, 24), nn.Linear(24, FEATURES)
            )
    stream_blocks(model, CPU)
    for _ in range(3):
        assert torch.equal(model(x()), wanted(x()))


def test_a_tensor_in_two_places_of_a_block_stays_one() -> None:
    model = Model(4)
    for block in model.blocks:
        block.twin = nn.Linear(FEATURES, FEATURES, bias=False)
        block.twin.weight = block.linear.weight
    stream_blocks(model, CPU)
    for _ in range(2):
        model(x())
        assert all(block.twin.weight is block.linear.weight for block in model.blocks)


def test_a_block_that_shares_weights_with_another_stays() -> None:
    model, wanted = Model(5), Model(5)
    for item in (model, wanted):
        item.blocks[1].linear.weight = item.first.weight
    report = stream_blocks(model, CPU)
    assert "blocks.1" not in (*report.streamed, *report.resident)
    assert model.blocks[1].linear.weight is model.first.weight
    assert torch.equal(model(x()), wanted(x()))


@pytest.mark.parametrize(
    "tensor",
    [
        torch.randn(6, 4).t(),
        torch.randn(8, 8)[::2, 1:5],
        torch.randn(4, 1).expand(4, 4),
        torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        torch.tensor(3.0),
        torch.empty(0, 4),
        torch.arange(5, dtype=torch.int8),
        torch.randn(4, 4).to(torch.float8_e4m3fn).t(),
    ],
    ids=["transposed", "cut", "expanded", "channels last", "scalar", "empty", "int8", "float8"],
)
def test_a_tensor_keeps_its_numbers_and_strides(tensor: torch.Tensor) -> None:
    block = nn.Module()
    block.register_buffer("before", torch.ones(3))
    block.register_buffer("item", tensor)
    tensors = BlockTensors(block)
    run = torch.zeros(tensors.size, dtype=torch.uint8)
    tensors.pack(run)
    (_, (table, name, found)) = tensors.over(run)
    assert (table is block._buffers, name) == (True, "item")
    assert found.stride() == tensor.stride()
    assert found.dtype == tensor.dtype
    assert torch.equal(found.to(torch.float32), tensor.to(torch.float32))
    assert not found._is_view()
    assert found.data_ptr() % 256 == run.data_ptr() % 256 or found.numel() == 0


@pytest.mark.parametrize("scheme", SCHEMES[1:])
def test_quantized_weights_are_taken_apart_and_put_together(scheme: Any) -> None:
    block: Any = nn.Module()
    block.linear = nn.Linear(64, 32)
    quantize_layer("linear", block.linear, scheme)
    wanted: Any = block.linear.weight
    tensors = BlockTensors(block)
    run = torch.zeros(tensors.size, dtype=torch.uint8)
    tensors.pack(run)
    found: Any = {name: tensor for _, name, tensor in tensors.over(run)}["weight"]
    assert type(found) is type(wanted)
    names, context = wanted.__tensor_flatten__()
    assert found.__tensor_flatten__() == (names, context)
    for name in names:
        assert torch.equal(getattr(found, name).float(), getattr(wanted, name).float())
    assert isinstance(found, nn.Parameter)
    assert tensors.size < 64 * 32 * 2


def test_a_model_without_lists_of_blocks() -> None:
    with pytest.raises(NothingToStream, match="nothing of Linear would stream"):
        stream_blocks(nn.Linear(2, 2), CPU)


def test_nothing_streams_where_all_fit() -> None:
    model = Model(4)
    with pytest.raises(NothingToStream, match="of its 4 repeated blocks 2 or more stay"):
        stream_blocks(model, CPU, resident_blocks=2)


def test_classes_may_be_named() -> None:
    model = Model(4, others=4)
    report = stream_blocks(model, CPU, block_classes=("Other",))
    assert report.streamed == tuple(f"others.{number}" for number in range(4))


def test_a_host_without_memory_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    info = tmp_path / "meminfo"
    info.write_text("MemTotal: 8 kB\nMemAvailable: 0 kB\n")
    monkeypatch.setattr(host, "MEMORY_INFO", info)
    placed = plan({"transformer": streamed()})
    with pytest.raises(DeviceError, match=r"FluxTransformer2DModel: .*more bytes of host memory"):
        load(FLUX, placed)


class Driver:
    """CUDA's runtime, as far as page-locking asks it."""

    def __init__(self, code: int) -> None:
        self.code = code
        self.locked: dict[int, int] = {}

    def cudaHostRegister(self, address: int, size: int, flags: int) -> int:  # noqa: N802
        if self.code == 0:
            assert flags == host.PORTABLE
            self.locked[address] = size
        return self.code

    def cudaHostUnregister(self, address: int) -> int:  # noqa: N802
        del self.locked[address]
        return 0


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Driver:
    made = Driver(request.param)
    monkeypatch.setattr(torch.cuda, "cudart", lambda: made)
    monkeypatch.setattr(torch.cuda, "device", lambda _: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "synchronize", lambda _: None)
    return made


@pytest.mark.parametrize("driver", [0], indirect=True)
def test_exactly_the_bytes_asked_for_are_locked_and_given_back(driver: Driver) -> None:
    size = 3 * 4096 + 17
    run = host.locked_bytes(size, CPU)
    assert driver.locked == {run.data_ptr(): size}
    assert run.shape == (size,)
    assert run.data_ptr() % 4096 == 0
    part = run[10:20]
    del run
    assert driver.locked
    assert part.fill_(7).sum() == 70
    del part
    assert driver.locked == {}


@pytest.mark.parametrize("driver", [2], indirect=True)
def test_memory_that_cannot_be_locked_at_all_says_what_to_do(
    driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = torch.empty

    def without_pinning(*args: Any, **options: Any) -> torch.Tensor:
        if options.get("pin_memory"):
            raise RuntimeError("CUDA error: out of memory")
        return made(*args, **options)

    monkeypatch.setattr(torch, "empty", without_pinning)
    with pytest.raises(host.HostMemoryError, match=r"page-locks no 64 bytes.*CUDA error 2.*ulimit"):
        host.locked_bytes(64, CPU)


@pytest.mark.parametrize("driver", [2], indirect=True)
def test_where_pages_cannot_be_registered_torch_pins_them(
    driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, asked = torch.empty, list[dict[str, Any]]()

    def pinning(*args: Any, **options: Any) -> torch.Tensor:
        if options.pop("pin_memory", False):
            asked.append(options)
        return made(*args, **options)

    monkeypatch.setattr(torch, "empty", pinning)
    assert host.locked_bytes(64, CPU).shape == (64,)
    assert len(asked) == 1


def text_encoder(name: str) -> Any:
    import transformers

    sizes: dict[str, dict[str, int]] = {
        "T5EncoderModel": {"d_model": 32, "d_ff": 64, "d_kv": 8, "num_heads": 4, "num_layers": 6},
        "CLIPTextModel": {
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_attention_heads": 4,
            "num_hidden_layers": 6,
        },
    }
    kind: Any = getattr(transformers, name)
    torch.manual_seed(0)
    return kind(kind.config_class(vocab_size=100, **sizes[name])).eval()


@pytest.mark.parametrize("name", ["T5EncoderModel", "CLIPTextModel"])
def test_text_encoders_stream(name: str) -> None:
    """T5's first block has one tensor more than the others, and its embedding hangs twice."""
    tokens = torch.arange(1, 13).reshape(1, 12)
    model = text_encoder(name)
    with torch.no_grad():
        wanted = model(tokens)[0].clone()
        report = stream_blocks(model, CPU, resident_blocks=1)
        assert len(report.streamed) == 5
        for _ in range(3):
            assert torch.equal(model(tokens)[0], wanted)


CASES = {"flux": (FLUX, "transformer"), "sdxl": (SDXL, "unet")}


def placed(component: str, **choices: Any) -> Plan:
    return plan({component: ComponentPlan(**choices)})


@pytest.mark.parametrize(("spec", "component"), CASES.values(), ids=CASES)
@pytest.mark.parametrize("quantization", QUANTIZATIONS, ids=lambda item: item.scheme)
def test_pictures_are_the_residents_to_the_bit(
    spec: ModelSpec, component: str, quantization: Quantization
) -> None:
    wanted = load(spec, placed(component, quantization=quantization))
    pipe = load(spec, placed(component, quantization=quantization, placement=StreamedBlocks()))
    assert torch.equal(picture(pipe), picture(wanted))
    assert torch.equal(
        picture(pipe, prompt="a blue square"), picture(wanted, prompt="a blue square")
    )
    assert torch.equal(picture(pipe), picture(wanted))
    module = getattr(pipe, component)
    assert layer_types(module) == layer_types(getattr(wanted, component))


def test_an_apps_own_pipeline_streams() -> None:
    from tuner.pipeline import apply as engine

    wanted = picture(load(SDXL))
    pipe = load(SDXL)
    report = engine.apply(pipe, placed("unet", placement=StreamedBlocks(resident_blocks=3)), CPU)
    assert "unet" in report.applied
    assert torch.equal(picture(pipe), wanted)


@pytest.fixture
def fresh() -> Iterator[None]:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize(
    ("spec", "component", "scheme"),
    [(FLUX, "transformer", "float8_weight_only"), (SDXL, "unet", "none")],
    ids=["flux", "sdxl"],
)
def test_compiled_blocks_take_swapped_weights_without_a_new_graph(
    spec: ModelSpec, component: str, scheme: Any, fresh: None
) -> None:
    choices = {"quantization": Quantization(scheme=scheme), "compilation": REGIONAL}
    wanted = picture(load(spec, placed(component, **choices)))
    resident_graphs = compile_counters()["graphs"]
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    placement = StreamedBlocks(resident_blocks=1)
    pipe = load(spec, placed(component, placement=placement, **choices))
    assert torch.equal(picture(pipe), wanted)
    assert compile_counters()["graphs"] == resident_graphs > 0
    for _ in range(2):
        assert torch.equal(picture(pipe), wanted)
    found = compile_counters()
    assert found["graphs"] == resident_graphs
    assert found["graph_breaks"] == 0


@pytest.mark.parametrize(
    ("component", "choice", "reason"),
    [
        ("vae", streamed(), r"vae \(AutoencoderKL\) has no repeated blocks that would stream"),
        ("text_encoder", streamed(), r"text_encoder \(CLIPTextModel\) has no repeated blocks"),
        (
            "transformer",
            streamed(placement={"resident_blocks": 5}),
            r"would stream with resident_blocks 5 and 2 slots",
        ),
        (
            "transformer",
            streamed(compilation=Compilation(scope="whole")),
            r"compile it with scope regional or none",
        ),
    ],
)
def test_what_cannot_stream_is_refused_before_weights_are_read(
    component: str, choice: ComponentPlan, reason: str
) -> None:
    with pytest.raises(InvalidPlan, match=reason):
        load(FLUX, plan({component: choice}))


@pytest.mark.parametrize("name", ["flux-dev", "sdxl"])
def test_predictions_name_the_same_blocks(name: str) -> None:
    """What streams is chosen twice, from modules and from the inventory alone."""
    skeleton = build_skeleton(resolve_model(name, weights="random"), torch.bfloat16)
    for component, module in skeleton.modules.items():
        known = describe_component(component, module)
        blocks = blocks_of(known, (), Quantization(), "bfloat16")
        for resident, slots in ((0, 2), (5, 2), (14, 3), (40, 2)):
            placement = StreamedBlocks(resident_blocks=resident, slots=slots)
            predicted = compress(block_kinds(known), blocks.streamed(placement))
            wanted = () if hasattr(module, "decode") else streamed_names(module, resident, slots)
            assert tuple(predicted) == tuple(wanted), (component, resident, slots)


@pytest.mark.parametrize("quantization", QUANTIZATIONS, ids=lambda item: item.scheme)
def test_predictions_weigh_the_same_bytes(quantization: Quantization) -> None:
    """But for what aligning each tensor of a tiny model adds."""
    chosen = placed("unet", quantization=quantization, placement=StreamedBlocks())
    unet = load(SDXL, chosen).unet
    known = describe_component("unet", unet)
    touched = quantized_layers(known, chosen.pipeline.component("unet").quantization)
    predicted = blocks_of(known, touched, quantization, "float32").link_bytes(StreamedBlocks())
    runs = [block.__dict__[HOST_RUN] for block in unet.modules() if HOST_RUN in block.__dict__]
    tensors = sum(len(block_tensors) for block_tensors in map(_leaves, unet_blocks(unet)))
    assert predicted <= sum(run.numel() for run in runs) <= predicted * 1.02 + 256 * tensors


def unet_blocks(unet: Any) -> list[nn.Module]:
    return [item for item in unet.modules() if type(item).__name__ == "BasicTransformerBlock"]


def _leaves(block: nn.Module) -> list[torch.Tensor]:
    return [leaf for item in block.parameters() for leaf in plain(item)]
