"""What trainings came to, as one HTML page that needs nothing else: curves, samples, settings."""

from __future__ import annotations

import base64
import html
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from mindpangu.errors import UserError
from mindpangu.train.stats import CURVES, Lines, read_stats

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHOWN = 6  # sample pictures of a run

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1080px; margin: 2rem auto; padding: 0 1rem; color: #222 }
h1 { font-size: 1.5rem } h2 { font-size: 1.15rem; margin-top: 2rem }
.curves { display: grid; grid-template-columns: repeat(auto-fit, minmax(320px, 1fr)); gap: 1rem }
.curves svg { width: 100%; height: auto } figure { margin: 0 0 1rem } figure img { max-width: 100% }
table { border-collapse: collapse } td, th { padding: .2rem .8rem; border-bottom: 1px solid #ddd; text-align: left }
pre { background: #f6f6f6; padding: 1rem; overflow-x: auto }
"""


def page(runs: Mapping[str, Path]) -> str:
    """The page of some runs, {name: folder}, their curves laid over each other.

    Raises:
        UserError: see `read_stats`; matplotlib is not installed.
    """
    stats = {name: read_stats(folder) for name, folder in runs.items()}
    title = html.escape(", ".join(runs))
    body = [f"<h1>{title}</h1>", _table(stats), '<div class="curves">', *_curves(stats), "</div>"]
    for name, folder in runs.items():
        body += [f"<h2>{html.escape(name)}</h2>", *_samples(folder), _settings(folder)]
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f"<style>{STYLE}</style></head><body>{''.join(body)}</body></html>\n"
    )


def _table(stats: Mapping[str, Lines]) -> str:
    rows = ["<tr><th>run<th>images<th>loss<th>img/s<th>hours<th>steps left out</tr>"]
    for name, lines in stats.items():
        last = lines[-1]
        loss = "–" if last["loss"] is None else f"{last['loss']:.4f}"
        rows.append(
            f"<tr><td>{html.escape(name)}<td>{last['nimg']:,}<td>{loss}<td>{last['img_per_sec']:.1f}"
            f"<td>{last['seconds'] / 3600:.2f}<td>{last['skipped']}</tr>"
        )
    return f"<table>{''.join(rows)}</table>"


def _curves(stats: Mapping[str, Lines]) -> list[str]:
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise UserError("matplotlib is not installed; the curves need it: pip install 'mindpangu[watch]'") from None
    drawn = []
    for key, label in CURVES.items():
        if all(line.get(key) is None for lines in stats.values() for line in lines):
            continue
        figure = Figure(figsize=(4.6, 2.8), layout="constrained")
        axes = figure.subplots()
        for name, lines in stats.items():
            points = [(line["nimg"], line[key]) for line in lines if line.get(key) is not None]
            axes.plot([x for x, _ in points], [y for _, y in points], label=name, linewidth=1.3)
        axes.set_title(label, fontsize=10)
        axes.set_xlabel("images", fontsize=9)
        axes.tick_params(labelsize=8)
        axes.grid(alpha=0.3)
        if len(stats) > 1 and key == "loss":
            axes.legend(fontsize=8)
        drawn.append(_svg(figure))
    for split in sorted({s for lines in stats.values() for line in lines for s in line.get("by_noise_level", ())}):
        drawn.append(_svg(_by_noise_level(Figure(figsize=(4.6, 2.8), layout="constrained"), stats, split)))
    return drawn


def _by_noise_level(figure: Figure, stats: Mapping[str, Lines], split: str) -> Figure:
    """The loss of a split over t, each run's last."""
    axes = figure.subplots()
    for name, lines in stats.items():
        measured = [line["by_noise_level"][split] for line in lines if split in line.get("by_noise_level", ())]
        if measured:
            bins = len(measured[-1])
            points = [((i + 0.5) / bins, loss) for i, loss in enumerate(measured[-1]) if loss is not None]
            axes.plot([x for x, _ in points], [y for _, y in points], label=name, linewidth=1.3, marker=".")
    axes.set_title(f"loss by noise level, {split}", fontsize=10)
    axes.set_xlabel("t / T", fontsize=9)
    axes.tick_params(labelsize=8)
    axes.grid(alpha=0.3)
    return figure


def _svg(figure: Figure) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg")
    svg = buffer.getvalue()
    return f"<figure>{svg[svg.index('<svg') :]}</figure>"


def _samples(folder: Path) -> list[str]:
    found = sorted(folder.glob("samples-*.png"))
    count = min(SHOWN, len(found))
    picked = [found[i * (len(found) - 1) // max(1, count - 1)] for i in range(count)]
    return [
        f'<figure><img alt="{path.stem}" src="data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}">'
        f"<figcaption>{int(path.stem.partition('-')[2]):,} images</figcaption></figure>"
        for path in picked
    ]


def _settings(folder: Path) -> str:
    """The training file, as the newest state or export has it beside it."""
    cards = sorted(folder.glob("*.json"), key=lambda path: path.stat().st_mtime, reverse=True)
    for path in cards:
        card = json.loads(path.read_text(encoding="utf-8"))
        if "config" in card:
            text = yaml.safe_dump(card["config"], sort_keys=False, allow_unicode=True)
            return f"<p>commit {html.escape(str(card.get('git_commit')))}</p><pre>{html.escape(text)}</pre>"
    return "<p>no checkpoint yet, so no settings</p>"
