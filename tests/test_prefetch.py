import threading
from collections.abc import Iterator

import torch
from loaders_data import write_records
from test_epoch import CountingLoader

from fastich.loaders import Batch, LoaderConfig, open_loader, streams
from fastich.training.prefetch import on_device

CPU = torch.device("cpu")


def test_batches_come_out_as_they_went_in() -> None:
    expected = list(CountingLoader(3).epoch(0))
    found = list(on_device(CountingLoader(3).epoch(0), CPU))
    assert len(found) == 3
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.labels, other.labels)
        assert torch.equal(one.rows, other.rows)


def test_a_batch_is_asked_for_only_when_its_turn_comes() -> None:
    asked = []

    def batches() -> Iterator[Batch]:
        for number, batch in enumerate(CountingLoader(3).epoch(0)):
            asked.append(number)
            yield batch

    found = on_device(batches(), CPU)
    next(found)
    assert asked == [0]


def test_closing_stops_the_loaders_threads(tmp_path) -> None:
    write_records(tmp_path, [(64, 64)] * 12)
    loader = open_loader(LoaderConfig(records=tmp_path, split="all", batch_size=1, size=32))
    found = on_device(loader.epoch(0), CPU)
    next(found)
    found.close()
    loader.close()
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("fastich-loader")]


class FakeStream:
    """Stands for a CUDA stream: writes down who waits for whom."""

    def __init__(self, name: str, log: list[str]) -> None:
        self.name, self.log = name, log

    def wait_stream(self, other: "FakeStream") -> None:
        self.log.append(f"{self.name} waits for {other.name}")


def test_the_stream_that_trains_waits_for_the_copy_and_not_the_host(monkeypatch) -> None:
    log: list[str] = []
    side, main = FakeStream("side", log), FakeStream("main", log)

    class Queued:
        def __enter__(self) -> None:
            log.append("copy {")

        def __exit__(self, *_: object) -> None:
            log.append("}")

    monkeypatch.setattr(torch.cuda, "Stream", lambda device: side)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: Queued())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: main)
    made = streams.SideStream(torch.device("cuda"))
    made.follow()
    with made.queued():
        pass
    made.hand_over(torch.zeros(1))
    assert log == ["side waits for main", "copy {", "}", "main waits for side"]
