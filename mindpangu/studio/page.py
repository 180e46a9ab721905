"""The studio's page (Gradio): what lies where, and its address.

Needs the extra `studio`. Nothing on the server's disk but pictures drawn or sent by visitors can be fetched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Optional

import gradio as gr
from PIL import Image
from starlette.middleware import Middleware

from mindpangu.diffusion import SAMPLERS
from mindpangu.errors import UserError
from mindpangu.infer.coop import CoopDraw
from mindpangu.studio.app import MAX_SEED, MAX_TEXT, Studio, pictures_html

if TYPE_CHECKING:
    from mindpangu.spec import PipelineSpec

MAX_STEPS, MAX_PICTURES = 100, 4
MAX_BODY = 32_000_000  # bytes of a request: two pictures of a canvas, as text
MAX_UPLOAD, MAX_PIXELS = "10mb", 4096 * 4096
MAX_UPLOADS = 1_000_000_000  # bytes of all visitors' files together
CANVAS, SHEET = (512, 512), (256, 256)  # of the first tab, and for lines: the larger, the longer a browser sends it
KEEP_FILES = (3600, 24 * 3600)  # seconds: look for files to delete every so often, delete those as old as this

CSS = """
.pictures {display: flex; flex-wrap: wrap; gap: 8px; min-height: 20rem; align-content: flex-start}
.pictures img {flex: 1 1 45%; min-width: 45%; max-width: 100%; object-fit: contain; border-radius: 8px}
.pictures.coming img {opacity: 0.85}
"""
HEAD = "MindPanGu Studio"


def build(studio: Studio) -> gr.Blocks:
    """All of it, each button tied to what the studio does."""
    spec = studio.models.pipeline.spec
    with gr.Blocks(title=HEAD, analytics_enabled=False, delete_cache=KEEP_FILES) as page:
        studio.unread = lambda session: _unread(page, session)
        history, chosen = gr.State([], delete_callback=studio.forget), gr.State(None)
        gr.Markdown(f"# {HEAD}\n{spec.name}: 用中文或英文描述要画的图 · say in Chinese or English what to draw")
        with gr.Row():
            with gr.Column():
                with gr.Tab("Draw · 文生图", id="draw"):
                    words, button = _draw_tab(spec)
                with gr.Tab("Coop · 协同", id="coop"):
                    lines, coop_button = _coop_tab(studio.models.together)
            with gr.Column():
                pictures = gr.HTML(pictures_html([], ""), elem_id="pictures")
                line = gr.Textbox(label="Progress · 进度", interactive=False, elem_id="progress", max_lines=2)
                stop = gr.Button("Stop · 停止", variant="stop", elem_id="stop")
                gallery = gr.Gallery(
                    label="History · 历史",
                    columns=6,
                    fit_columns=False,
                    height=220,
                    allow_preview=False,
                    elem_id="history",
                    interactive=False,
                )
                settings = gr.Textbox(label="Settings · 参数", lines=3, interactive=False, elem_id="settings")
                with gr.Row():
                    again = gr.Button("Use these settings · 用此参数", elem_id="again")
                    start = gr.Button("Start from it · 以此图开始", elem_id="start")
        for pressed, fields, draw in ((button, words, studio.draw), (coop_button, lines, studio.draw_together)):
            pressed.click(
                _by_name(draw, fields, history),
                {*fields.values(), history},
                [pictures, line, fields["seed"], history, gallery],
                show_progress="minimal",
                show_progress_on=line,
                concurrency_id="worker",
                api_visibility="private",
            )
        stop.click(studio.stop, None, line, queue=False, show_progress="hidden", api_visibility="private")
        gallery.select(studio.chosen, history, [chosen, settings], queue=False, api_visibility="private")
        again.click(
            lambda path: {words[name]: value for name, value in studio.again(path).items() if name in words},
            chosen,
            list(words.values()),
            queue=False,
            api_visibility="private",
        )
        start.click(studio.onto_canvas, chosen, words["canvas"], queue=False, api_visibility="private")
    return page


def _unread(page: gr.Blocks, session: str) -> int:
    messages = page._queue.pending_messages_per_session.get(session)
    return 0 if messages is None else int(messages.qsize())


def _by_name(draw: Callable[..., Iterator[Any]], fields: Mapping[str, Any], history: gr.State) -> Callable:
    """A listener that Gradio gives values by component, and that gives them to `draw` by name."""

    def listener(values: dict, request: gr.Request) -> Iterator[Any]:
        yield from draw({name: values[field] for name, field in fields.items()}, values[history], request)

    return listener


def _draw_tab(spec: PipelineSpec) -> tuple[dict[str, Any], gr.Button]:
    """The fields of `Studio.draw`; one that has the name of an option of `SamplingOptions` is that option."""
    fields: dict[str, Any] = {"prompt": _prompt("prompt")}
    fields["negative"] = gr.Textbox(label="Negative prompt · 反向提示词", max_length=MAX_TEXT, elem_id="negative")
    button = gr.Button("Draw · 绘制", variant="primary", elem_id="draw")
    with gr.Row():
        fields["size"] = gr.Dropdown(list(spec.sizes), value=spec.default_size, label="Size · 尺寸", elem_id="size")
        fields["styles"] = gr.CheckboxGroup(
            list(spec.styles),
            value=list(spec.default_styles),
            label="Styles · 风格",
            visible=bool(spec.styles),
            elem_id="styles",
        )
        fields["weight"] = gr.Slider(
            0, 5, 1, step=0.1, label="Their weight · 风格权重", visible=bool(spec.styles), elem_id="weight"
        )
    with gr.Row():
        fields["guidance"] = gr.Slider(
            1, 20, spec.default_guidance, step=0.1, label="Guidance · 引导强度", elem_id="guidance"
        )
        fields["steps"] = _steps("steps")
        fields["sampler"] = gr.Dropdown(list(SAMPLERS), value="euler", label="Sampler · 采样器", elem_id="sampler")
    with gr.Row():
        fields["random"], fields["seed"] = _seeds("seed")
        fields["n"] = gr.Slider(1, MAX_PICTURES, 1, step=1, label="Pictures · 张数", precision=0, elem_id="n")
    with gr.Accordion("From a picture; brush what to draw anew · 图生图 / 局部重绘", open=False):
        fields["canvas"] = _canvas("canvas", "A picture · 图片", CANVAS, 24, "#ff3366")
        fields["strength"] = gr.Slider(0.05, 1, 0.6, step=0.05, label="How far from it · 重绘幅度", elem_id="strength")
    return fields, button


def _coop_tab(together: CoopDraw) -> tuple[dict[str, Any], gr.Button]:
    """The fields of `Studio.draw_together`."""
    output = together.config.output
    other, influence = next(iter(together.config.weights[output].items()))
    gr.Markdown(f"{' + '.join(member.model for member in together.config.members.values())}: {output} ← {other}")
    fields: dict[str, Any] = {"prompt": _prompt("coop-prompt")}
    button = gr.Button("Draw together · 协同绘制", variant="primary", elem_id="coop-draw")
    sheet = {"value": Image.new("RGB", SHEET, "white"), "fixed_canvas": True, "visible": together.looks}
    fields["lines"] = _canvas("lines", "Lines, dark on white · 线稿（白底深色）", SHEET, 3, "#000000", **sheet)
    fields["share"] = gr.Slider(
        0, 1, influence.share, step=0.05, label=f"d: share of {other} · {other} 的占比", elem_id="share"
    )
    with gr.Row():
        fields["steps"] = _steps("coop-steps")
        fields["random"], fields["seed"] = _seeds("coop-seed")
    return fields, button


class BodyLimit:
    """ASGI: a request of more than MAX_BODY bytes is answered with 413, and not read to its end.

    So is an upload while the folder of uploads holds MAX_UPLOADS bytes: with 507.
    """

    def __init__(self, app: Callable, uploads: Path) -> None:
        self.app, self.uploads = app, uploads

    async def __call__(self, scope: Any, receive: Callable, send: Callable) -> None:
        """Serve one request."""
        said = dict(scope.get("headers", ())).get(b"content-length", b"0")
        if scope["type"] == "http" and (not said.isdigit() or int(said) > MAX_BODY):
            await _refuse(send, 413, f"at most {MAX_BODY} bytes are read")
            return
        if scope.get("path", "").endswith("/upload") and _bytes_in(self.uploads) > MAX_UPLOADS:
            await _refuse(send, 507, "the folder of uploads is full; try again later")
            return
        seen = 0

        async def counted() -> Any:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            return message if seen <= MAX_BODY else {"type": "http.disconnect"}  # longer than it said

        await self.app(scope, counted, send)


async def _refuse(send: Callable, status: int, line: str) -> None:
    await send({"type": "http.response.start", "status": status, "headers": [(b"connection", b"close")]})
    await send({"type": "http.response.body", "body": line.encode()})


def _bytes_in(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def serve(page: gr.Blocks, host: str, port: int, waiting: int, auth: Optional[tuple[str, str]] = None) -> str:
    """Open a page at http://host:port and return its address; at most `waiting` drawings wait in the queue.

    `auth`: the user and the password that it asks for.

    Raises:
        UserError: the port is taken, or the host is none of this machine's.
    """
    Image.MAX_IMAGE_PIXELS = MAX_PIXELS // 2  # Pillow refuses twice as many
    page.queue(max_size=waiting, default_concurrency_limit=1, api_open=False)
    try:
        _, address, _ = page.launch(
            server_name=host,
            server_port=port,
            share=False,
            quiet=True,
            prevent_thread_lock=True,
            show_error=True,
            max_file_size=MAX_UPLOAD,
            footer_links=[],
            ssr_mode=False,
            css=CSS,
            auth=auth,
            app_kwargs={"middleware": [Middleware(BodyLimit, uploads=Path(page.GRADIO_CACHE))]},
        )
    except OSError as error:
        raise UserError(f"{host}:{port}: the page cannot be served there ({error}); choose another --port") from None
    return str(address)


def _prompt(name: str) -> gr.Textbox:
    return gr.Textbox(
        label="Prompt · 提示词",
        placeholder="一只狐狸, 3D风格 · a red apple on a yellow background",
        max_length=MAX_TEXT,
        lines=2,
        elem_id=name,
    )


def _canvas(name: str, label: str, size: tuple[int, int], brush: int, color: str, **more: Any) -> gr.ImageEditor:
    return gr.ImageEditor(
        type="pil",
        label=label,
        sources=("upload", "clipboard"),
        transforms=(),
        layers=False,
        canvas_size=size,
        brush=gr.Brush(default_size=brush, colors=[color], color_mode="fixed"),
        elem_id=name,
        **more,
    )


def _steps(name: str) -> gr.Slider:
    return gr.Slider(1, MAX_STEPS, 30, step=1, label="Steps · 步数", precision=0, elem_id=name)


def _seeds(name: str) -> tuple[gr.Checkbox, gr.Number]:
    number = gr.Number(0, label="Seed · 种子", precision=0, minimum=0, maximum=MAX_SEED, elem_id=name)
    return gr.Checkbox(True, label="Random · 随机", elem_id=f"{name}-random"), number
