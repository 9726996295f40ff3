import contextlib
import dataclasses
import json
import socket

import numpy as np
import pytest
import tritonclient.http as triton
from starlette.testclient import TestClient
from toy_model import toy_onnx, write_model
from web_data import BASE, MILD, bearer, open_site, small_model
from web_server import serving

from fastich.hu import AIR_HU
from fastich.serve.session import open_session
from fastich.serve.web import kserve
from fastich.serve.web.app import build_app
from fastich.serve.web.kserve import MAX_WAITING, score

HU = np.random.default_rng(0).integers(AIR_HU, 100, (5, 16, 12)).astype(np.int16)
INFER = "/v2/models/ich/infer"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return small_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def site(tmp_path, model):
    with contextlib.closing(open_site(tmp_path, model)) as made:
        yield made


@pytest.fixture
def app(site):
    return build_app(site.parts())


@pytest.fixture
def client(app, site):
    with TestClient(app, base_url=BASE, headers=bearer(site)) as made:
        yield made


def body(hu: np.ndarray, **changes):
    entry = {"name": "hu", "shape": list(hu.shape), "datatype": "INT16", "data": hu.ravel().tolist()}
    return {"inputs": [entry | changes]}


@contextlib.contextmanager
def asking(app):
    with contextlib.ExitStack() as stack:
        address = stack.enter_context(serving(app)).removeprefix("http://")
        yield stack.enter_context(contextlib.closing(triton.InferenceServerClient(address)))


@pytest.mark.parametrize(("sends_binary", "wants_binary"), [(True, True), (True, False), (False, True), (False, False)])
def test_tritonclient_works_as_it_is(app, site, sends_binary, wants_binary):
    with (
        serving(app) as address,
        contextlib.closing(triton.InferenceServerClient(address.removeprefix("http://"))) as client,
    ):
        headers = bearer(site)
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready("ich", headers=headers)
        assert client.get_server_metadata(headers=headers)["extensions"] == ["binary_tensor_data"]
        about = client.get_model_metadata("ich", headers=headers)
        assert about["inputs"] == [{"name": "hu", "datatype": "INT16", "shape": [-1, -1, -1]}]
        given = triton.InferInput("hu", list(HU.shape), "INT16")
        given.set_data_from_numpy(HU, binary_data=sends_binary)
        wanted = [triton.InferRequestedOutput(name, binary_data=wants_binary) for name in ("probability", "cam")]
        found = client.infer("ich", [given], outputs=wanted, headers=headers, request_id="seven")
        everything = client.infer("ich", [given], headers=headers)
    expected = site.session.run(HU)
    assert np.allclose(found.as_numpy("probability"), expected.probability, atol=1e-6)
    assert found.as_numpy("cam").shape == expected.cam.shape
    assert found.as_numpy("logit") is None
    assert found.get_response()["id"] == "seven"
    assert everything.as_numpy("embedding").shape == (5, 1024)


def test_tritonclient_sees_our_errors(app, site):
    with (
        serving(app) as address,
        contextlib.closing(triton.InferenceServerClient(address.removeprefix("http://"))) as client,
    ):
        given = triton.InferInput("hu", [1, 2, 2], "FP32")
        given.set_data_from_numpy(np.zeros((1, 2, 2), np.float32))
        with pytest.raises(triton.InferenceServerException, match="datatype: expected INT16"):
            client.infer("ich", [given], headers=bearer(site))
        with pytest.raises(triton.InferenceServerException, match="expected a token"):
            client.infer("ich", [given])


def test_metadata_says_labels_unit_and_order(client):
    about = client.get("/v2/models/ich").json()
    assert about["parameters"]["input_order"] == "any"
    assert about["parameters"]["labels"].endswith("subdural,any")
    assert {"name": "embedding", "datatype": "FP32", "shape": [-1, 1024]} in about["outputs"]
    assert client.get("/v2/models/ich/versions/1").json() == about


def test_other_models_and_versions_are_not_here(client):
    for path in ("/v2/models/other", "/v2/models/ich/versions/2", "/v2/models/ich/versions/2/ready"):
        assert client.get(path).status_code == 404
    assert client.post("/v2/models/other/infer", json=body(HU)).status_code == 404


def test_json_answers_hold_numbers(client, site):
    found = client.post(INFER, json=body(HU) | {"outputs": [{"name": "probability"}]}).json()
    (output,) = found["outputs"]
    assert (output["shape"], output["datatype"]) == ([5, 6], "FP32")
    assert np.allclose(np.reshape(output["data"], (5, 6)), site.session.run(HU).probability, atol=1e-6)


def test_malformed_requests_are_400_and_one_line(client):
    for answer in (client.post(INFER, content=b"{"), client.post(INFER, json=body(HU, shape=[1, 2, 3]))):
        assert (answer.status_code, list(answer.json())) == (400, ["error"])
    assert client.post(INFER, content=b"x", headers={"Content-Encoding": "gzip"}).status_code == 415
    assert client.post(INFER, content=b"x", headers={"Content-Length": str(2**40)}).status_code == 413


def test_too_many_waiting_requests_are_told_to_come_back(client, app):
    app.state.turns.waiting = MAX_WAITING
    answer = client.post(INFER, json=body(HU))
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "5")
    app.state.turns.waiting = 0
    assert client.post(INFER, json=body(HU)).status_code == 200


def test_batches_change_nothing(site):
    whole = site.session.run(HU)
    found = score(site.session, HU, 2)
    assert np.allclose(found["logit"], whole.logit, atol=1e-5)
    assert list(found) == ["probability", "logit", "embedding", "cam"]


def test_series_models_see_their_neighbours_across_batches(tmp_path):
    write_model(tmp_path, toy_onnx(adjacent=True, scale=MILD), adjacent=True)
    session = open_session(tmp_path)
    assert np.allclose(score(session, HU, 2)["logit"], session.run(HU).logit, atol=1e-5)


@pytest.mark.parametrize("is_chunked", [False, True])
def test_json_is_taken_up_to_a_cap_and_never_read_beyond(client, monkeypatch, is_chunked):
    monkeypatch.setattr(kserve, "read_request", None)
    pieces = [b"[" * 2**20] * 17
    answer = client.post(INFER, content=iter(pieces) if is_chunked else b"".join(pieces))
    assert answer.status_code == 413
    assert "at most 16 MiB of JSON; send larger inputs as binary tensors" in answer.json()["error"]


def test_the_json_before_a_binary_tensor_has_the_same_cap(client):
    answer = client.post(INFER, content=b"{}", headers={kserve.HEADER_LENGTH: str(2**24 + 1)})
    assert answer.status_code == 413


def test_a_body_that_stands_still_is_refused(tmp_path, model):
    with contextlib.closing(open_site(tmp_path, model)) as site:
        config = dataclasses.replace(site.config, http=dataclasses.replace(site.config.http, body_timeout_s=0.2))
        with serving(build_app(site.parts(config=config))) as address:
            place, port = address.removeprefix("http://").split(":")
            with socket.create_connection((place, int(port)), 20) as peer:
                token = bearer(site)["Authorization"]
                head = f"POST {INFER} HTTP/1.1\r\nHost: {place}\r\nAuthorization: {token}\r\nContent-Length: 9\r\n\r\n"
                peer.sendall(head.encode())
                assert peer.recv(12) == b"HTTP/1.1 408"


def test_scoring_is_audited(client, site):
    assert client.post(INFER, json=body(HU)).status_code == 200
    last = json.loads((site.folder / "spool" / "audit.jsonl").read_text().splitlines()[-1])
    assert (last["event"], last["outcome"], last["detail"]) == ("infer", "success", "5 slices over KServe")
