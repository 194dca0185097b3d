"""What goes wrong with a request: one exception, a code, and the status of each code."""

from pipeline.errors import RaylensError, RowError

STATUS = {
    "bad_request": 400,
    "unauthorized": 401,
    "not_found": 404,
    "unknown_model": 404,
    "method_not_allowed": 405,
    "body_timeout": 408,
    "body_too_large": 413,
    "too_large": 413,
    "too_many_instances": 413,
    "too_many_values": 413,
    "unknown_method": 422,
    "unknown_class": 422,
    "unknown_option": 422,
    "address_refused": 422,
    "empty": 422,
    "not_an_image": 422,
    "truncated": 422,
    "corrupt": 422,
    "non_finite": 422,
    "not_readable": 422,
    "rate_limited": 429,
    "internal": 500,
    "overloaded": 503,
    "deadline": 503,
    "unavailable": 503,
}
RETRY_AFTER_S = {"overloaded": 1, "deadline": 1, "unavailable": 5, "rate_limited": 1}


class RefusedError(RaylensError):
    """A request that is not answered, with the reason.

    Args:
        code: key of `STATUS`.
        message: what was found, what was expected, and what there is.
        retry_after_s: when to ask again; by default that of the code.
    """

    def __init__(self, code: str, message: str, *, retry_after_s: int | None = None) -> None:
        super().__init__(code, message)
        self.code = code
        self.message = message
        self.retry_after_s = RETRY_AFTER_S.get(code) if retry_after_s is None else retry_after_s

    def __str__(self) -> str:
        return self.message

    @property
    def status(self) -> int:
        """HTTP status."""
        return STATUS[self.code]


def of_row(error: RowError) -> RefusedError:
    """An image that cannot be decoded, under the same code as in a job's rejects."""
    return RefusedError(error.code if error.code in STATUS else "corrupt", str(error))
