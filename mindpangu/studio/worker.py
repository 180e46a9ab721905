"""One thread that owns the models and draws one thing after another, watched and stopped from other threads."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, Optional, Protocol, TypeVar, Union

from PIL import Image

from mindpangu.infer.drawing import BatchState, Drawing

PREVIEW_EVERY = 0.2  # seconds, at least, between previews: each decodes the latents

Models = TypeVar("Models")


class Watch(Protocol):
    """A pipeline's `on_step` that also takes the pictures that are finished."""

    def __call__(self, state: BatchState, finished: Sequence[Image.Image] = ()) -> Optional[bool]:
        """False: end the batch here."""


Work = Callable[[Models, Watch], list[Drawing]]


@dataclass(frozen=True)
class Preview:
    """The finished pictures, and what others are predicted to be after `step` of `steps` steps."""

    step: int
    steps: int
    images: list[Image.Image]


class Job(Generic[Models]):
    """One piece of work. Iterating gives its Previews as they are made, at last its drawings, or raises its error."""

    def __init__(self, work: Work[Models]) -> None:
        self.work = work
        self._events: queue.SimpleQueue[Union[Preview, list[Drawing], Exception]] = queue.SimpleQueue()
        self._stopped = threading.Event()
        self._shown = float("-inf")

    def stop(self) -> None:
        """End it at its next step, with what is predicted by then."""
        self._stopped.set()

    def __iter__(self) -> Iterator[Union[Preview, list[Drawing]]]:
        while True:
            event = self._events.get()
            if isinstance(event, Exception):
                raise event
            yield event
            if not isinstance(event, Preview):
                return

    def run(self, models: Models) -> None:
        """Do it, in this thread."""
        try:
            self._events.put(self.work(models, self._watch))
        except Exception as error:  # the thread that waits for it is to know
            self._events.put(error)

    def _watch(self, state: BatchState, finished: Sequence[Image.Image] = ()) -> Optional[bool]:
        if self._stopped.is_set():
            return False
        if time.monotonic() - self._shown >= PREVIEW_EVERY:
            self._events.put(Preview(state.step + 1, state.steps, [*finished, *state.pictures]))
            self._shown = time.monotonic()
        return None


class Worker(Generic[Models]):
    """The thread. MindSpore keeps part of its state by thread, so models are opened and used in this one alone."""

    def __init__(self, open_models: Callable[[], Models]) -> None:
        """Start to open the models; see `models`."""
        self._jobs: queue.SimpleQueue[Job[Models]] = queue.SimpleQueue()
        self._opened: queue.SimpleQueue[Union[Models, Exception]] = queue.SimpleQueue()
        self._open = open_models
        threading.Thread(target=self._work, name="worker", daemon=True).start()

    def models(self) -> Models:
        """What was opened, once it is: call it once. Raises: what opening raised."""
        opened = self._opened.get()
        if isinstance(opened, Exception):
            raise opened
        return opened

    def draw(self, work: Work[Models]) -> Job[Models]:
        """Have it done when what was asked before is done. work(models, watch): watch is the pipelines' on_step."""
        job = Job(work)
        self._jobs.put(job)
        return job

    def _work(self) -> None:
        try:
            models = self._open()
        except Exception as error:
            self._opened.put(error)
            return
        self._opened.put(models)
        while True:
            self._jobs.get().run(models)
