import contextlib
import io

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient
from web_data import BASE, bearer, open_site, phantom_files, receive, score, small_model, uid

from fastich.dicom import read_bytes
from fastich.serve import render
from fastich.serve.web.app import build_app
from fastich.serve.web.images import Lru
from fastich.windowing import WINDOWS, Window


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return small_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def site(tmp_path, model):
    with contextlib.closing(open_site(tmp_path, model)) as made:
        receive(made, uid(1), phantom_files(uid(1))[3:6])
        score(made, uid(1), triage="flag")
        yield made


@pytest.fixture
def client(site):
    with TestClient(build_app(site.parts()), base_url=BASE, headers=bearer(site)) as made:
        yield made


def pixels(answer) -> np.ndarray:
    assert answer.status_code == 200, answer.text
    assert answer.headers["Content-Type"] == "image/png"
    return np.asarray(Image.open(io.BytesIO(answer.content)))


def slice_address(number: int = 1, query: str = "") -> str:
    return f"/studies/{uid(1)}/slices/{number}.png{query}"


@pytest.mark.parametrize(
    ("query", "window"), [("", WINDOWS["brain"]), ("?window=bone", WINDOWS["bone"]), ("?window=10/20", Window(10, 20))]
)
def test_picture_is_the_slice_through_its_window(client, query, window):
    hu = read_bytes(phantom_files(uid(1))[4], "x")[0].hu
    assert np.array_equal(pixels(client.get(slice_address(1, query))), render.grey(hu, window))


def test_slices_stand_in_their_order(client):
    files = phantom_files(uid(1))[3:6]
    for number, content in enumerate(files):
        expected = render.grey(read_bytes(content, "x")[0].hu, WINDOWS["brain"])
        assert np.array_equal(pixels(client.get(slice_address(number))), expected)


def test_class_map_colours_tissue_and_leaves_air_black(client, site):
    hu = read_bytes(phantom_files(uid(1))[4], "x")[0].hu
    slices = site.store.scored_slices(uid(1))
    assert slices[0].answer.cam is not None
    found = pixels(client.get(slice_address(1, "?overlay=subdural")))
    assert found.shape == (64, 64, 3)
    assert not found[hu <= -200].any()


def test_thumbnail_has_the_side_that_was_asked_for(client):
    assert pixels(client.get(slice_address(1, "?side=32"))).shape == (32, 32)


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("?window=lung", "window: expected brain"),
        ("?window=40/0", "window: expected brain"),
        ("?window=brain,bone", "window: expected brain"),
        ("?window=nan/80", "window: expected brain"),
        ("?window=inf/80", "window: expected brain"),
        ("?window=1e9/80", "window: expected brain"),
        ("?overlay=all", "overlay: expected none, epidural"),
        ("?side=9", "side: expected 32 to 512 pixels"),
        ("?side=100000", "side: expected 32 to 512 pixels"),
    ],
)
def test_queries_that_mean_nothing_are_refused(client, query, words):
    answer = client.get(slice_address(1, query))
    assert (answer.status_code, answer.json()["error"].startswith(words)) == (400, True)


def test_slices_that_are_not_there_are_no_page(client):
    assert client.get(slice_address(3)).status_code == 404
    assert client.get("/studies/9.9/slices/0.png").status_code == 404


def test_deleted_pixels_say_so(client, site):
    for instance in site.store.instances_of(uid(1)):
        site.spool.path_of(instance.object_name).unlink()
    answer = client.get(slice_address())
    assert (answer.status_code, "were deleted" in answer.json()["error"]) == (404, True)


def test_damaged_pixels_say_so_without_a_traceback(client, site):
    for instance in site.store.instances_of(uid(1)):
        path = site.spool.path_of(instance.object_name)
        path.write_bytes(path.read_bytes()[:900])
    answer = client.get(slice_address())
    assert answer.status_code == 500
    assert answer.json()["error"].startswith("this slice can no longer be read: ")


def test_pictures_are_kept_while_people_scroll(client, site):
    first = client.get(slice_address()).content
    for instance in site.store.instances_of(uid(1)):
        site.spool.path_of(instance.object_name).unlink()
    assert client.get(slice_address()).content == first


def test_cache_is_bounded_and_drops_the_oldest():
    cache: Lru[bytes] = Lru(10, len)
    for key in range(5):
        cache.put((key,), b"four")
        cache.get((0,))
    assert [key for key in range(5) if cache.get((key,))] == [0, 4]
    cache.put((9,), b"x" * 100)
    assert [key for key in range(10) if cache.get((key,))] == [9]
