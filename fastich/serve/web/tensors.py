"""Tensors of the Open Inference Protocol: JSON, and the binary extension that tritonclient uses without being asked.

A request is a JSON object; with the header ``Inference-Header-Content-Length`` its first so many bytes are the object
and the raw little-endian tensors follow in the order of ``inputs``. Every length is compared before memory is taken.
Source: https://github.com/kserve/open-inference-protocol (inference_rest.md), Triton's extension_binary_data.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastich.artifact import INPUT, OUTPUTS
from fastich.types import HuArray

MAX_PIXELS = 2**25
"""Of one request: 128 slices of 512 x 512, 64 MiB as int16."""
MAX_SIDE = 4096
HEADER_LENGTH = "Inference-Header-Content-Length"
OUTPUT_NAMES = tuple(spec.name for spec in OUTPUTS)


class BadRequest(Exception):
    """A request that breaks the protocol, in one line."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Ask:
    """A request: its id, the slices int16 [N, H, W], and the outputs that are wanted, with whether in binary."""

    id: str
    hu: HuArray
    outputs: tuple[tuple[str, bool], ...]


def read_request(body: bytes, header_length: str | None) -> Ask:
    """Parse a request.

    Raises:
        BadRequest: it is malformed, or asks for what there is not.
    """
    head, binary = _split(body, header_length)
    try:
        document = json.loads(head)
    except (ValueError, RecursionError) as error:
        raise BadRequest(f"body: expected a JSON object ({type(error).__name__})") from error
    if not isinstance(document, dict) or not isinstance(document.get("inputs"), list):
        raise BadRequest("body: expected a JSON object with a list of inputs")
    if len(document["inputs"]) != 1 or _field(document["inputs"][0], "name") != INPUT.name:
        raise BadRequest(f"inputs: expected one, named {INPUT.name}")
    outputs = _outputs(document.get("outputs"), _parameters(document))
    hu = _tensor(document["inputs"][0], binary)
    return Ask(id=str(document.get("id", ""))[:128], hu=hu, outputs=outputs)


def _split(body: bytes, header_length: str | None) -> tuple[bytes, bytes]:
    if header_length is None:
        return body, b""
    if not (header_length.isascii() and header_length.isdecimal()) or int(header_length) > len(body):
        raise BadRequest(f"{HEADER_LENGTH}: expected a length within the body of {len(body)} bytes")
    return body[: int(header_length)], body[int(header_length) :]


def _field(entry: Any, name: str) -> Any:
    if not isinstance(entry, dict):
        raise BadRequest("inputs, outputs: expected JSON objects")
    return entry.get(name)


def _parameters(entry: Mapping[str, Any]) -> Mapping[str, Any]:
    found = entry.get("parameters", {})
    if not isinstance(found, dict):
        raise BadRequest("parameters: expected a JSON object")
    return found


def _tensor(entry: dict[str, Any], binary: bytes) -> HuArray:
    shape = _shape(entry.get("shape"))
    if entry.get("datatype") != "INT16":
        raise BadRequest("datatype: expected INT16")
    count = math.prod(shape)
    size = _parameters(entry).get("binary_data_size")
    if size is None:
        if binary:
            raise BadRequest("binary_data_size: missing although bytes follow the header")
        return _from_json(entry.get("data"), count).reshape(shape)
    if size != 2 * count or len(binary) != size:
        raise BadRequest(f"binary_data_size: expected {2 * count} bytes for this shape, found {len(binary)}")
    return np.frombuffer(binary, dtype="<i2").astype(np.int16, copy=False).reshape(shape)


def _shape(found: Any) -> tuple[int, int, int]:
    if not isinstance(found, list) or len(found) != 3 or not all(type(n) is int and n > 0 for n in found):
        raise BadRequest("shape: expected [N, H, W], each at least 1")
    if max(found[1:]) > MAX_SIDE or math.prod(found) > MAX_PIXELS:
        raise BadRequest(f"shape: expected sides up to {MAX_SIDE} and {MAX_PIXELS} pixels in all")
    return found[0], found[1], found[2]


def _from_json(data: Any, count: int) -> HuArray:
    """Numbers, flat or nested, as int16 [count]."""
    try:
        values = np.asarray(data)
    except (ValueError, TypeError) as error:
        raise BadRequest("data: expected numbers, all rows of one length") from error
    if values.dtype.kind != "i" or values.size != count:
        raise BadRequest(f"data: expected {count} whole numbers for this shape, found {values.size} of another kind")
    limits = np.iinfo(np.int16)
    if values.min() < limits.min or values.max() > limits.max:
        raise BadRequest(f"data: expected values from {limits.min} to {limits.max}")
    return values.astype(np.int16).ravel()


def _outputs(wanted: Any, parameters: Mapping[str, Any]) -> tuple[tuple[str, bool], ...]:
    default = parameters.get("binary_data_output") is True
    if wanted is None or wanted == []:
        return tuple((name, default) for name in OUTPUT_NAMES)
    if not isinstance(wanted, list):
        raise BadRequest("outputs: expected a list")
    found = []
    for entry in wanted:
        name = _field(entry, "name")
        if name not in OUTPUT_NAMES:
            raise BadRequest(f"outputs: expected some of {', '.join(OUTPUT_NAMES)}")
        said = _parameters(entry)
        if "classification" in said:
            raise BadRequest("outputs: the classification extension is not offered")
        found.append((name, bool(said.get("binary_data", default))))
    return tuple(found)


def write_response(
    head: dict[str, Any], values: Sequence[tuple[str, bool, NDArray[np.float32]]]
) -> tuple[bytes, int | None]:
    """The body of an answer, and the length of its JSON part where raw tensors follow."""
    outputs, raw = [], []
    for name, in_binary, value in values:
        entry: dict[str, Any] = {"name": name, "datatype": "FP32", "shape": list(value.shape)}
        if in_binary:
            raw.append(np.ascontiguousarray(value, dtype="<f4").tobytes())
            entry["parameters"] = {"binary_data_size": len(raw[-1])}
        else:
            entry["data"] = value.ravel().tolist()
        outputs.append(entry)
    text = json.dumps(head | {"outputs": outputs}).encode()
    return text + b"".join(raw), len(text) if raw else None
