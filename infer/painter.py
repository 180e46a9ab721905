"""Who draws the rows of a file of prompts: the run's model, or the models of a row's recipe (Coop-Diffusion)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mindpangu.config import load
from mindpangu.errors import UserError
from mindpangu.images import parse_size
from mindpangu.infer.coop import CoopConfig, CoopDraw
from mindpangu.infer.init_image import Source
from mindpangu.infer.pipeline import Drawing, PanGuDraw
from mindpangu.infer.prompt_file import Row
from mindpangu.infer.request import Request, check


@dataclass(frozen=True)
class Picture:
    """Picture `index` of the row on a line, and the file that it goes to."""

    line: int
    row: Row
    index: int
    file: str


class Painter:
    """The run's model, and the recipes that rows ask for; each model is loaded once."""

    def __init__(self, model: PanGuDraw, name: str, device: str = "auto") -> None:
        """`name`: what recipes call the run's model, a zoo name or a folder."""
        self.model, self.device = model, device
        self._models = {name: model}
        self._recipes: dict[Path, CoopDraw] = {}

    def identity(self, row: Row) -> str:
        """What tells apart who draws. Raises: UserError where a recipe is none."""
        return self.model.digest if row.coop is None else self._recipe(row, row.coop).digest

    def check(self, pictures: Sequence[Picture]) -> None:
        """Raises: UserError where pictures of alike rows cannot be drawn."""
        row = pictures[0].row
        if row.coop is None:
            check(self._request(pictures), self.model.spec)
        else:
            self._together(row.coop, pictures[:1]).asked(**_asked(pictures[:1]))

    def draw(self, pictures: Sequence[Picture]) -> list[Drawing]:
        """Pictures of alike rows, drawn together."""
        row = pictures[0].row
        if row.coop is None:
            return list(self.model.draw(self._request(pictures)))
        return self._together(row.coop, pictures)(**_asked(pictures))

    def _request(self, pictures: Sequence[Picture]) -> Request:
        row, spec = pictures[0].row, self.model.spec
        size = row.size or spec.default_size
        source = None
        if row.init is not None:
            try:
                source = Source.open(row.init, row.mask, parse_size(size))
            except ValueError as error:
                raise UserError(str(error)) from None
        return Request(
            size=size,
            guidance=spec.default_guidance if row.guidance is None else row.guidance,
            styles=row.styles or spec.default_styles,
            negative=row.negative,
            rescale=row.rescale,
            source=source,
            strength=row.strength,
            **_asked(pictures),
        )

    def _recipe(self, row: Row, recipe: Path) -> CoopDraw:
        if recipe not in self._recipes:
            self._recipes[recipe] = CoopDraw(load(recipe, CoopConfig), row.line, self.device, self._models)
        return self._recipes[recipe]

    def _together(self, recipe: Path, pictures: Sequence[Picture]) -> CoopDraw:
        """The recipe's models, looking at the pictures' lines."""
        together = self._recipe(pictures[0].row, recipe)
        lines = [picture.row.line for picture in pictures if picture.row.line is not None]
        if bool(lines) != together.looks:
            needed = "a member looks at a picture: name it in" if together.looks else "nobody looks at a picture: empty"
            raise UserError(f"{recipe}: {needed} the column line")
        if lines:
            together.look_at(lines)
        return together


def _asked(pictures: Sequence[Picture]) -> dict[str, Any]:
    """What alike rows' pictures are asked for, but for what a recipe says."""
    row = pictures[0].row
    return {
        "prompts": tuple(picture.row.prompt for picture in pictures),
        "seed": tuple(picture.row.seed for picture in pictures),
        "indices": tuple(picture.index for picture in pictures),
        "steps": row.steps,
        "sampler": row.sampler,
        "sigmas": row.sigmas,
        "batch": len(pictures),
    }
