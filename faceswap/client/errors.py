"""The errors of the client: all of them are `FaceSwapError`."""

from __future__ import annotations

_TRANSIENT = frozenset({0, 429, 502, 503, 504})
_FINAL_CODES = frozenset({"bad_answer", "bad_stream", "damaged", "file"})


class FaceSwapError(Exception):
    """An unsuccessful call.

    `status` is the HTTP status, 0 when there was no answer; `code` a stable word; `detail` a sentence for a person;
    `retry_after_s` the pause that the service asks for.
    """

    def __init__(self, status: int, code: str, detail: str, retry_after_s: float | None = None) -> None:
        super().__init__(detail)
        self.status = status
        self.code = code
        self.detail = detail
        self.retry_after_s = retry_after_s

    @property
    def transient(self) -> bool:
        """True when the same call may succeed later."""
        return self.status in _TRANSIENT and self.code not in _FINAL_CODES


class JobFailed(FaceSwapError):
    """A job that ended without a result: it failed, or was cancelled (`code` is then `cancelled`)."""

    def __init__(self, prompt_id: str, code: str, detail: str) -> None:
        super().__init__(0, code, detail)
        self.prompt_id = prompt_id

    @property
    def transient(self) -> bool:
        """False: the job has ended."""
        return False
