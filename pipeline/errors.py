"""The exceptions of raylens: one tree, each with the command's exit code and a message that says how to mend it."""


class RaylensError(Exception):
    """Root of everything raylens raises on purpose."""

    exit_code = 1


class SpecError(RaylensError):
    """A job specification or a flag is wrong."""

    exit_code = 2


class InputError(RaylensError):
    """The input cannot be listed, or is not what it was said to be."""

    exit_code = 3


class ModelError(RaylensError):
    """The model, its weights, its layer or its preprocessing cannot be resolved."""

    exit_code = 4


class MethodError(RaylensError):
    """The method is unknown, its parameters are wrong, or it does not fit the model."""

    exit_code = 5


class OutputError(RaylensError):
    """The output belongs to another job or cannot be written."""

    exit_code = 6


class GoldenError(RaylensError):
    """The model missed the golden set: its preprocessing or weights are probably not what it was trained with."""

    exit_code = 7


class IntegrityError(RaylensError):
    """Images in differ from explained plus rejected. Never expected; the output must not be trusted."""

    exit_code = 8


class WorkerError(RaylensError):
    """Worker processes died, or a step failed in them, so often that the job cannot go on."""

    exit_code = 10


class WorkerDiedError(WorkerError):
    """A worker process was lost more often than its step is retried: the machine is at fault, or an image kills it."""


class RejectLimitError(RaylensError):
    """More images were rejected than the job allows."""

    exit_code = 9


class AlertError(RaylensError):
    """An audit found something that its limits and thresholds call wrong; everything is written."""

    exit_code = 11


class RowError(RaylensError):
    """One image cannot be explained; becomes a row in rejects.

    Args:
        code: the reason, one of a small set; see README.
        message: what was found, in a short sentence.
        stage: where it happened: read, decode or graph.
    """

    def __init__(self, code: str, message: str, *, stage: str = "decode") -> None:
        super().__init__(code, message)  # all that it takes to make it again, which a pickle does
        self.code = code
        self.message = message
        self.stage = stage

    def __str__(self) -> str:
        return self.message


def first_line(error: BaseException) -> str:
    """The first line of what another library's error says, for a message of ours; some say nothing at all."""
    return next(iter(str(error).strip().splitlines()), "no message")
