"""Nets from the checkpoints that the trainers and the zoo write: the sidecar's spec builds, the tensors fill."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Optional, TypeVar

import numpy as np
from mindspore import Tensor, nn
from mindspore.nn.utils import no_init_parameters

from mindpangu import runtime, zoo
from mindpangu.checkpoint.lora import Lora, merged
from mindpangu.checkpoint.store import load_into, load_tensors, prefixed, read_card, stored_tensors, verify
from mindpangu.config import parse
from mindpangu.models.bridge import LatentBridge
from mindpangu.models.conditioner import Conditioner
from mindpangu.models.controlnet import ControlNet
from mindpangu.models.layers import DTYPES
from mindpangu.models.unet import UNet, UNetReusingDeep, UNetWithDeep
from mindpangu.models.vae import AutoencoderKL
from mindpangu.spec import BridgeSpec, ControlNetSpec, PipelineSpec, TextSpec, UNetSpec, VAESpec
from mindpangu.text.tokenizer import TextTokenizer

Spec = TypeVar("Spec", UNetSpec, VAESpec, TextSpec, ControlNetSpec, BridgeSpec)
Net = TypeVar("Net", bound=nn.Cell)


def read_spec(path: Path, kind: type[Spec]) -> Spec:
    """The spec in a checkpoint's sidecar.

    Raises:
        UserError: no sidecar, or its spec is not a `kind`.
    """
    return parse(read_card(path).get("spec"), kind, f"{path.with_suffix('.json')}: spec")


def empty(net: Callable[[], Net], dtype: str = "auto") -> Net:
    """A net for inference that waits for its weights.

    `dtype`: of those of two or more axes in memory: fp32, fp16, or auto: `runtime.weights_dtype`.
    """
    with no_init_parameters():
        made = net()
    stored = DTYPES[runtime.weights_dtype() if dtype == "auto" else dtype]
    for parameter in made.get_parameters():
        if parameter.ndim > 1:
            parameter.set_dtype(stored)
    return made.set_train(False)


def load_vae(path: Path, dtype: str = "auto") -> AutoencoderKL:
    """The autoencoder of a checkpoint, for inference. Raises: UserError."""
    spec = read_spec(path, VAESpec)
    net = empty(lambda: AutoencoderKL(spec), dtype)
    load_into(net.trainable_params(), stored_tensors(path), str(path))
    return net


def load_controlnet(path: Path, dtype: str = "auto") -> ControlNet:
    """The ControlNet of a checkpoint, for inference. Raises: UserError."""
    verify(path)
    spec = read_spec(path, ControlNetSpec)
    net = empty(lambda: ControlNet(spec), dtype)
    load_into(net.trainable_params(), stored_tensors(path), str(path))
    return net


def load_bridge(path: Path) -> LatentBridge:
    """The latent bridge of a checkpoint, for inference. Raises: UserError."""
    verify(path)
    spec = read_spec(path, BridgeSpec)
    net = empty(lambda: LatentBridge(spec))
    load_into(net.trainable_params(), stored_tensors(path), str(path))
    return net


class UNetCells:
    """One UNet's Cells for inference, over the same parameters, and whose weights these hold."""

    def __init__(self, spec: UNetSpec, dtype: str) -> None:
        self.whole = empty(lambda: UNet(spec), dtype)
        self.with_deep = UNetWithDeep(self.whole).set_train(False)
        self.reusing_deep = UNetReusingDeep(self.whole).set_train(False)
        self.present: Optional[Path] = None


class SharedUNet:
    """One of several sets of weights for the same Cells, so that a graph is compiled, and lies on the device, once.

    Calling it, or its `with_deep` and `reusing_deep`, puts its weights into the Cells first, unless they are there.
    Meanwhile they are kept in memory as stored where `kept`, else on the disk alone.
    """

    def __init__(self, cells: UNetCells, path: Path, kept: bool) -> None:
        """Raises: UserError."""
        self.cells, self.path = cells, path
        self._loras: Sequence[tuple[Lora, float]] = ()
        self._stored: dict[str, np.ndarray] = load_tensors(path) if kept else {}
        self._put()

    def set_loras(self, loras: Sequence[tuple[Lora, float]]) -> None:
        """Have exactly these LoRAs, each at its scale, merged into the weights."""
        self._loras = loras
        self.cells.present = None

    def _put(self) -> None:
        weights = merged(self._stored or stored_tensors(self.path), self._loras, self.path.stem)
        load_into(self.cells.whole.trainable_params(), weights, str(self.path))
        self.cells.present = self.path

    def _present(self) -> UNetCells:
        if self.cells.present != self.path:
            self._put()
        return self.cells

    def __call__(self, *inputs: Tensor) -> Tensor:
        return self._present().whole(*inputs)

    def with_deep(self, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Output and deep features."""
        return self._present().with_deep(*inputs)

    def reusing_deep(self, deep: Tensor, *inputs: Tensor) -> Tensor:
        """The output with deep features from an earlier call."""
        return self._present().reusing_deep(deep, *inputs)


def load_unets(paths: Sequence[Path], offload: bool = False, dtype: str = "auto") -> list[SharedUNet]:
    """The UNets of several checkpoints, for inference; those of equal spec share their Cells.

    `offload`: only the weights in use lie in memory. Raises: UserError.
    """
    specs = [read_spec(path, UNetSpec) for path in paths]
    users = Counter(specs)
    cells = {spec: UNetCells(spec, dtype) for spec in users}
    return [SharedUNet(cells[spec], path, not offload and users[spec] > 1) for spec, path in zip(specs, paths)]


def load_conditioner(folder: Path, text_encoders: Sequence[str], size_dim: int, dtype: str = "auto") -> Conditioner:
    """The text encoders of a folder, for inference. Raises: UserError."""
    specs = [read_spec(zoo.part_path(folder, encoder), TextSpec) for encoder in text_encoders]
    net = empty(lambda: Conditioner(specs, size_dim), dtype)
    fill_text_encoders(net, folder, text_encoders, ())
    return net


def fill_text_encoders(
    net: Conditioner, folder: Path, text_encoders: Sequence[str], loras: Sequence[tuple[Lora, float]]
) -> None:
    """Put the folder's weights into the text encoders, with LoRAs merged in. Raises: UserError."""
    for i, (name, encoder) in enumerate(zip(text_encoders, net.text_encoders)):
        path = zoo.part_path(folder, name)
        # An encoder inside the conditioner carries its place in its parameters' names.
        weights = prefixed(merged(stored_tensors(path), loras, name), f"text_encoders.{i}.")
        load_into(encoder.trainable_params(), weights, str(path))


def load_tokenizers(folder: Path, text_encoders: Sequence[str]) -> list[TextTokenizer]:
    """The tokenizers of a folder's text encoders. Raises: UserError."""
    tokenizers = []
    for encoder in text_encoders:
        spec = read_spec(zoo.part_path(folder, encoder), TextSpec)
        tokenizers.append(TextTokenizer.load(zoo.tokenizer_path(folder, encoder), spec.context_length, spec.pad_id))
    return tokenizers


def load_model_spec(folder: Path) -> PipelineSpec:
    """model.json of a model folder. Raises: UserError."""
    return parse(zoo.description(folder), PipelineSpec, str(folder / zoo.DESCRIPTION))
