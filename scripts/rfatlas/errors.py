"""The one exception meant for users."""


class RfatlasError(Exception):
    """Bad input or a refused state, told in one clear line.

    The message names the file, key or channel, the value found there, and what would be right.
    `rfatlas.jobs.job` prints it without a traceback.
    """
