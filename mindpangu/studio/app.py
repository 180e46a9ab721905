"""What the studio's page does: words, pictures and lines are drawn, what is predicted is shown meanwhile.

Needs the extra `studio`. Everything that a visitor sends is bounded here or by the components of `studio_page`, which
Gradio checks on the server.
"""

from __future__ import annotations

import base64
import html
import math
import secrets
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any, Optional

import gradio as gr
import numpy as np
from PIL import Image

from mindpangu import runtime
from mindpangu.config import load
from mindpangu.errors import UserError
from mindpangu.images import parse_size
from mindpangu.infer.coop import CoopConfig, CoopDraw
from mindpangu.infer.drawing import BatchState, Drawing
from mindpangu.infer.image_file import encoded, parameters, read_settings
from mindpangu.infer.init_image import InitImage
from mindpangu.infer.pipeline import PanGuDraw
from mindpangu.infer.request import OPTION_NAMES
from mindpangu.studio.worker import Job, Preview, Watch, Worker

MAX_TEXT, MAX_SEED = 1000, 2**32 - 1
KEPT = 24  # pictures of a visitor's history
UNREAD = 16  # messages that a visitor has not fetched; who has more has gone
WARM_STEPS = 3  # enough for each expert's turn
STARTED = "drawing; what is new in shape is compiled first · 绘制中；新的形状需先编译"

Editor = Optional[Mapping[str, Any]]  # what ImageEditor gives: background, layers, composite
History = list[tuple[str, str]]  # file and caption, newest first


@dataclass
class Opened:
    """The models, in the worker's thread."""

    pipeline: PanGuDraw
    together: CoopDraw


def open_models(model: str, recipe: Path, device: str) -> Opened:
    """Load the page's model and the members of its recipe. Raises: UserError."""
    config = load(recipe, CoopConfig)
    if not config.weights.get(config.output):
        raise UserError(f"{recipe}: nobody influences the output {config.output}; the page has a slider for that")
    pipeline = PanGuDraw.from_pretrained(model, device)
    return Opened(pipeline, CoopDraw(config, device, {model: pipeline}))


def warm_up(models: Opened, _: Watch) -> list[Drawing]:
    """Compile what a first drawing needs, or take it from the disk."""
    pipeline, together = models.pipeline, models.together
    lines = [_dot()] if together.looks else []
    with runtime.kept_graphs("studio", pipeline.digest, together.digest):
        pipeline("a", steps=WARM_STEPS, on_step=_look)
        return together(["a"], lines=lines, steps=WARM_STEPS, on_step=_look)


class Studio:
    """The page and what it does. One worker draws for all visitors, one thing after another."""

    def __init__(self, model: str, recipe: Path, device: str = "auto") -> None:
        """Load the models, and compile what a first drawing needs while the page is opened.

        Raises:
            UserError: a model or the recipe is absent, damaged or unfit.
        """
        self.worker: Worker[Opened] = Worker(lambda: open_models(model, recipe, device))
        self.models = self.worker.models()
        self._jobs: dict[str, Job[Opened]] = {}  # a visitor's, under way
        self.unread: Callable[[str], int] = lambda session: 0  # how many messages a visitor has not fetched
        self._folder = tempfile.TemporaryDirectory(prefix="mindpangu-studio-")
        self.worker.draw(warm_up)

    # ---- What a visitor asks for -----------------------------------------------------------------------------------

    def draw(self, fields: Mapping[str, Any], history: History, request: gr.Request) -> Iterator[tuple[Any, ...]]:
        """From words, and from a picture where there is one; yields what `_watched` does.

        `fields`: the first tab's, those that are options of a drawing by their names in `SamplingOptions`.
        """

        def work(models: Opened, watch: Watch) -> list[Drawing]:
            drawn: list[Drawing] = []
            asked = {**options, "seed": seed, "n": fields["n"], "init_image": init_image}
            # One by one: graphs are compiled for each number of pictures that are drawn together.
            request = models.pipeline.asked(prompt, **asked, batch=1)
            for one in models.pipeline.draw(request, None, lambda state: watch(state, [one.image for one in drawn])):
                drawn.append(one)
                if "stopped_after" in one.settings:
                    break
            return drawn

        with _refusing():
            prompt, seed = _text(fields["prompt"]), _seed(fields)
            options = {name: fields[name] for name in OPTION_NAMES if name in fields}
            options["negative"] = _text(fields["negative"])
            options["styles"] = dict.fromkeys(fields["styles"] or (), fields["weight"])
            init_image = _init_image(fields["canvas"], parse_size(fields["size"]))
        yield from self._watched(work, prompt, seed, history, request)

    def draw_together(
        self, fields: Mapping[str, Any], history: History, request: gr.Request
    ) -> Iterator[tuple[Any, ...]]:
        """By the recipe's members, looking at the visitor's lines; the field `share` is the paper's d."""

        def work(models: Opened, watch: Watch) -> list[Drawing]:
            together = models.together
            output = together.config.output
            (other, influence), *rest = together.config.weights[output].items()
            row = {other: replace(influence, share=fields["share"]), **dict(rest)}
            weights = {**together.config.weights, output: row}
            return together([prompt], lines=drawn, weights=weights, steps=fields["steps"], seed=seed, on_step=watch)

        with _refusing():
            prompt, seed, lines = _text(fields["prompt"]), _seed(fields), fields["lines"]
            drawn = [lines["composite"]] if self.models.together.looks and lines else []
            if self.models.together.looks and not (drawn and np.ptp(np.asarray(drawn[0].convert("L")))):
                raise UserError("draw some lines first · 请先画线条")
        yield from self._watched(work, prompt, seed, history, request)

    def stop(self, request: gr.Request) -> str:
        """End the visitor's drawing at its next step."""
        job = self._jobs.get(request.session_hash or "")
        if job is None:
            return "nothing is being drawn · 没有正在绘制的图"
        job.stop()
        return "stopping… · 正在停止"

    def _watched(
        self, work: Callable, prompt: str, seed: int, history: History, request: gr.Request
    ) -> Iterator[tuple[Any, ...]]:
        """Yields (pictures as HTML, a line on how far it is, the seed, the history, the history's gallery)."""
        session = request.session_hash or ""
        started, first = time.monotonic(), math.nan
        job = self._jobs[session] = self.worker.draw(work)
        yield gr.skip(), STARTED, seed, gr.skip(), gr.skip()
        try:
            with _refusing():
                for event in job:
                    if self.unread(session) > UNREAD:
                        job.stop()
                    seconds = time.monotonic() - started
                    if isinstance(event, Preview):
                        first = seconds if math.isnan(first) else first
                        line = f"{event.step}/{event.steps}"
                        shown = pictures_html([_preview(image) for image in event.images], prompt, coming=True)
                        yield shown, line, seed, gr.skip(), gr.skip()
                    else:
                        files = [encoded(one) for one in event]
                        history = self._remembered(files, prompt, history)
                        line = f"{seconds:.1f} s; first preview · 首次预览 {first:.2f} s; seed · 种子 {seed}"
                        if "stopped_after" in event[-1].settings:
                            line = f"stopped after step · 停在第 {event[-1].settings['stopped_after']} 步; {line}"
                        pictures = pictures_html([_url(one, "png") for one in files], prompt)
                        yield pictures, line, seed, history, gr.Gallery(history, selected_index=None)
        finally:
            job.stop()  # a visitor who has gone is not drawn for
            if self._jobs.get(session) is job:
                del self._jobs[session]

    def _remembered(self, files: list[bytes], prompt: str, history: History) -> History:
        """The history with these before all others, what fell out of it deleted."""
        new: History = []
        for content in files:
            path = Path(self._folder.name) / f"{secrets.token_hex(8)}.png"
            path.write_bytes(content)
            new.append((str(path), prompt))
        self.forget(history[KEPT - len(new) :])
        return [*new, *history[: KEPT - len(new)]]

    @staticmethod
    def forget(history: History) -> None:
        """Delete the files of pictures that a visitor no longer has."""
        for path, _ in history:
            Path(path).unlink(missing_ok=True)

    # ---- The history -----------------------------------------------------------------------------------------------

    @staticmethod
    def chosen(history: History, event: gr.SelectData) -> tuple[str, str]:
        """The file that was clicked, and what it carries as text."""
        with _refusing():
            number = event.index if isinstance(event.index, int) else -1
            if not 0 <= number < len(history):
                raise UserError("this picture is gone · 图片已不在")
            path = history[number][0]
            return path, parameters(read_settings(Path(path)))

    def again(self, path: Optional[str]) -> dict[str, Any]:
        """The settings of the chosen picture, as values of the first tab's fields by name."""
        with _refusing():
            said = read_settings(_clicked(path))
            values = {name: said[name] for name in ("prompt", "seed", *OPTION_NAMES) if name in said}
            if values.get("size") not in self.models.pipeline.spec.sizes:
                values.pop("size", None)
            styles = values.pop("styles", {})
            values.update(styles=list(styles), random=False)
            if styles:
                values["weight"] = next(iter(styles.values()))
        return values

    @staticmethod
    def onto_canvas(path: Optional[str]) -> dict[str, Any]:
        """The chosen picture as the one to start from."""
        with _refusing():
            picture = str(_clicked(path))
            return {"background": picture, "layers": [], "composite": picture}


@contextmanager
def _refusing() -> Iterator[None]:
    """What a visitor asked for and cannot have ends in one line on the page."""
    try:
        yield
    except (UserError, ValueError) as error:
        raise gr.Error(str(error), print_exception=False) from None


def _look(state: BatchState) -> None:
    """Decode what is predicted, so that the decoder is compiled."""
    assert state.pictures


def _dot() -> Image.Image:
    """The least that is a line drawing."""
    picture = Image.new("RGB", (8, 8), "white")
    picture.putpixel((4, 4), (0, 0, 0))
    return picture


def _text(given: Optional[str]) -> str:
    text = given or ""
    if len(text) > MAX_TEXT:
        raise UserError(f"{len(text)} characters; at most {MAX_TEXT} are read · 最多 {MAX_TEXT} 字")
    return text


def _seed(fields: Mapping[str, Any]) -> int:
    """The one given, or a new one."""
    given = None if fields["random"] else fields["seed"]
    return secrets.randbelow(MAX_SEED + 1) if given is None else int(given)


def _clicked(path: Optional[str]) -> Path:
    if not path:
        raise UserError("click a picture of the history first · 请先在历史中点选一张图")
    return Path(path)


def _init_image(canvas: Editor, sides: tuple[int, int]) -> Optional[InitImage]:
    """What the first tab's canvas holds: a picture, and where it was brushed. None where it is empty."""
    if not canvas or canvas.get("background") is None:
        return None
    picture = canvas["background"]
    brushed = [np.asarray(layer.convert("RGBA").resize(picture.size))[..., 3] > 0 for layer in canvas.get("layers", ())]
    where = np.any(brushed, axis=0) if brushed else np.zeros(1, bool)
    mask = Image.fromarray(where.astype(np.uint8) * 255) if where.any() else None
    return InitImage.open(picture, mask, sides)


def _preview(image: Image.Image) -> str:
    buffer = BytesIO()
    image.save(buffer, format="WEBP", quality=85)
    return _url(buffer.getvalue(), "webp")


def _url(content: bytes, kind: str) -> str:
    """A picture file as a data URL."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def pictures_html(urls: list[str], prompt: str, coming: bool = False) -> str:
    """Pictures beside each other; `coming`: they are not finished."""
    images = "".join(f'<img src="{url}" alt="{html.escape(prompt, quote=True)}">' for url in urls)
    return f'<div class="pictures{" coming" if coming else ""}">{images}</div>'
