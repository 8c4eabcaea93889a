"""What the fuzz tests share: how many inputs they try, and a tally of what became of them.

pytest as usual tries few inputs, the same each time; `--hypothesis-profile=thorough` tries many,
others each time:

    make test ARGS="tests/test_fuzz_*.py --hypothesis-profile=thorough"

Either way the tally stands at the end of the output.
"""

from collections import Counter
from contextlib import contextmanager
from datetime import timedelta

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from rfatlas.errors import RfatlasError, printable

#: (kind of input, what became of it) -> inputs.
TALLY: Counter[tuple[str, str]] = Counter()

# A decoder or a walk that hangs; nothing here takes a second.
_HANGS = timedelta(seconds=60)
_SHARED = {
    "deadline": _HANGS,
    "database": None,
    "suppress_health_check": [HealthCheck.too_slow, HealthCheck.data_too_large],
}
settings.register_profile("quick", max_examples=100, derandomize=True, **_SHARED)
settings.register_profile("thorough", max_examples=1000, print_blob=True, **_SHARED)


#: How a file's bytes are damaged, see `damaged`.
DAMAGE = st.tuples(
    st.sampled_from(["none", "none", "none", "cut", "flip", "junk"]), st.floats(0, 1), st.binary()
)


def damaged(data: bytes, damage: tuple[str, float, bytes]) -> bytes:
    """The bytes cut off, with one bit flipped, or with something put in; or as they are."""
    how, where, junk = damage
    at = int(where * (len(data) - 1))
    if how == "cut":
        return data[:at]
    if how == "flip":
        return data[:at] + bytes([data[at] ^ (1 << (at % 8))]) + data[at + 1 :]
    return data[:at] + junk + data[at:] if how == "junk" else data


class Fate:
    """What became of one input: `handled`, or `refused` with the words of `message`."""

    message = ""

    @property
    def refused(self) -> bool:
        return bool(self.message)


@contextmanager
def trying(kind: str):
    """Count one input of a kind. RfatlasError is a refusal, which must be told clearly; any other
    exception fails the test."""
    fate = Fate()
    try:
        yield fate
    except RfatlasError as error:
        fate.message = str(error)
        check_message(fate.message)
    TALLY[kind, "refused" if fate.refused else "handled"] += 1


def check_message(message: str) -> None:
    """A message is one line, or a heading and one line for each problem; a terminal can show it."""
    heading, *problems = message.split("\n")
    assert heading.strip()
    assert all(problem.startswith("  - ") for problem in problems), message
    for line in (heading, *problems):
        assert line == printable(line), message
        line.encode()
        assert len(line) < 3000, "a line that nobody reads to its end"


def summary() -> list[str]:
    """The tally, a line for each kind of input."""
    lines = []
    for kind in sorted({kind for kind, _ in TALLY}):
        refused, handled = TALLY[kind, "refused"], TALLY[kind, "handled"]
        lines.append(
            f"{kind:24} {refused + handled:7} tried {refused:7} refused {handled:7} handled"
        )
    return lines
