"""What both DALI loaders share: a source that feeds a pipeline from threads, and the loop that takes batches out of it.

An error of the source is kept and the epoch ended, so that the batches before it come out and it is raised unwrapped.
"""

from collections import deque
from collections.abc import Callable, Generator, Iterator
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from fastich.loaders.config import LoaderConfig

W = TypeVar("W")

QUEUE_DEPTH = 2
"""Batches that DALI works on ahead of the one in use."""


class Feed(Generic[W]):
    """A pipeline's external source: arrays made from each piece of work, which it remembers until its batch is out.

    Attributes:
        layouts: DALI layout of each output.
        given: work whose batches are not out yet, oldest first.
        error: what ended the source early.
    """

    def __init__(
        self, work: Generator[W, None, None], arrays: Callable[[W], tuple[Any, ...]], layouts: list[str]
    ) -> None:
        self.layouts = layouts
        self.given: deque[W] = deque()
        self.error: Exception | None = None
        self._work, self._arrays = work, arrays

    def __iter__(self) -> "Feed[W]":
        return self

    def __next__(self) -> tuple[Any, ...]:
        try:
            work = next(self._work)
        except StopIteration:
            raise
        except Exception as error:
            self.error = error
            raise StopIteration from error
        self.given.append(work)
        return self._arrays(work)

    def close(self) -> None:
        """Stop reading ahead."""
        self._work.close()


def pipeline_options(config: LoaderConfig) -> dict[str, Any]:
    """What every pipeline of a loader is built with."""
    return {
        "batch_size": config.batch_size,
        "num_threads": config.threads,
        "device_id": torch.cuda.current_device() if config.device == "cuda" else None,
        "prefetch_queue_depth": QUEUE_DEPTH,
        "exec_dynamic": True,  # outputs own their memory, so torch may keep them
    }


def outputs(pipeline: Any, feed: Feed[W]) -> Iterator[tuple[Any, W]]:
    """Each batch that comes out of ``pipeline``, with the work that it was made from."""
    try:
        while True:
            try:
                (output,) = pipeline.run()
            except StopIteration:
                break
            yield output, feed.given.popleft()
        if feed.error is not None:
            raise feed.error
    finally:
        feed.close()


def stacked(output: Any) -> Tensor:
    """Images [N, C, S, S] (channels_last) of a pipeline's output [N, S, S, C]; they share its memory."""
    return from_dlpack(output.as_tensor()).permute(0, 3, 1, 2)
