"""The only door to OpenVINO: an exported ONNX file as an engine that scores slices on the CPU.

It is optional (extra ``openvino``): the server works without it.
The graph is cut at ``image``. Preprocessing runs in float32 whatever the network computes in, because bfloat16 holds HU
near 1000 in steps of 8 (uncut, AUC fell by up to 0.4). The network is compiled for fixed batches, which OpenVINO runs
15 % faster than a free one: two slices a request and requests side by side, and one slice by all threads for the rest.
Opening costs 1 to 6 s of two cores (int8 the most), half of it for each batch size; bench/LOG.md has the measurements.
"""

import itertools
import queue
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastich.artifact import IMAGE, INPUT, OUTPUTS
from fastich.errors import ArtifactError
from fastich.types import HuArray

try:
    import openvino
    from openvino import opset13
except ImportError as error:
    openvino = opset13 = None
    WHY_NO_OPENVINO = str(error)
else:
    WHY_NO_OPENVINO = ""

CHUNK = 2
"""Slices a request. One is 5 % slower, four are as fast; two fill two cores from a batch of four on."""
MAX_STREAMS = 8
"""Requests side by side: a batch of 16 (the default of fastich.score) in chunks of two. More cores serve each."""
HINTS = {"float32": "f32", "int8": "f32", "bfloat16": "bf16"}
"""OpenVINO's inference precision. The rest of an int8 network stays float32: bfloat16 gains 9 %, but changes an AUC
by 0.003 where int8 alone stays under 0.002."""
ONNX_TYPES = {"i16": "tensor(int16)", "f32": "tensor(float)"}


class Engine:
    """One compiled model; ``run`` may be called from several threads.

    Attributes:
        provider: what runs, with its version.
        inputs: signatures of the inputs, as ONNX Runtime would tell them; ``outputs`` likewise.
    """

    def __init__(self, content: bytes, precision: str, threads: int, where: Path) -> None:
        _require(precision)
        try:
            core = openvino.Core()
            model = core.read_model(content)
            self.inputs = [_signature(port) for port in model.inputs]
            self.outputs = [_signature(port) for port in model.outputs]
            front, network = _cut(model, where)
            streams = min(threads, MAX_STREAMS)
            compiled = _compiler(core, threads)
            self._front = _Requests(compiled(front, None, 1, "f32"), streams, (IMAGE,))
            names = tuple(spec.name for spec in OUTPUTS if spec.name in _names(model.outputs))
            self._single = _Requests(compiled(network, 1, 1, HINTS[precision]), 1, names)
            self._chunks = _Requests(compiled(network, CHUNK, streams, HINTS[precision]), streams, names)
        except RuntimeError as error:
            raise ArtifactError(f"{where}: OpenVINO {openvino.__version__} cannot load it: {error}") from error
        self._threads = ThreadPoolExecutor(streams, thread_name_prefix="openvino")
        self.provider = f"OpenVINO {openvino.__version__.split('-')[0]} CPU"

    def run(self, hu: HuArray) -> list[NDArray[np.float32]]:
        """The outputs of ``hu`` int16 [N, H, W], in the order of ``artifact.OUTPUTS``."""
        (image,) = self._front.infer(hu)
        whole = len(image) - len(image) % CHUNK
        chunks = [image[start : start + CHUNK] for start in range(0, whole, CHUNK)]
        answers = list(self._threads.map(self._chunks.infer, chunks))
        answers += [self._single.infer(image[i : i + 1]) for i in range(whole, len(image))]
        return [np.concatenate(parts) for parts in zip(*answers, strict=True)]


class _Requests:
    """Inference requests of one compiled model: a thread takes one, or waits for one, and puts it back."""

    def __init__(self, compiled: Any, count: int, names: tuple[str, ...]) -> None:
        self._idle: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._names = names
        for _ in range(count):
            self._idle.put(compiled.create_infer_request())

    def infer(self, values: NDArray[Any]) -> list[NDArray[np.float32]]:
        request = self._idle.get()
        try:
            request.infer({0: np.ascontiguousarray(values)}, share_inputs=True)
            return [request.get_tensor(name).data.copy() for name in self._names]
        finally:
            self._idle.put(request)


def _require(precision: str) -> None:
    if openvino is None:
        raise ArtifactError(
            f"backend openvino: demanded, but it cannot be imported ({WHY_NO_OPENVINO}); "
            "pip install 'fastich[openvino]', or use --backend onnxruntime"
        )
    if precision not in HINTS:
        raise ArtifactError(f"backend openvino: expected precision {', '.join(HINTS)}, found {precision!r}")
    if precision == "bfloat16" and "BF16" not in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        raise ArtifactError("precision bfloat16: this CPU has no bfloat16 instructions; use float32 or int8")


def _compiler(core: Any, threads: int) -> Callable[[Any, int | None, int, str], Any]:
    def compiled(model: Any, batch: int | None, streams: int, hint: str) -> Any:
        if batch is not None:
            shape = model.inputs[0].get_partial_shape()
            shape[0] = batch
            model.reshape(shape)
        settings = {
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": str(streams),
            "INFERENCE_PRECISION_HINT": hint,  # left to itself, OpenVINO takes bfloat16 where the CPU has it
        }
        return core.compile_model(model, "CPU", settings)

    return compiled


def _cut(model: Any, where: Path) -> tuple[Any, Any]:
    """``model`` as two: ``hu`` to ``image``, and ``image`` to the outputs."""
    ports = [port for node in model.get_ordered_ops() for port in node.outputs() if IMAGE in port.get_names()]
    if len(ports) != 1:
        raise ArtifactError(f"{where}: expected one tensor {IMAGE}, found {len(ports)}; export again")
    (image,) = ports
    readers = list(image.get_target_inputs())
    entry = opset13.parameter(image.get_partial_shape(), image.get_element_type(), name=IMAGE)
    for reader in readers:
        reader.replace_source_output(entry.output(0))
    return openvino.Model([image], model.get_parameters(), "front"), openvino.Model(model.get_results(), [entry], "net")


def _signature(port: Any) -> str:
    kind = port.get_element_type().get_type_name()
    rank = port.get_partial_shape().rank.get_length()
    return f"{_name(port)} {ONNX_TYPES.get(kind, kind)} rank {rank}"


def _name(port: Any) -> str:
    known = [spec.name for spec in (INPUT, *OUTPUTS) if spec.name in port.get_names()]
    return known[0] if known else str(port.get_any_name())


def _names(ports: Any) -> Iterator[str]:
    return itertools.chain.from_iterable(port.get_names() for port in ports)
