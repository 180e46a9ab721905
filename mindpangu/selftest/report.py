"""What a selftest came to: JSON for programs, one HTML page for people, neither with names of this machine."""

from __future__ import annotations

import html
import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1080px; margin: 2rem auto; padding: 0 1rem; color: #222 }
h1 { font-size: 1.5rem } h2 { font-size: 1.15rem; margin-top: 2rem }
table { border-collapse: collapse; width: 100% } th, td { padding: .2rem .7rem; border-bottom: 1px solid #ddd }
th, td { text-align: left; vertical-align: top }
.failed { color: #b00020; font-weight: 600 } .refused { color: #946200 }
"""


def summary(results: Sequence[dict[str, Any]]) -> str:
    """How many of each."""
    counted = Counter(one["status"] for one in results)
    return ", ".join(f"{counted[status]} {status}" for status in ("passed", "failed", "refused"))


def as_json(facts: Sequence[tuple[str, str]], results: Sequence[dict[str, Any]]) -> str:
    """{"machine": [[what, found], …], "checks": [{group, name, status, figure, unit, allowed, note, seconds}, …]}."""
    checks = [{key: value for key, value in one.items() if key not in ("number", "of")} for one in results]
    return json.dumps({"machine": facts, "checks": checks}, indent=1, ensure_ascii=False) + "\n"


def measured(one: dict[str, Any]) -> str:
    """The figure with what was allowed."""
    if "figure" not in one:
        return ""
    allowed = "" if one["allowed"] is None else f" (allowed {one['allowed']:.1e})"
    figure = f"{one['figure']:.1e}" if one["unit"] == "error" else f"{one['figure']:.3g} {one['unit']}"
    return figure + allowed


def page(facts: Sequence[tuple[str, str]], results: Sequence[dict[str, Any]]) -> str:
    """The HTML page."""
    machine = "".join(f"<tr><td>{html.escape(what)}<td>{html.escape(found)}" for what, found in facts)
    body = [f"<h1>mindpangu selftest: {summary(results)}</h1><table>{machine}</table>"]
    for group in dict.fromkeys(one["group"] for one in results):
        body.append(f"<h2>{html.escape(group)}</h2><table><tr><th>check<th>result<th>measured<th>s<th>why")
        for one in results:
            if one["group"] == group:
                cells = one["name"], one["status"], measured(one), str(one.get("seconds", "")), one.get("note", "")
                name, status, *others = map(html.escape, cells)
                body.append(f'<tr><td>{name}<td class="{status}">{status}' + "".join(f"<td>{x}" for x in others))
        body.append("</table>")
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>mindpangu selftest</title>'
        f"<style>{STYLE}</style></head><body>{''.join(body)}</body></html>\n"
    )
