"""The one exception that means: the user can mend this, and the message says how."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """An error that a user caused and can mend.

    The message is one line: what was found, what is allowed, what to do. Commands print it and exit with code 2.
    """


def nearest(word: str, known: Iterable[str]) -> str:
    """A hint ", did you mean 'x'?" for the known word nearest to `word`, or an empty string."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f", did you mean '{close[0]}'?" if close else ""
