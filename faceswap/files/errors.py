"""The errors of a store of files that is not this machine's disk."""

from __future__ import annotations


class FilesUnavailable(OSError):
    """The store of the files cannot be asked now, or answers that it cannot serve now. It passes by itself."""


class FilesRefused(OSError):
    """The store of the files refuses what is asked: a wrong bucket or credentials. It does not pass by itself."""
