"""Errors whose message is written for the user, not for the developer."""


class ScotomaError(Exception):
    """One clear sentence: what is wrong, in which file, and what to do about it.

    The command line prints the message without a traceback and exits with code 2.
    """


class InputError(ScotomaError):
    """A file, a folder or an image that cannot be used as it is."""


class SettingsError(ScotomaError):
    """A setting that is unknown, of the wrong type, or contradicts another one."""
