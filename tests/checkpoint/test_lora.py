"""LoRA files of every naming give the same updates; what is none is refused by name."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mindpangu.checkpoint.lora import read_lora
from mindpangu.checkpoint.store import save_tensors
from mindpangu.errors import UserError

pytestmark = pytest.mark.usefixtures("little_memory")
RNG = np.random.default_rng(0)
DOWN, UP = RNG.standard_normal((4, 6)).astype(np.float32), RNG.standard_normal((8, 4)).astype(np.float32)
MODULE = "down_blocks.0.attentions.1.transformer_blocks.0.attn1"

FORMS = {
    "kohya": (
        f"lora_unet_{MODULE.replace('.', '_')}_to_out_0.lora_down.weight",
        f"lora_unet_{MODULE.replace('.', '_')}_to_out_0.lora_up.weight",
    ),
    "peft": (f"unet.{MODULE}.to_out.0.lora_A.weight", f"unet.{MODULE}.to_out.0.lora_B.weight"),
    "peft, saved whole": (
        f"unet.base_model.model.{MODULE}.to_out.0.lora_A.default.weight",
        f"unet.base_model.model.{MODULE}.to_out.0.lora_B.default.weight",
    ),
    "diffusers": (f"unet.{MODULE}.to_out.0.lora.down.weight", f"unet.{MODULE}.to_out.0.lora.up.weight"),
    "diffusers, attention processors": (
        f"unet.{MODULE}.processor.to_out_lora.down.weight",
        f"unet.{MODULE}.processor.to_out_lora.up.weight",
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_naming_is_read(form, tmp_path):
    down, up = FORMS[form]
    save_tensors(tmp_path / "x.safetensors", {down: DOWN, up: UP})
    ((part, module), update) = next(iter(read_lora(tmp_path / "x.safetensors").items()))
    assert (part, module) == ("unet", f"{MODULE.replace('.', '_')}_to_out_0")
    np.testing.assert_allclose(update.delta(), UP @ DOWN, rtol=1e-5)


def test_alpha_is_over_the_rank(tmp_path):
    stem = "lora_te_text_model_encoder_layers_0_mlp_fc1"
    tensors = {f"{stem}.lora_down.weight": DOWN, f"{stem}.lora_up.weight": UP, f"{stem}.alpha": np.float32(1.0)}
    save_tensors(tmp_path / "x.safetensors", {name: np.asarray(value) for name, value in tensors.items()})
    update = read_lora(tmp_path / "x.safetensors")["text_encoder", "text_model_encoder_layers_0_mlp_fc1"]
    np.testing.assert_allclose(update.delta(), UP @ DOWN / 4, rtol=1e-5)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"lora_unet_x.hada_w1_a": DOWN}, "LoHa, LoKr, DoRA are not read"),
        ({"first_stage_model.x.weight": DOWN}, r"is no name of kohya's, PEFT's or diffusers'"),
        ({"unet.x.lora_A.weight": DOWN}, "its up matrix is missing"),
        ({"unet.x.lora_A.weight": DOWN, "unet.x.lora_B.weight": UP[:, :3]}, "differ in rank"),
    ],
)
def test_what_is_no_lora_is_named(tensors, message, tmp_path):
    save_tensors(tmp_path / "x.safetensors", tensors)
    with pytest.raises(UserError, match=message):
        read_lora(tmp_path / "x.safetensors")


def test_a_lora_of_another_model_is_refused_and_changes_nothing(model_folder, tmp_path):
    from mindpangu.infer.pipeline import PanGuDraw

    model = PanGuDraw.from_pretrained(model_folder, "CPU")
    save_tensors(
        tmp_path / "x.safetensors", {"unet.nowhere.to_q.lora_A.weight": DOWN, "unet.nowhere.to_q.lora_B.weight": UP}
    )
    with pytest.raises(UserError, match=r"tiny has no module unet nowhere_to_q.*another model"):
        model.set_loras([(tmp_path / "x.safetensors", 1.0)])
    save_tensors(
        tmp_path / "x.safetensors", {"unet.time_embed.0.lora_A.weight": DOWN, "unet.time_embed.0.lora_B.weight": UP}
    )
    with pytest.raises(UserError, match=r"another shape of unet time_embed_0 \[8, 6\] for \[64, 16\]"):
        model.set_loras([(tmp_path / "x.safetensors", 1.0)])


def update_of(path):
    return read_lora(path)["unet", f"{MODULE.replace('.', '_')}_to_out_0"]


@pytest.mark.parametrize(
    ("config", "factor"),
    [
        ({"unet.lora_alpha": 16}, 4.0),
        ({"unet.lora_alpha": 16, "unet.use_rslora": True}, 8.0),
        ({"unet.lora_alpha": 4, "unet.alpha_pattern": {"attn1.to_out.0": 2}}, 0.5),
        ({"text_encoder.lora_alpha": 16}, 1.0),
    ],
)
def test_alpha_in_the_header_counts(config, factor, tmp_path):
    down, up = FORMS["peft"]
    save_tensors(tmp_path / "x.safetensors", {down: DOWN, up: UP}, {"lora_adapter_metadata": json.dumps(config)})
    np.testing.assert_allclose(update_of(tmp_path / "x.safetensors").delta(), factor * (UP @ DOWN), rtol=1e-5)


def test_pefts_folder_is_read_with_its_alpha(tmp_path):
    stem = f"base_model.model.{MODULE}.to_out.0"
    tensors = {f"{stem}.lora_A.weight": DOWN, f"{stem}.lora_B.weight": UP}
    save_tensors(tmp_path / "adapter_model.safetensors", tensors)
    with pytest.raises(UserError, match=r"adapter_config\.json"):
        read_lora(tmp_path)
    (tmp_path / "adapter_config.json").write_text('{"r": 4, "lora_alpha": 8}')
    np.testing.assert_allclose(update_of(tmp_path).delta(), 2 * (UP @ DOWN), rtol=1e-5)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_numbers_that_are_not_finite_are_refused(value, tmp_path):
    down, up = FORMS["peft"]
    save_tensors(tmp_path / "x.safetensors", {down: DOWN, up: np.where(UP[0, 0] == UP, np.float32(value), UP)})
    with pytest.raises(UserError, match="not finite"):
        read_lora(tmp_path / "x.safetensors")


@settings(max_examples=500, deadline=None)
@given(data=st.data())
def test_damaged_files_are_read_or_refused_in_one_line(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzz")
    down, up = FORMS["kohya"]
    save_tensors(folder / "x.safetensors", {down: DOWN, up: UP}, {"lora_adapter_metadata": '{"unet.lora_alpha": 3}'})
    content = bytearray((folder / "x.safetensors").read_bytes())
    for place, value in data.draw(st.lists(st.tuples(st.integers(0, 399), st.integers(0, 255)), max_size=4)):
        content[place] = value
    (folder / "x.safetensors").write_bytes(content[: data.draw(st.integers(0, len(content)))])
    try:
        read_lora(folder / "x.safetensors")
    except UserError as error:
        assert "\n" not in str(error)
