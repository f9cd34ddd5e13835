"""From a request to a job on disk: read it, check it, keep its files, look at its media, submit it."""

from .fetch import Fetcher
from .form import MAX_TEXT_BYTES, Submission, parse_object
from .readers import defer_continue
from .submit import Submitter

__all__ = ["MAX_TEXT_BYTES", "Fetcher", "Submission", "Submitter", "defer_continue", "parse_object"]
