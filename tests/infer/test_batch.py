"""Offline batches: rows of all kinds, bad ones left out, and every picture once whatever is killed."""

from __future__ import annotations

import csv
import json
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from mindpangu.data.shards import Shard
from mindpangu.errors import UserError
from mindpangu.infer.batch import BatchModels, Names, Run, finished, make_plans
from mindpangu.infer.image_file import encoded, read_settings, redraw
from mindpangu.infer.pipeline import PanGuDraw
from mindpangu.infer.prompt_file import Row, read_rows
from mindpangu.parallel.ranks import Ranks

DEFAULTS = {"steps": 1}
ROWS = [
    {"prompt": "a red bus"},
    {"prompt": "一只狐狸", "seed": 3, "n": 3},
    {"prompt": "a fox", "size": "48x32"},
    {"prompt": "a dog", "file": "animals/dog.png", "styles": {"noto": 2.0}},
    {"prompt": "a cat", "seed": 9},
]


@pytest.fixture(scope="module")
def model(model_folder):
    return PanGuDraw.from_pretrained(str(model_folder))


@pytest.fixture(scope="module")
def models(model):
    return BatchModels(model, "tiny")


def written(folder, rows, name="prompts.jsonl"):
    path = folder / name
    path.write_text("".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows), encoding="utf-8")
    return path


def planned(path, models, suffix=".png", per_shard=None):
    (plan,) = make_plans(path, DEFAULTS, models, 2, suffix, per_shard)
    return plan


def contents(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.suffix in (".png", ".tar", ".jpg", ".webp")
    }


@pytest.fixture(scope="module")
def quiet(models, tmp_path_factory):
    """The rows, and what an undisturbed run draws of them."""
    from tests.conftest import without_graphs

    folder = tmp_path_factory.mktemp("quiet")
    path, out = written(folder, ROWS), folder / "out"
    with without_graphs():
        assert sum(Run(planned(path, models), out, 2, Ranks())(models)) == 7
    return path, contents(out)


def test_each_picture_is_what_generate_draws_of_its_seed(quiet, model, uncompiled):
    """Nearly: what is drawn beside it changes the rounding of the nets, not the noise."""
    _, files = quiet
    assert sorted(files) == [
        "0000001.png", "0000002-000.png", "0000002-001.png", "0000002-002.png", "0000003.png", "0000005.png",
        "animals/dog.png",
    ]  # fmt: skip
    alone = model("一只狐狸", seed=3, n=3, steps=1)
    for index, drawing in enumerate(alone):
        from io import BytesIO

        with Image.open(BytesIO(files[f"0000002-{index:03}.png"])) as picture:
            assert np.abs(np.asarray(picture).astype(int) - np.asarray(drawing.image)).max() <= 2
            assert json.loads(picture.info["mindpangu"])["seed"] == 3 + index


def dying_after(pictures, write):
    """A writer that ends the process, by an exception, instead of writing the picture after so many."""
    left = [pictures]

    def dying(target, content):
        if Path(target).suffix == ".png":
            if left[0] == 0:
                raise KeyboardInterrupt
            left[0] -= 1
        write(target, content)

    return dying


def drew_all(plan, out, models, ranks):
    """Whether so many processes, one after the other, draw all that is left; none draws what was finished."""
    try:
        for rank in range(ranks):
            before = finished(out)
            run = Run(plan, out, 2, Ranks(rank, ranks))
            assert not set(before) & {unit.number for unit in run.left}
            for _ in run(models):
                pass
    except KeyboardInterrupt:
        return False
    return True


def tear_journal(out):
    """As a kill within a line leaves it."""
    with (out / "journal-0.jsonl").open("a") as file:
        file.write('{"unit": 9')


def test_killed_anywhere_and_with_other_ranks_the_bytes_are_the_same(quiet, models, tmp_path, uncompiled, monkeypatch):
    """A kill is an exception out of any write, also in the middle of a journal's line; ranks change between."""
    from mindpangu.infer import batch

    path, wanted = quiet
    plan, out, rng = planned(path, models), tmp_path / "out", random.Random(1)
    write, kills = batch.write_atomically, 0
    while kills <= 12:
        monkeypatch.setattr(batch, "write_atomically", dying_after(rng.randint(0, 2), write))
        if drew_all(plan, out, models, rng.choice([1, 2, 3])):
            break
        kills += 1
        if kills % 2:
            tear_journal(out)
    monkeypatch.setattr(batch, "write_atomically", write)
    assert drew_all(plan, out, models, 1)
    assert kills >= 3
    assert contents(out) == wanted
    assert len(finished(out)) == len(plan.units)


def test_blocks_of_rows_are_planned_one_after_the_other(models, tmp_path, uncompiled, monkeypatch):
    """Names, units, errors and the manifest go through all of them, and each is drawn before the next is planned."""
    from mindpangu.infer import batch

    monkeypatch.setattr(batch, "BLOCK", 2)
    rows = [*ROWS, {"prompt": "again", "file": "0000001"}, {"prompt": "a bus", "seed": 4}]
    path, out = written(tmp_path, rows), tmp_path / "out"
    arguments = (DEFAULTS, models, 2, ".png", None)
    for number, plan in enumerate(make_plans(path, *arguments)):
        assert plan.number == number and plan.last == (number == 3)
        assert sum(Run(plan, out, 2, Ranks())(models)) == plan.pictures
    assert len(contents(out)) == 8 and number == 3 and batch.gone(out) == 0
    listed = [json.loads(line) for line in (out / "manifest.jsonl").read_text("utf-8").splitlines()]
    assert sorted(one["file"] for one in listed) == sorted(contents(out))
    assert [one["seed"] for one in listed if one["line"] == 2] == [3, 4, 5]
    assert [json.loads(line)["line"] for line in (out / "errors.jsonl").read_text().splitlines()] == [6]
    plans = list(make_plans(path, *arguments))
    assert [unit.number for plan in plans for unit in plan.units] == list(finished(out))
    assert [Run(plan, out, 2, Ranks()).left for plan in plans] == [[]] * 4
    (out / listed[-1]["file"]).unlink()
    assert batch.gone(out) == 1
    changed = list(make_plans(written(tmp_path, [*rows[:-1], ROWS[0]]), *arguments))
    assert [plan.digest for plan in changed[:3]] == [plan.digest for plan in plans[:3]]
    with pytest.raises(UserError, match="holds a run of other prompts"):
        Run(changed[3], out, 2, Ranks())


@given(st.lists(st.text("aA.b", min_size=1, max_size=3), max_size=20))
def test_a_name_is_given_once(names):
    """Neither case nor dots make another; of several all are taken, or none."""
    taken, given_out = Names(), set()
    for name in names:
        key = name.casefold().replace(".", "_")
        assert (taken.take([f"{name}-1.png", f"{name}.png"]) is None) == (key not in given_out)
        given_out.add(key)


def test_shards_hold_the_same_pictures_ready_for_training(quiet, models, tmp_path, uncompiled):
    path, wanted = quiet
    plan = planned(path, models, per_shard=3)
    assert sum(Run(plan, tmp_path / "out", 2, Ranks())(models)) == 7
    shards = [Shard(one) for one in sorted((tmp_path / "out").glob("*.tar"))]
    samples = [shard.read(entry) for shard in shards for entry in shard.entries]
    assert len(shards) == len(plan.units)
    assert not any(shard.bad for shard in shards)
    assert sorted(s.captions[0] for s in samples) == sorted(["a red bus", *["一只狐狸"] * 3, "a fox", "a dog", "a cat"])
    assert len(wanted) == len(samples)


def test_bad_rows_are_listed_and_the_rest_is_drawn(models, tmp_path, uncompiled):
    (tmp_path / "broken.png").write_bytes(b"no picture")
    rows = [
        {"prompt": "a fox"},
        {"prompt": "  "},
        {"size": "32x32"},
        {"prompt": "a", "size": "33x7"},
        {"prompt": "a", "init": str(tmp_path / "broken.png")},
        {"prompt": "a", "file": "../../etc/passwd"},
        {"prompt": "a", "file": "/etc/passwd"},
        {"prompt": "a", "file": "..\\..\\x.png"},
        {"prompt": "a", "colour": "red"},
        {"prompt": "a", "seed": -1},
        {"prompt": "a", "n": 0},
        {"prompt": "a", "file": "0000001.png"},
        {"prompt": "a", "styles": {"cubist": 1.0}},
        ["a"],
    ]
    plan = planned(written(tmp_path, rows), models)
    assert [line for line, _ in plan.bad] == list(range(2, 15))
    reasons = dict(plan.bad)
    for line, words in {
        2: "prompt 1 is empty", 3: "prompt: missing", 4: "size 33x7 cannot be drawn", 5: "not a readable picture",
        6: "leaves the output folder", 8: "leaves the output folder", 9: "colour: unknown key", 10: "seed is -1",
        11: "n is 0", 12: "another row's already", 13: "style 'cubist' is unknown", 14: "not an object",
    }.items():  # fmt: skip
        assert words in reasons[line], reasons[line]
    assert sum(Run(plan, tmp_path / "out", 2, Ranks())(models)) == 1
    listed = [json.loads(line) for line in (tmp_path / "out" / "errors.jsonl").read_text().splitlines()]
    assert [one["line"] for one in listed] == list(range(2, 15))
    assert {p.name for p in tmp_path.iterdir()} == {"out", "broken.png", "prompts.jsonl"}


@pytest.fixture(scope="module")
def recipe(model_folder, line_model, tmp_path_factory):
    """A recipe's file, and two drawings for its ControlNet."""
    folder = tmp_path_factory.mktemp("recipe")
    path = folder / "text_line.yaml"
    path.write_text(
        f"members:\n  text: {{model: '{model_folder}'}}\n"
        f"  line: {{model: '{line_model}', controls: [{{net: '{line_model}', lines: true}}]}}\n"
        "output: text\nweights: {text: {line: {share: 0.5}}}\n",
        encoding="utf-8",
    )
    for name, box in (("round", (4, 4, 28, 28)), ("flat", (2, 14, 30, 18))):
        picture = Image.new("L", (32, 32), 255)
        ImageDraw.Draw(picture).ellipse(box, outline=0, width=2)
        picture.save(folder / f"{name}.png")
    return path


def test_a_row_may_be_drawn_by_several_models(model_folder, recipe, models, tmp_path, uncompiled):
    """Rows of one recipe are drawn together, each looking at its own drawing; each is what `coop` draws alone."""
    from mindpangu.config import load
    from mindpangu.infer.coop import CoopConfig, CoopDraw

    lines = {name: str(recipe.parent / f"{name}.png") for name in ("round", "flat")}
    rows = [
        {"prompt": "a fox", "coop": str(recipe), "line": lines["round"], "seed": 3},
        {"prompt": "a bus"},
        {"prompt": "a fox", "coop": str(recipe), "line": lines["flat"], "seed": 3},
        {"prompt": "a fox", "coop": str(recipe)},
        {"prompt": "a fox", "coop": str(recipe), "line": lines["flat"], "guidance": 2},
        {"prompt": "a fox", "line": lines["flat"]},
        {"prompt": "a fox", "coop": str(recipe), "line": str(recipe)},
        {"prompt": "a fox", "coop": str(tmp_path / "none.yaml"), "line": lines["flat"]},
    ]
    plan = planned(written(tmp_path, rows), BatchModels(models.model, str(model_folder)))
    assert [(line, reason.split("; ")[-1]) for line, reason in plan.bad] == [
        (4, "one must be given with line, not 0"),
        (5, "the recipe says what its members are asked for"),
        (6, "line 6: line needs coop, the recipe whose members look at it"),
        (7, "JPEG, PNG, WEBP, BMP, TIFF, GIF, AVIF are read"),
        (8, plan.bad[4][1]),
    ]
    assert "not a readable picture" in plan.bad[3][1] and "none.yaml" in plan.bad[4][1]
    assert [[picture.file for batch in unit.batches for picture in batch] for unit in plan.units] == [
        ["0000001.png", "0000003.png"], ["0000002.png"],
    ]  # fmt: skip
    assert sum(Run(plan, tmp_path / "out", 2, Ranks())(BatchModels(models.model, str(model_folder)))) == 3
    for name, file in (("round", "0000001.png"), ("flat", "0000003.png")):
        together = CoopDraw(load(recipe, CoopConfig), models={str(model_folder): models.model})
        alone = together(["a fox"], lines=[lines[name]], seed=3, steps=1)[0]
        with Image.open(tmp_path / "out" / file) as picture:
            assert np.abs(np.asarray(picture, int) - np.asarray(alone.image, int)).max() <= 1
        settings = read_settings(tmp_path / "out" / file)
        assert settings["controls"] == alone.settings["controls"] and settings["digest"] == alone.settings["digest"]
        assert settings["model"] == "tiny + line" and settings["size"] == "32x32"
    changed = recipe.read_text(encoding="utf-8").replace("0.5", "0.4")
    other = tmp_path / "other" / recipe.name
    other.parent.mkdir()
    other.write_text(changed, encoding="utf-8")
    digests = [
        planned(written(tmp_path, [{**rows[0], "coop": str(path)}], "one.jsonl"), models).digest
        for path in (recipe, other)
    ]
    assert digests[0] != digests[1]  # a recipe that changed makes another run


def test_one_run_at_a_time_writes_a_folder(model_folder, tmp_path):
    """Without msrun too: the second one ends in one line, and the first goes on."""
    from typer.testing import CliRunner

    from mindpangu.checkpoint.store import only_writer
    from mindpangu.cli.app import app

    (tmp_path / "out").mkdir()
    with only_writer(tmp_path / "out"):
        arguments = [str(written(tmp_path, ROWS[:1])), "--model", str(model_folder), "--out", str(tmp_path / "out")]
        done = CliRunner().invoke(app, ["batch", *arguments])
    assert isinstance(done.exception, UserError) and "is writing there; wait for it" in str(done.exception)
    assert not (tmp_path / "out" / "run.json").exists()


def test_a_folder_holds_one_run(models, tmp_path):
    first = planned(written(tmp_path, ROWS[:1]), models)
    Run(first, tmp_path / "out", 2, Ranks())
    other = planned(written(tmp_path, ROWS[:2], "other.jsonl"), models)
    with pytest.raises(UserError, match="holds a run of other prompts"):
        Run(other, tmp_path / "out", 2, Ranks())


def test_the_same_rows_in_three_forms(tmp_path):
    rows = [{"prompt": "a fox, red", "seed": 4}, {"prompt": '007, "bond"', "seed": 0}]
    with (tmp_path / "p.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, ["prompt", "seed", "styles"])
        table.writeheader()
        table.writerows(rows)
    (tmp_path / "p.txt").write_text('a fox, red\n\n007, "bond"\n', encoding="utf-8")
    of_table = [row for _, row in read_rows(tmp_path / "p.csv", {})]
    assert of_table == [Row(**row) for row in rows]
    assert [row for _, row in read_rows(written(tmp_path, rows), {})] == of_table
    of_text = list(read_rows(tmp_path / "p.txt", {"seed": 4}))
    assert of_text == [(1, Row(prompt="a fox, red", seed=4)), (3, Row(prompt='007, "bond"', seed=4))]
    (tmp_path / "p.csv").write_text("text\nx\n")
    with pytest.raises(UserError, match="one of them is prompt"):
        list(read_rows(tmp_path / "p.csv", {}))


@settings(max_examples=500, deadline=None)
@given(
    st.one_of(st.binary(max_size=80), st.text(max_size=80).map(str.encode)), st.sampled_from([".txt", ".csv", ".jsonl"])
)
def test_no_row_is_fatal(tmp_path_factory, data, suffix):
    """Whatever a file holds: rows, reasons, or one line on the whole file."""
    path = tmp_path_factory.mktemp("fuzz") / f"p{suffix}"
    path.write_bytes((b"prompt,seed,styles\n" if suffix == ".csv" else b"") + data)
    try:
        for line, row in read_rows(path, {}):
            assert line >= 1
            assert isinstance(row, (Row, str))
    except UserError as error:
        assert "\n" not in str(error)


def test_five_hundred_strange_rows_none_fatal(models, tmp_path, uncompiled):
    """Each is planned or listed, and what is planned can be drawn."""
    rng = random.Random(4)
    strange = [
        "", " ", "a fox", "一只狐狸", "\0", "\ud800", "x" * 5000, "../x", "a/b.png/c", "con:", ".", "a.b.c", "é" * 300,
        -1, 0, 1, 3, 10**30, 1e400, 0.5, float("nan"), True, None, [], {}, {"noto": 1}, {"noto": "x"}, ["a"],
        "32x32", "48x32",
        "9x9", "euler", "karras", str(tmp_path), str(tmp_path / "absent.png"),
    ]  # fmt: skip
    keys = [
        "coop",
        "line",
        "file",
        "n",
        "seed",
        "size",
        "steps",
        "guidance",
        "styles",
        "negative",
        "sampler",
        "init",
        "mask",
        "strength",
    ]
    rows = []
    for _ in range(500):
        row = {key: rng.choice(strange) for key in rng.sample(keys, rng.choice([0, 0, 1, 1, 2, 4]))}
        rows.append({"prompt": rng.choice(["a fox", "a fox", *strange]), **row})
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    plan = planned(path, models)
    drawn = {picture.line for unit in plan.units for batch in unit.batches for picture in batch}
    assert sorted({line for line, _ in plan.bad} | drawn) == list(range(1, 501))
    assert len(drawn) > 50
    assert not any("\n" in reason for _, reason in plan.bad)
    names = [file for unit in plan.units for file in unit.files]
    assert len({name.casefold() for name in names}) == len(names)
    for unit in plan.units:
        for name in unit.files:  # all can be written, and below the folder
            target = tmp_path / "out" / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(b"")
            assert (tmp_path / "out") in target.resolve().parents


@pytest.mark.parametrize("suffix", [".png", ".webp", ".jpg"])
def test_files_carry_their_settings_in_two_forms(model, tmp_path, suffix, uncompiled):
    drawing = model("一只狐狸", steps=1, negative="blurry", seed=2)[0]
    path = tmp_path / f"picture{suffix}"
    path.write_bytes(encoded(drawing, suffix))
    assert read_settings(path) == json.loads(json.dumps(drawing.settings))
    with Image.open(path) as picture:
        text = picture.info.get("parameters")
        if text is None:
            text = picture.getexif().get_ifd(0x8769)[0x9286][8:].decode("utf-16-be")
    assert text.startswith("一只狐狸\nNegative prompt: blurry\nSteps: 1, Sampler: euler")
    assert "Seed: 2" in text


def test_a_picture_is_drawn_again_bit_for_bit(model, tmp_path):
    """Among others, compiled: what is drawn beside it is other, how many is not."""
    from mindpangu.infer.image_file import redraw

    drawn = model(["a red bus", "a fox", "一只狗"], steps=2, n=2, seed=5, styles={"noto": 2.0}, batch=3)
    for drawing in drawn:
        path = tmp_path / "picture.png"
        path.write_bytes(encoded(drawing))
        again = redraw(model, read_settings(path))
        np.testing.assert_array_equal(np.asarray(again.image), np.asarray(drawing.image))
        assert again.settings == drawing.settings
    for change, words in (
        ({"digest": "0123"}, "was drawn by tiny 0123, and this is tiny"),
        ({"source": "abc"}, "the picture that it began from, which is not in it"),
    ):
        with pytest.raises(UserError, match=words):
            redraw(model, {**drawn[0].settings, **change})


def test_a_tables_cells_are_no_yaml_and_lines_end_as_in_csv(tmp_path):
    rows = (
        'prompt,seed,styles,guidance\n"a fox\u2028in snow",3,"noto=2, fluent_3d=1",1.5\r\n"two\nlines",5,{noto: 2},\n'
    )
    bomb = '"a &x [lol,lol]",1,"&a [*b,*b]",\n'
    (tmp_path / "p.csv").write_text(rows + bomb, encoding="utf-8", newline="")
    read = [row for _, row in read_rows(tmp_path / "p.csv", {})]
    assert [(row.prompt, row.seed, row.styles, row.guidance) for row in read[:2]] == [
        ("a fox\u2028in snow", 3, {"noto": 2.0, "fluent_3d": 1.0}, 1.5), ("two\nlines", 5, {"noto": 2.0}, None),
    ]  # fmt: skip
    assert "styles: found '&a [*b,*b]'" in read[2]
    (tmp_path / "p.TXT").write_bytes("一只狐狸\r\na cat".encode("utf-16"))
    assert [row.prompt for _, row in read_rows(tmp_path / "p.TXT", {})] == ["一只狐狸", "a cat"]


def test_dots_are_part_of_a_name_and_long_names_fit_a_shard(models, tmp_path, uncompiled):
    names = ["fox_cfg7.5", "fox_cfg7.0", "b.PNG", "很长的名字" * 12]
    plan = planned(written(tmp_path, [{"prompt": "a fox", "file": name} for name in names]), models)
    assert sorted(file for unit in plan.units for file in unit.files) == sorted(
        ["fox_cfg7.5.png", "fox_cfg7.0.png", "b.png", f"{names[3]}.png"]
    )
    plan = planned(written(tmp_path, [{"prompt": "a fox", "file": name} for name in names]), models, per_shard=9)
    assert sum(Run(plan, tmp_path / "out", 2, Ranks())(models)) == 4
    (shard,) = (tmp_path / "out").glob("*.tar")
    assert {entry.key for entry in Shard(shard).entries} == {"fox_cfg7_5", "fox_cfg7_0", "b", names[3]}


def test_another_picture_of_the_same_name_is_another_run(models, tmp_path):
    for colour in ("red", "blue"):
        Image.new("RGB", (32, 32), colour).save(tmp_path / "init.png")
        plan = planned(written(tmp_path, [{"prompt": "a fox", "init": str(tmp_path / "init.png")}]), models)
        if colour == "red":
            Run(plan, tmp_path / "out", 2, Ranks())
    with pytest.raises(UserError, match="holds a run of other prompts"):
        Run(plan, tmp_path / "out", 2, Ranks())


def test_one_row_is_no_reason_to_draw_none_whatever_a_library_raises(models, tmp_path, monkeypatch):
    from mindpangu.infer.init_image import InitImage

    def broken(*_):
        raise SyntaxError("not a TIFF file")

    monkeypatch.setattr(InitImage, "open", broken)
    Image.new("RGB", (8, 8)).save(tmp_path / "x.png")
    plan = planned(written(tmp_path, [{"prompt": "a fox", "init": str(tmp_path / "x.png")}, {"prompt": "a"}]), models)
    assert plan.bad == ((1, "line 1: SyntaxError: not a TIFF file"),) and plan.pictures == 1


def test_what_is_torn_is_passed_over_or_named_and_what_is_gone_is_drawn_again(models, tmp_path, uncompiled):
    plan, out = planned(written(tmp_path, ROWS[:1] * 3), models), tmp_path / "out"
    assert sum(Run(plan, out, 2, Ranks())(models)) == 3
    with (out / "journal-0.jsonl").open("a") as journal:
        journal.write('garbage\n[1]\n{"unit": {}}\n')
    assert Run(plan, out, 2, Ranks()).left == []
    (out / plan.units[0].files[0]).write_bytes(b"")
    assert [unit.number for unit in Run(plan, out, 2, Ranks()).left] == [0]
    (out / "run.json").write_text("")
    with pytest.raises(UserError, match=r"run\.json: damaged"):
        Run(plan, out, 2, Ranks())


@pytest.mark.parametrize(
    ("key", "value"),
    [("steps", "4"), ("steps", 2.5), ("batch", 10**9), ("batch", "2"), ("seed", [1]), ("prompt", 3),
     ("styles", ["noto"]), ("size", 32), ("stopped_after", "1"), ("negative", 1)],
)  # fmt: skip
def test_a_picture_that_says_nonsense_is_not_drawn_again(model, key, value):
    settings = {"prompt": "a fox", "seed": 1, "steps": 1, "digest": model.digest, key: value}
    with pytest.raises(UserError, match=f"the picture's settings.*{key}") as caught:
        redraw(model, settings)
    assert "\n" not in str(caught.value)
