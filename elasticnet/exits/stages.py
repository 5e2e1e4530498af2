"""Exits as ONNX files: one for each stage, with a driver that needs no PyTorch.

A stage runs the blocks from one exit to the next, and predicts there. It takes and returns tensors
alone: what a pass rests with between two exits (`elasticnet.wrapper.PassState`), taken apart.
"""

from __future__ import annotations

import io
import math
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from elasticnet._files import write_json
from elasticnet._modules.compare import largest_difference
from elasticnet._modules.copies import detached_copy
from elasticnet._net.in_place_writes import GuardedTensors
from elasticnet._net.nests import mapped
from elasticnet.exits.batch_rows import BatchAxes, rows_of_arguments, tensors_of_state
from elasticnet.exits.policies import POLICIES
from elasticnet.exits.rule import ExitRule
from elasticnet.exits.running import ExitRunner
from elasticnet.export import TOLERANCE, ExportError, plain_copy, require
from elasticnet.export.failures import failure_of_onnx, failure_of_trace
from elasticnet.export.onnx_file import forget_exporter, model_of_program
from elasticnet.export.stand_ins import put_stand_ins
from elasticnet.export.tracing import quiet_exporters
from elasticnet.wrapper import ElasticWrapper, PassState

DRIVER = Path(__file__).with_name("driver.py")
DRIVER_IN_FOLDER = "run_exits.py"
DESCRIPTION = "exits.json"
INPUT = "input"
LOGITS = "logits"


class StagedFile(NamedTuple):
    """One stage that was written.

    Attributes:
        path: The ONNX file.
        depth: How many blocks of the network have run behind it.
        size: The file's length in bytes.
    """

    path: Path
    depth: int
    size: int


class Staged(NamedTuple):
    """A folder that was written.

    Attributes:
        folder: Where it stands.
        stages: Its ONNX files, the shallowest first.
        difference: The largest difference between a prediction of the files and one of the network.
    """

    folder: Path
    stages: tuple[StagedFile, ...]
    difference: float


def write_stages(
    net: ElasticWrapper,
    rule: ExitRule,
    folder: str | os.PathLike[str],
    example: Tensor,
    keywords: Mapping[str, Any] | None = None,
    *,
    fold: bool = True,
    opset: int | None = None,
    tolerance: float = TOLERANCE,
) -> Staged:
    """Write the exits of a network as a folder that runs without PyTorch.

    The folder holds an ONNX file for each stage, `exits.json` (policy, thresholds, temperatures),
    and `run_exits.py`, which needs numpy and onnxruntime alone. A stage runs the blocks from one
    exit to the next. Each has a copy of the head. The files take any number of inputs, and
    otherwise tensors of the example's shape. The folder appears whole or not at all.

    Args:
        net: In eval mode; it stays as it is.
        rule: When an input leaves.
        folder: It must not exist.
        example: At least two different inputs (b, ...), on the net's device.
        keywords: Keyword arguments of the network, as tensors; they are inputs of the first stage.
        fold: As in `elasticnet.export.export`.
        opset: The version of the operators; None means the one that PyTorch's exporter writes.
        tolerance: The largest difference between a prediction of the files and one of the network.

    Returns:
        What was written. Predictions were compared at every exit, for the example, for its first
        input alone, and for three copies of it.

    Raises:
        ExportError: The network cannot be traced, or the files do not compute the same.
        FileExistsError: There is something at `folder`.
        ImportError: A package that ONNX files need is not installed.
        ValueError: The net is in training mode, the example has fewer than two inputs, a keyword
            argument is no tensor or called "input" or "logits", a tensor between two stages cannot
            be parted by input, or something would be left out as in `ElasticWrapper.run_to`.

    Example:
        `write_stages(net, rule, "exits", images[:2])`
    """
    folder = Path(folder)
    if folder.exists():
        raise FileExistsError(f"{folder} exists already: remove it, or choose another folder")
    require("onnx")
    if net.training:
        raise ValueError("the net is in training mode, where dropout acts: call net.eval()")
    if len(example) < 2:
        raise ValueError(
            f"example of shape {tuple(example.shape)}: expected at least two different inputs"
        )
    depths = ExitRunner(net, rule).depths
    # Files take and give floats of 32 bits.
    held = detached_copy(net).cpu().float()
    plain = plain_copy(held, fold)
    put_stand_ins(plain)
    plain.eval().requires_grad_(False)
    sample = _Sample(_as_taken(example), _as_inputs(keywords))

    # Everything is written beside the folder first, which then appears by one rename.
    beside = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        written = _write_all(plain, rule, depths, sample, beside, opset)
        difference = _difference(held, depths, sample, beside)
        if math.isnan(difference) or difference > tolerance:
            raise ExportError(
                f"{folder} differs from the net by up to {difference:.3g}, and {tolerance:g} is "
                "allowed; nothing was written"
            )
        beside.chmod(0o755)  # mkdtemp's are for their owner alone
        beside.rename(folder)
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise
    stages = tuple(each._replace(path=folder / each.path.name) for each in written)
    return Staged(folder=folder, stages=stages, difference=difference)


class _Sample(NamedTuple):
    """What a network is called with: inputs (b, ...), and keyword arguments."""

    x: Tensor
    keywords: dict[str, Tensor]

    def taken(self, rows: Sequence[int]) -> _Sample:
        """Return some of the inputs."""
        x, keywords = rows_of_arguments(self.x, self.keywords, torch.tensor(rows))
        return _Sample(x, keywords)


def _as_inputs(keywords: Mapping[str, Any] | None) -> dict[str, Tensor]:
    """Return keyword arguments as files take them; raise if one cannot be an input of a file."""
    found: dict[str, Tensor] = {}
    for name, value in (keywords or {}).items():
        if not isinstance(value, Tensor):
            raise ValueError(
                f"keyword argument {name} is a {type(value).__name__}: expected a tensor"
            )
        if name in (INPUT, LOGITS):
            raise ValueError(f"keyword argument {name}: the files have this name for another array")
        found[name] = _as_taken(value)
    return found


def _as_taken(tensor: Tensor) -> Tensor:
    """Return a tensor as files take it: on the CPU, with floats of 32 bits."""
    return tensor.cpu().float() if tensor.is_floating_point() else tensor.cpu()


# --- writing


class _Between(NamedTuple):
    """Where a pass rests between two stages.

    Attributes:
        state: That of the example. Stages replace its tensors by their own.
        names: What each of its tensors is called in the files, in the order of `tensors_of_state`.
            A tensor that stands in it twice, or that the stage before was given already, has the
            name that it has there.
    """

    state: PassState
    names: tuple[str, ...]

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The tensors by name, each once."""
        return dict(zip(self.names, tensors_of_state(self.state), strict=True))

    def with_tensors(self, tensors: Mapping[str, Tensor]) -> PassState:
        """Return the same state with other tensors, which are given by name."""
        names = iter(self.names)

        def replaced(_tensor: Tensor) -> Tensor:
            return tensors[next(names)]

        # In the order of `tensors_of_state`.
        features = mapped(self.state.features, replaced)
        context = mapped(self.state.context, replaced)
        skip = mapped(self.state.skip, replaced)
        return PassState(self.state.depth, features, context, skip, GuardedTensors())


class _Stage(nn.Module):
    """The blocks from one exit to the next, as a module that takes and returns tensors alone.

    Args:
        net: The whole network.
        before: Where the pass rests before; None: the stage begins with the network's input.
        depth: Of the exit behind.
        input_names: What `forward` takes, in this order.
        returned: Which tensors of the state `forward` returns behind the logits, as indices.
    """

    def __init__(
        self,
        net: ElasticWrapper,
        before: _Between | None,
        depth: int,
        input_names: Sequence[str],
        returned: Sequence[int] = (),
    ) -> None:
        super().__init__()
        self.net = net
        self.before = before
        self.depth = depth
        self.input_names = list(input_names)
        self.returned = list(returned)

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Return the logits, and tensors of the state at the exit."""
        state = self.run(tensors)
        tensors_there = tensors_of_state(state)
        return self.net.predict(state), *(tensors_there[index] for index in self.returned)

    def run(self, tensors: Sequence[Tensor]) -> PassState:
        """Return the state at the exit."""
        given = dict(zip(self.input_names, tensors, strict=True))
        if self.before is not None:
            return self.net.continue_from(self.before.with_tensors(given), self.depth)
        x = given.pop(INPUT)
        return self.net.run_to(x, self.depth, **given)


def _write_all(
    net: ElasticWrapper,
    rule: ExitRule,
    depths: Sequence[int],
    sample: _Sample,
    folder: Path,
    opset: int | None,
) -> list[StagedFile]:
    """Write the files of all stages, the description and the driver; return the stages."""
    # What the files take and hand on, by name, and the axis of each that counts the inputs.
    tensors = {INPUT: sample.x, **sample.keywords}
    axes = _axes_of_arguments(sample)
    finder = BatchAxes(net)
    before: _Between | None = None
    written: list[StagedFile] = []

    for depth in depths:
        # Run the stage on the example: what of its state is new, and what was there before?
        stage = _Stage(net, before, depth, input_names=list(tensors))
        with torch.no_grad():
            state = stage.run(list(tensors.values()))
        between = _Between(state, _names_of(state, tensors))
        new_names: list[str] = []
        if depth != depths[-1]:  # behind the last stage nothing is read
            axes_there = finder.learn(sample.x, sample.keywords, state)
            axes.update(zip(between.names, axes_there, strict=True))
            new_names = [name for name in between.tensors if name not in tensors]
        stage.returned = [between.names.index(name) for name in new_names]

        # Write it.
        path = folder / f"stage_{depth}.onnx"
        data = _onnx_bytes(stage, tensors, axes, output_names=[LOGITS, *new_names], opset=opset)
        path.write_bytes(data)
        written.append(StagedFile(path, depth, size=len(data)))

        before = between
        tensors = between.tensors

    write_json(folder / DESCRIPTION, _description(rule, written, axes))
    shutil.copyfile(DRIVER, folder / DRIVER_IN_FOLDER)
    return written


def _axes_of_arguments(sample: _Sample) -> dict[str, int | None]:
    """Return the axis of each argument that counts the inputs, as `ExitRunner` takes them."""
    num_inputs = len(sample.x)
    axes: dict[str, int | None] = {INPUT: 0}
    for name, value in sample.keywords.items():
        per_input = value.ndim > 0 and len(value) == num_inputs
        axes[name] = 0 if per_input else None
    return axes


def _names_of(state: PassState, given: Mapping[str, Tensor]) -> tuple[str, ...]:
    """Return a name for each tensor of a state: the one that it was given by, or a new one."""
    known = {id(tensor): name for name, tensor in given.items()}
    names: list[str] = []
    for tensor in tensors_of_state(state):
        new_name = f"state_{state.depth}_{len(known)}"
        names.append(known.setdefault(id(tensor), new_name))
    return tuple(names)


@torch.no_grad()
def _onnx_bytes(
    stage: _Stage,
    tensors: Mapping[str, Tensor],
    axes: Mapping[str, int | None],
    output_names: list[str],
    opset: int | None,
) -> bytes:
    """Return the bytes of a stage's file, whose number of inputs is open."""
    open_axis: Any = torch.export.Dim.AUTO
    shapes: list[dict[int, Any]] = []
    for name in tensors:
        axis = axes[name]
        shapes.append({} if axis is None else {axis: open_axis})
    try:
        with quiet_exporters(), redirect_stderr(io.StringIO()):  # which prints the graph so far
            program = torch.export.export(
                stage, tuple(tensors.values()), dynamic_shapes=(tuple(shapes),), strict=False
            )
    except Exception as error:  # whatever the network's own code raises under tracing
        message = failure_of_trace(stage.net, error, has_open_axes=True)
        raise ExportError(f"stage up to depth {stage.depth}: {message}") from error
    try:
        with quiet_exporters():
            model = model_of_program(
                program, input_names=list(tensors), output_names=output_names, opset=opset
            )
    except Exception as error:  # an operator without a translation, or a fault of the exporter
        message = failure_of_onnx(stage.net, error)
        raise ExportError(f"stage up to depth {stage.depth}: {message}") from error
    forget_exporter(model)
    return model.SerializeToString()


def _description(
    rule: ExitRule, stages: Sequence[StagedFile], axes: Mapping[str, int | None]
) -> dict[str, Any]:
    """Return what exits.json holds; a threshold of infinity, which JSON has not, is null."""
    names = [name for name, policy in POLICIES.items() if policy is rule.policy]
    described: list[dict[str, Any]] = []
    for stage in stages:
        threshold = rule.thresholds.get(stage.depth, math.inf)
        described.append(
            {
                "file": stage.path.name,
                "depth": stage.depth,
                "threshold": None if threshold == math.inf else threshold,
                "temperature": rule.temperatures.get(stage.depth, 1.0),
            }
        )
    return {
        "policy": names[0] if names else None,
        "over_tokens": rule.over_tokens,
        "stages": described,
        "batch_axes": dict(axes),
    }


# --- comparing


@torch.no_grad()
def _difference(net: ElasticWrapper, depths: Sequence[int], sample: _Sample, folder: Path) -> float:
    """Return the largest difference between a prediction of the files and one of the network."""
    from elasticnet.exits import driver  # which needs onnxruntime

    staged = driver.StagedExits(folder, policy=driver.confidence)
    largest = 0.0
    for inputs in (sample, sample.taken([0]), sample.taken([0, 0, 0])):
        expected = net(inputs.x, taps=depths, **inputs.keywords).predictions
        arrays = {INPUT: inputs.x.numpy()}
        arrays |= {name: value.numpy() for name, value in inputs.keywords.items()}
        for stage, prediction in zip(staged.stages, expected, strict=True):
            try:
                arrays.update(stage.run(arrays))
            except Exception as error:  # whatever ONNX Runtime raises
                raise ExportError(
                    f"the stage up to depth {stage.depth} does not take {len(inputs.x)} inputs, "
                    f"which the net does ({error}). Nothing was written"
                ) from error
            logits = torch.from_numpy(arrays.pop(LOGITS))
            # a NaN is larger than nothing, so that `max` would lose it
            difference = largest_difference(logits, prediction)
            if math.isnan(difference):
                return difference
            largest = max(largest, difference)
    return largest
