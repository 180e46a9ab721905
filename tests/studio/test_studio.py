"""The studio in a real browser: Debian's Chromium, the shipped models, the command as a user starts it."""

from __future__ import annotations

import base64
import http.client
import io
import json
import re
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mindpangu.infer.drawing import BatchState
from mindpangu.selftest.ranks import free_port
from mindpangu.studio.worker import Preview, Worker

gradio = pytest.importorskip("gradio", reason="needs the extra mindpangu[studio]")
DONE, COMING = "#pictures .pictures:not(.coming) img", "#pictures .pictures.coming img"
PICTURES = 60_000  # milliseconds; the first drawing of a shape compiles its graphs


# ---- The thread that draws ------------------------------------------------------------------------------------------


class Pencil:
    """Stands for a pipeline: twenty steps, each of which waits until the test lets it go on."""

    def __init__(self):
        self.allowed = threading.Semaphore(0)

    def __call__(self, on_step):
        from mindspore import Tensor

        for step in range(20):
            self.allowed.acquire()
            picture = Tensor(np.zeros((1, 3, 4, 4), np.float32))
            if on_step(BatchState(step, 20, 1.0, picture, picture, lambda x: x)) is False:
                return [f"stopped at {step}"]
        return ["whole"]


def test_the_worker_draws_one_thing_after_another_and_stops_when_told():
    worker = Worker(Pencil)
    pencil = worker.models()
    first, second = (worker.draw(lambda models, on_step: models(on_step)) for _ in range(2))
    pencil.allowed.release()
    events = iter(first)
    preview = next(events)
    assert isinstance(preview, Preview) and (preview.step, preview.steps) == (1, 20)
    assert preview.images[0].size == (4, 4)
    first.stop()
    pencil.allowed.release()
    assert [event for event in events if not isinstance(event, Preview)] == [["stopped at 1"]]
    for _ in range(20):
        pencil.allowed.release()
    assert [event for event in second if not isinstance(event, Preview)] == [["whole"]]


def test_the_worker_hands_errors_to_who_asked_and_goes_on():
    worker = Worker(lambda: 3)
    assert worker.models() == 3
    with pytest.raises(ZeroDivisionError):
        list(worker.draw(lambda models, on_step: models / 0))
    assert list(worker.draw(lambda models, on_step: [models])) == [[3]]

    def absent():
        raise ValueError("no such model")

    with pytest.raises(ValueError, match="no such model"):
        Worker(absent).models()


# ---- The page -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """The command's page; where it began, for tests that it ends there too."""
    log = tmp_path_factory.mktemp("studio") / "log"
    port = free_port()
    command = [str(Path(sys.executable).with_name("mindpangu")), "studio", "--port", str(port), "--queue", "2"]
    with log.open("w") as out, subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT) as process:
        try:
            deadline = time.monotonic() + 120
            while "Ctrl+C" not in log.read_text():
                assert process.poll() is None and time.monotonic() < deadline, log.read_text()
                time.sleep(0.2)
            assert f"http://127.0.0.1:{port}" in log.read_text()
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()


@pytest.fixture
def page(chromium, address):
    """A new visitor; that the page asks nobody else for anything is checked at the end."""
    context = chromium.new_context(viewport={"width": 1280, "height": 1000}, locale="en")
    page, elsewhere = context.new_page(), []
    own = (address, "data:", "blob:", address.replace("http", "ws", 1))
    page.on("request", lambda asked: None if asked.url.startswith(own) else elsewhere.append(asked.url))
    page.goto(address)
    page.wait_for_selector("button#draw")
    yield page
    assert not elsewhere
    context.close()


@pytest.fixture(scope="module")
def screenshots(request):
    """screenshots(page, name): kept where --screenshots says, if it does."""
    folder = request.config.getoption("--screenshots")

    def keep(page, name):
        if folder:
            Path(folder).mkdir(parents=True, exist_ok=True)
            page.screenshot(path=Path(folder) / f"{name}.png", full_page=True)

    return keep


def fetched(page, url):
    """What the page shows under a URL, as a picture with its settings."""
    content = base64.b64decode(url.split(",", 1)[1]) if url.startswith("data:") else page.request.get(url).body()
    picture = Image.open(io.BytesIO(content))
    picture.load()
    return picture, json.loads(picture.info["mindpangu"])


def drawn(page, button="button#draw"):
    """Press, wait for a preview, then for the picture."""
    pressed = time.monotonic()
    page.click(button)
    page.wait_for_selector(COMING, timeout=PICTURES)
    print(f"first preview {time.monotonic() - pressed:.2f} s after {button} was pressed")
    page.wait_for_selector(DONE, timeout=PICTURES)
    return fetched(page, page.get_attribute(DONE, "src"))


def setting(page, field, value):
    page.fill(f"#{field} input[type=number]", str(value))
    page.press(f"#{field} input[type=number]", "Tab")


def test_words_become_a_picture_that_can_be_stopped_and_drawn_again(page, screenshots):
    page.fill("#prompt textarea", "一只狐狸, 3D风格")
    picture, said = drawn(page)
    assert picture.size == (128, 128) and np.asarray(picture).std() > 20
    assert said["prompt"] == "一只狐狸, 3D风格" and said["steps"] == 30 and said["model"] == "emoji-128"
    assert page.input_value("#seed input") == str(said["seed"])

    setting(page, "steps", 100)
    page.click("button#draw")
    page.wait_for_selector(COMING, timeout=PICTURES)
    page.click("button#stop")
    page.wait_for_selector(DONE, timeout=PICTURES)
    _, stopped = fetched(page, page.get_attribute(DONE, "src"))
    assert 1 <= stopped["stopped_after"] < 100
    assert f"stopped after step · 停在第 {stopped['stopped_after']} 步" in page.input_value("#progress textarea")

    kept = page.locator("#history button.thumbnail-item")
    assert kept.count() == 2
    file, carried = fetched(page, kept.nth(1).locator("img").get_attribute("src"))
    assert carried == said and np.array_equal(np.asarray(file), np.asarray(picture))
    kept.nth(1).click()  # the first one drawn
    page.wait_for_function("document.querySelector('#settings textarea').value.includes('Seed')")
    assert f"Seed: {said['seed']}" in page.input_value("#settings textarea")
    page.click("#again")
    page.wait_for_function("document.querySelector('#steps input').value == 30")
    again, _ = drawn(page)
    np.testing.assert_array_equal(np.asarray(again), np.asarray(picture))
    screenshots(page, "draw")

    page.fill("#prompt textarea", "")
    page.click("button#draw")
    error = page.wait_for_selector(".toast-body.error")
    assert "prompt 1 is empty; say what to draw" in error.inner_text()


def test_only_what_was_brushed_is_drawn_anew(page, screenshots, tmp_path):
    Image.new("RGB", (128, 128), (40, 120, 220)).save(tmp_path / "blue.png")
    page.fill("#prompt textarea", "a red apple")
    page.click("button:has-text('局部重绘')")
    canvas = page.locator("#canvas canvas").first
    canvas.wait_for()
    page.wait_for_timeout(1000)  # the editor opens with a movement
    page.set_input_files("#canvas input[type=file]", tmp_path / "blue.png")
    page.wait_for_selector("#canvas button[aria-label='Brush'].highlight")
    page.wait_for_timeout(1000)  # it fits the picture into its frame
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    stroke(page, [(x - 20, y), (x + 20, y), (x, y + 15), (x, y - 15)])
    setting(page, "strength", 1)
    picture, said = drawn(page)
    screenshots(page, "inpaint")
    changed = (np.abs(np.asarray(picture, int) - (40, 120, 220)) > 8).any(-1)
    assert "init_image" in said and 0.005 < changed.mean() < 0.5
    assert not changed[:8].any() and not changed[-8:].any()


def test_lines_and_words_are_drawn_together(page, screenshots):
    page.click("button[role=tab]:has-text('Coop')")
    page.fill("#coop-prompt textarea", "a red apple, 3D style")
    page.click("button#coop-draw")
    assert "draw some lines first" in page.wait_for_selector(".toast-body.error").inner_text()
    canvas = page.locator("#lines canvas").first
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    x, y, r = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2, box["height"] / 4
    stroke(page, [(x + r * np.cos(a), y + r * np.sin(a)) for a in np.linspace(0, 2 * np.pi, 24)])
    setting(page, "share", 0.8)
    picture, said = drawn(page, "button#coop-draw")
    screenshots(page, "coop")
    assert picture.size == (128, 128) and said["coop"]["weights"]["text"]["line"]["share"] == 0.8
    assert said["controls"]["line"] and said["model"] == "emoji-128 + openmoji-line"


def stroke(page, points):
    page.mouse.move(*points[0])
    page.mouse.down()
    for point in points[1:]:
        page.mouse.move(*point, steps=3)
    page.mouse.up()
    page.wait_for_timeout(500)  # the editor sends what was drawn


def test_no_file_of_the_server_can_be_fetched_or_named(address, tmp_path):
    secret = tmp_path / "secret.txt"
    secret.write_text("secret")
    outside = [str(secret), "/etc/passwd", str(Path(__file__).resolve()), "README.md", "../../etc/passwd"]
    for path in outside:
        for route in ("/gradio_api/file=", "/file=", "/gradio_api/file=%2F.."):
            with pytest.raises(urllib.error.HTTPError) as refused:
                urllib.request.urlopen(f"{address}{route}{urllib.request.quote(path)}", timeout=10)
            assert refused.value.code in (403, 404, 405)
    config = json.loads(urllib.request.urlopen(f"{address}/config", timeout=10).read())
    assert not config.get("api_open", False) and not re.search(r"/etc/|site-packages", json.dumps(config["components"]))
    picture = tmp_path / "picture.png"
    Image.new("RGB", (128, 128)).save(picture)
    for meta in ({}, {"meta": {"_type": "gradio.FileData"}}):
        canvas = {"background": {"path": str(picture), **meta}, "layers": [], "composite": None}
        asked = {"prompt": "a fox", "size": "64x64", "steps": 1}
        assert succeeds(called(address, config, "draw", asked))
        assert not succeeds(called(address, config, "draw", {**asked, "canvas": canvas}))


def test_what_is_out_of_bounds_is_refused_by_the_server(address):
    config = json.loads(urllib.request.urlopen(f"{address}/config", timeout=10).read())
    asked = {"prompt": "a fox", "random": False, "size": "64x64", "steps": 1}
    assert succeeds(called(address, config, "draw", asked))
    for change in (
        {"steps": 10**6}, {"n": 500}, {"seed": -1}, {"size": "9999x9999"}, {"prompt": "x" * 5000}, {"prompt": None},
        {"styles": ["oil"]}, {"weight": 1e9}, {"guidance": -5}, {"strength": 2}, {"sampler": "fastest"},
    ):  # fmt: skip
        assert not succeeds(called(address, config, "draw", {**asked, **change})), change


def test_a_body_that_is_too_large_is_refused_unread(address):
    for headers in ({"Content-Length": str(200_000_000)}, {"Content-Length": "many"}):
        connection = http.client.HTTPConnection(address.removeprefix("http://"), timeout=10)
        connection.putrequest("POST", "/gradio_api/queue/join", skip_accept_encoding=True)
        for name, value in headers.items():
            connection.putheader(name, value)
        connection.endheaders(b"{")
        assert connection.getresponse().status in (400, 413)
        connection.close()


def test_the_queue_has_an_end(address):
    """Two may wait; who comes when they do is told so, and nobody is forgotten."""
    config = json.loads(urllib.request.urlopen(f"{address}/config", timeout=10).read())
    told = []

    def press():
        try:
            told.append(succeeds(called(address, config, "draw", {"prompt": "a fox"})))
        except urllib.error.HTTPError as error:
            told.append(f"{error.code} {error.read().decode()}")

    threads = [threading.Thread(target=press) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    full = [answer for answer in told if answer is not True]
    assert 1 <= len(full) <= 4 and all(answer.startswith("503") and "full" in answer for answer in full)


def test_who_never_listens_is_not_drawn_for(address):
    config = json.loads(urllib.request.urlopen(f"{address}/config", timeout=10).read())
    absent = joined(address, config, "draw", {"prompt": "a fox", "steps": 100, "n": 4})
    assert succeeds(called(address, config, "draw", {"prompt": "a fox", "steps": 1}))
    assert "stopped after step" in answers_to(address, absent)


def test_uploads_have_a_total(tmp_path, monkeypatch):
    from mindpangu.studio import page

    monkeypatch.setattr(page, "MAX_UPLOADS", 10)
    (tmp_path / "visitor").mkdir()

    def upload():
        said = []

        async def send(message):
            said.append(message)

        async def app(scope, receive, send):
            await send({"status": 200})

        scope = {"type": "http", "path": "/gradio_api/upload", "headers": ()}
        with pytest.raises(StopIteration):  # the whole of it, since nothing here has to be waited for
            page.BodyLimit(app, tmp_path)(scope, None, send).send(None)
        return said[0]["status"]

    (tmp_path / "visitor" / "a.png").write_bytes(bytes(10))
    assert upload() == 200
    (tmp_path / "visitor" / "b.png").write_bytes(bytes(1))
    assert upload() == 507


def succeeds(answers):
    return '"success":false' not in answers.replace(" ", "") and "process_completed" in answers


def called(address, config, button, changes):
    """Press a button as a program would, with the page's values but for some; the server's answers as text."""
    return answers_to(address, joined(address, config, button, changes))


def joined(address, config, button, changes):
    """The session of a visitor who has pressed, and does not listen yet."""
    names = {c["id"]: c["props"].get("elem_id") for c in config["components"]}
    press = next(d for d in config["dependencies"] if any(names[t[0]] == button for t in d["targets"]))
    values = {c["id"]: c["props"].get("value") for c in config["components"]}
    fields = {"random" if names[i] == "seed-random" else names[i]: i for i in press["inputs"]}
    assert set(changes) <= set(fields)
    data = [changes.get(name, values[i]) for name, i in fields.items()]
    body = {"data": data, "fn_index": press["id"], "session_hash": f"test{time.monotonic_ns()}"}
    headers = {"Content-Type": "application/json"}
    asked = urllib.request.Request(f"{address}/gradio_api/queue/join", json.dumps(body).encode(), headers)
    urllib.request.urlopen(asked, timeout=10).read()
    return body["session_hash"]


def answers_to(address, session):
    """What the server says to a visitor, to its end."""
    answers, url = "", f"{address}/gradio_api/queue/data?session_hash={session}"
    with urllib.request.urlopen(url, timeout=60) as events:
        for line in events:
            answers += line.decode()
            if "process_completed" in answers or "unexpected_error" in answers:
                return answers
    return answers


def test_without_its_packages_or_its_port_it_ends_in_one_line(monkeypatch, tmp_path):
    from typer.testing import CliRunner

    from mindpangu.cli import studio
    from mindpangu.cli.app import app
    from mindpangu.errors import UserError
    from mindpangu.studio.page import serve

    with monkeypatch.context() as patch:
        patch.setattr(studio, "find_spec", lambda name: None)
        done = CliRunner().invoke(app, ["studio"])
        assert isinstance(done.exception, UserError) and "pip install 'mindpangu[studio]'" in str(done.exception)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)  # which `serve` lowers
    with gradio.Blocks(analytics_enabled=False) as nothing:
        gradio.Markdown("nothing")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(UserError, match=r"the page cannot be served there .*; choose another --port"):
            serve(nothing, "127.0.0.1", taken.getsockname()[1], 1)
    recipe = tmp_path / "alone.yaml"
    recipe.write_text("members: {a: {model: emoji-128}}\noutput: a\nweights: {}\n")
    done = CliRunner().invoke(app, ["studio", "--coop", str(recipe)])
    assert isinstance(done.exception, UserError) and "nobody influences the output a" in str(done.exception)
