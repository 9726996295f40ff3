import json
from typing import Any

import numpy as np
import pytest

from fastich.serve.web.tensors import MAX_PIXELS, OUTPUT_NAMES, BadRequest, read_request, write_response

HU = np.arange(24, dtype=np.int16).reshape(2, 3, 4) - 1000


def document(**changes: Any) -> dict[str, Any]:
    entry = {"name": "hu", "shape": [2, 3, 4], "datatype": "INT16", "data": HU.ravel().tolist()}
    return {"inputs": [entry | changes]}


def packed(entry: dict[str, Any], raw: bytes) -> tuple[bytes, str]:
    head = json.dumps({"inputs": [entry]}).encode()
    return head + raw, str(len(head))


def test_json_tensor_flat_or_nested_is_read():
    flat = read_request(json.dumps(document()).encode(), None)
    nested = read_request(json.dumps(document(data=HU.tolist())).encode(), None)
    assert np.array_equal(flat.hu, HU)
    assert np.array_equal(nested.hu, HU)
    assert flat.hu.dtype == np.int16
    assert flat.outputs == tuple((name, False) for name in OUTPUT_NAMES)


def test_binary_tensor_is_read():
    entry = {"name": "hu", "shape": [2, 3, 4], "datatype": "INT16", "parameters": {"binary_data_size": 48}}
    assert np.array_equal(read_request(*packed(entry, HU.tobytes())).hu, HU)


def test_outputs_are_those_asked_for():
    asked = document() | {
        "outputs": [{"name": "logit", "parameters": {"binary_data": False}}, {"name": "cam"}],
        "parameters": {"binary_data_output": True},
        "id": "seven",
    }
    found = read_request(json.dumps(asked).encode(), None)
    assert (found.id, found.outputs) == ("seven", (("logit", False), ("cam", True)))


@pytest.mark.parametrize(
    ("made", "words"),
    [
        ({"inputs": []}, "inputs: expected one, named hu"),
        ({"inputs": [3]}, "inputs, outputs: expected JSON objects"),
        ({}, "expected a JSON object with a list of inputs"),
        (document(name="x"), "inputs: expected one, named hu"),
        (document(shape=[2, 3]), r"shape: expected \[N, H, W\]"),
        (document(shape=[0, 3, 4]), r"shape: expected \[N, H, W\]"),
        (document(shape=[True, 3, 4]), r"shape: expected \[N, H, W\]"),
        (document(shape=[1, 5000, 4]), "sides up to 4096"),
        (document(shape=[MAX_PIXELS, 1, 2]), "pixels in all"),
        (document(datatype="FP32"), "datatype: expected INT16"),
        (document(data=[1, 2]), "data: expected 24 whole numbers"),
        (document(data=[[1], [2, 3]]), "data: expected numbers, all rows of one length"),
        (document(data=[0.5] * 24), "data: expected 24 whole numbers"),
        (document(data=[40_000] * 24), "values from -32768 to 32767"),
        (document(data=[2**70] * 24), "whole numbers"),
        (document(parameters={"binary_data_size": 48}), "binary_data_size: expected 48 bytes for this shape, found 0"),
        (document(parameters=[]), "parameters: expected a JSON object"),
        (document() | {"outputs": {}}, "outputs: expected a list"),
        (document() | {"outputs": [{"name": "secret"}]}, "outputs: expected some of probability"),
        (document() | {"outputs": [{"name": "cam", "parameters": {"classification": 1}}]}, "not offered"),
    ],
)
def test_malformed_requests_are_one_line(made, words):
    with pytest.raises(BadRequest, match=words):
        read_request(json.dumps(made).encode(), None)


def test_bytes_that_are_no_request_are_one_line():
    with pytest.raises(BadRequest, match=r"body: expected a JSON object \(JSONDecodeError\)"):
        read_request(b"{", None)
    with pytest.raises(BadRequest, match=r"body: expected a JSON object"):
        read_request(b"[" * 100_000, None)
    for length in ("x", "-1", "99"):
        with pytest.raises(BadRequest, match="Inference-Header-Content-Length: expected a length within"):
            read_request(b"{}", length)
    body, length = packed({"name": "hu", "shape": [1, 1, 1], "datatype": "INT16", "data": [1]}, b"xx")
    with pytest.raises(BadRequest, match="binary_data_size: missing although bytes follow"):
        read_request(body, length)


def test_answers_hold_json_first_and_then_the_bytes():
    value = np.array([[0.5, 0.25]], dtype=np.float32)
    content, length = write_response({"model_name": "ich"}, [("a", False, value), ("b", True, value)])
    assert length is not None
    head = json.loads(content[:length])
    assert head["outputs"][0]["data"] == [0.5, 0.25]
    assert head["outputs"][1]["parameters"] == {"binary_data_size": 8}
    assert content[length:] == value.tobytes()
    assert write_response({}, [("a", False, value)])[1] is None
