"""From a request to a job on disk: read it, check it, keep its files, look at its media, submit it."""

from .body import check_uncompressed, defer_continue
from .fetch import Fetcher
from .form import MAX_TEXT_BYTES, Submission, parse_object
from .readers import read_object
from .submit import Submitter
from .uploads import Uploads

__all__ = [
    "MAX_TEXT_BYTES",
    "Fetcher",
    "Submission",
    "Submitter",
    "Uploads",
    "check_uncompressed",
    "defer_continue",
    "parse_object",
    "read_object",
]
