"""The one exception meant for users, and how it shows what they wrote."""


class RfatlasError(Exception):
    """Bad input or a refused state, told in one clear line.

    The message names the file, key or channel, the value found there, and what would be right.
    `rfatlas.files.jobs.job` prints it without a traceback.
    """


def printable(text: str, most: int = 2000) -> str:
    """The text on one line of at most `most` characters: what a terminal would obey or cannot show
    is escaped."""
    if not text.isprintable():
        text = "".join(
            char if char.isprintable() else char.encode("unicode_escape").decode() for char in text
        )
    return text if len(text) <= most else f"{text[: most - 3]}..."
