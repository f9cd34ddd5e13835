"""Problems of requests and failures of jobs, each with its stable code and one clear sentence."""

from __future__ import annotations

INTERNAL_ERROR = "Something went wrong inside the service; its log says what."


class Problem(Exception):
    """A request that cannot be served. The middleware turns it into `application/problem+json` (RFC 9457).

    `detail` is one sentence for a person; it never holds a server path, a key or a traceback.
    """

    status = 500
    code = "internal_error"
    title = "Internal server error"

    def __init__(
        self,
        detail: str,
        *,
        code: str | None = None,
        prompt_id: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(detail)
        self.detail = detail
        self.prompt_id = prompt_id
        self.retry_after = retry_after
        if code is not None:
            self.code = code


class BadRequest(Problem):
    status, code, title = 400, "bad_request", "Bad request"


class Unauthorized(Problem):
    status, code, title = 401, "unauthorized", "Unauthorized"


class Forbidden(Problem):
    status, code, title = 403, "forbidden", "Forbidden"


class NotFound(Problem):
    status, code, title = 404, "not_found", "Not found"


class RequestTimeout(Problem):
    status, code, title = 408, "request_timeout", "Request timeout"


class Conflict(Problem):
    status, code, title = 409, "conflict", "Conflict"


class Gone(Problem):
    status, code, title = 410, "gone", "Gone"


class PreconditionFailed(Problem):
    status, code, title = 412, "precondition_failed", "Precondition failed"


class TooLarge(Problem):
    status, code, title = 413, "too_large", "Too large"


class UnsupportedMedia(Problem):
    status, code, title = 415, "unsupported_media", "Unsupported media"


class Unprocessable(Problem):
    status, code, title = 422, "unprocessable", "Unprocessable content"


class Locked(Problem):
    status, code, title = 423, "locked", "Locked"


class TooManyRequests(Problem):
    status, code, title = 429, "too_many_requests", "Too many requests"


class HeadersTooLarge(Problem):
    status, code, title = 431, "headers_too_large", "Request header fields too large"


class Unavailable(Problem):
    status, code, title = 503, "unavailable", "Service unavailable"


class JobFailure(Exception):
    """The failure of a job, or of one attempt at a segment: a stable `code`, a `message` that says what to do.

    `transient` is true when the cause may pass by itself, so that another attempt makes sense.
    """

    def __init__(self, code: str, message: str, *, transient: bool = False) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.transient = transient
