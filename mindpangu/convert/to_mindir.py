"""A model's nets as MindIR files, each for one shape, for MindSpore Lite and machines without this package."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn

from mindpangu import runtime, zoo
from mindpangu.checkpoint.store import write_atomically
from mindpangu.convert.writer import Said
from mindpangu.errors import UserError
from mindpangu.images import parse_size
from mindpangu.models.conditioner import Conditioner
from mindpangu.models.inventory import spec_of
from mindpangu.models.loading import load_conditioner, load_unets, load_vae
from mindpangu.models.vae import AutoencoderKL
from mindpangu.spec import TOKENIZERS, ModelSpec

DESCRIPTION = "export.json"
ROWS_OF_TEXT = 1


class TextEncoders(nn.Cell):
    """(ids (N, L) int32 of each encoder, and where there are numbers (N, K) float32) -> context, vector."""

    def __init__(self, conditioner: Conditioner, numbers: bool) -> None:
        super().__init__(auto_prefix=False)
        self.conditioner, self.numbers = conditioner, numbers

    def construct(self, *inputs: Tensor) -> Any:
        if self.numbers:
            return self.conditioner(inputs[:-1], inputs[-1])
        return self.conditioner(inputs)


class Encode(nn.Cell):
    """Pictures (N, 3, H, W) in [-1, 1] -> latents."""

    def __init__(self, vae: AutoencoderKL) -> None:
        super().__init__(auto_prefix=False)
        self.vae = vae

    def construct(self, pictures: Tensor) -> Tensor:
        return self.vae.encode(pictures)


def nets(folder: Path, size: str, rows: int) -> Iterator[tuple[str, nn.Cell, dict[str, np.ndarray]]]:
    """(name, net, inputs by name, all zero) of every net of a model, for pictures of `size` and `rows` rows at once.

    A UNet's rows are twice the pictures where guidance is used; a text encoder reads one prompt at a time.
    """
    spec = spec_of(folder)
    width, height = parse_size(size)
    factor, channels = spec.vae.factor, spec.vae.z_channels
    inputs: dict[str, Any]
    latents = np.zeros((rows, channels, height // factor, width // factor), np.float32)
    if spec.texts:
        conditioner = load_conditioner(folder, tuple(spec.texts), spec.pipeline.size_dim)
        inputs = {f"ids_{i}": np.zeros((ROWS_OF_TEXT, spec.tokens), np.int32) for i in range(len(spec.texts))}
        if spec.pipeline.size_dim:
            inputs["numbers"] = np.zeros((ROWS_OF_TEXT, _numbers(spec)), np.float32)
        yield "text_encoders", TextEncoders(conditioner, "numbers" in inputs), inputs
    for name, unet in spec.unets.items():
        (net,) = load_unets([folder / f"{name}.safetensors"])
        inputs = {"x": latents, "t": np.zeros(rows, np.float32)}
        if unet.context_dim:
            inputs["context"] = np.zeros((rows, spec.tokens, unet.context_dim), np.float32)
        if unet.vector_dim:
            inputs["vector"] = np.zeros((rows, unet.vector_dim), np.float32)
        yield name, net.cells.whole, inputs
    vae = load_vae(folder / "vae.safetensors")
    yield "vae_decoder", vae, {"latents": latents}
    yield "vae_encoder", Encode(vae), {"pictures": np.zeros((rows, 3, height, width), np.float32)}


def export_mindir(folder: Path, out: Path, size: str, rows: int, said: Said = lambda line: None) -> None:
    """Write every net as out/NAME.mindir, the tokenizers, and export.json, which says inputs and outputs.

    Only MindSpore's own operators are in the files, in float32; ids, t and numbers as `TextEncoders` and `UNet` say.

    Raises:
        UserError: the model cannot draw the size; a net cannot be exported; the folder cannot be written.
    """
    spec = spec_of(folder)
    if not spec.pipeline.can_draw(size):
        raise UserError(f"size {size} is none of {spec.pipeline.name}'s: {spec.pipeline.sizes_in_words}")
    out.mkdir(parents=True, exist_ok=True)
    described: dict[str, Any] = {"model": spec.pipeline.name, "size": size, "rows": rows, "nets": {}}
    with _own_operators():
        for name, net, inputs in nets(folder, size, rows):
            said(name)
            given = [Tensor(value) for value in inputs.values()]
            try:
                ms.export(net, *given, file_name=str(out / name), file_format="MINDIR")
            except (RuntimeError, ValueError, TypeError) as error:
                raise UserError(f"{name}: MindSpore cannot export it ({str(error).strip().splitlines()[0]})") from None
            found = net(*given)
            outputs = found if isinstance(found, (tuple, list)) else [found]
            described["nets"][name] = {
                "inputs": {key: [str(value.dtype), list(value.shape)] for key, value in inputs.items()},
                "outputs": [["float32", list(value.shape)] for value in outputs],
            }
    for encoder in spec.texts:
        shutil.copyfile(zoo.tokenizer_path(folder, encoder), out / f"{TOKENIZERS[encoder]}.json")
    write_atomically(out / DESCRIPTION, (json.dumps(described, indent=2) + "\n").encode())


def _numbers(spec: ModelSpec) -> int:
    """How many numbers the added conditioning has."""
    unet, text = next(iter(spec.unets.values())), list(spec.texts.values())[-1]
    return (unet.vector_dim - (text.projection_dim or text.width)) // spec.pipeline.size_dim


@contextmanager
def _own_operators() -> Iterator[None]:
    """Inside, nets are compiled without the CPU operators of this package, which no other program has."""
    before = os.environ.get(runtime.CPU_OPERATORS)
    os.environ[runtime.CPU_OPERATORS] = "off"
    try:
        yield
    finally:
        if before is None:
            del os.environ[runtime.CPU_OPERATORS]
        else:
            os.environ[runtime.CPU_OPERATORS] = before
