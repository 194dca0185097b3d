"""Methods of one pass, for jobs that want predictions of every image and of whose maps any will do."""

from collections.abc import Iterator
from contextlib import suppress

from pipeline.attribution import METHODS
from pipeline.errors import MethodError
from pipeline.jobs.run import check_fit
from pipeline.model import LoadedModel
from schemas.job import JobSpec

ONCE = "1"


def of_one_pass(job: JobSpec, model: LoadedModel) -> Iterator[str]:
    """The methods that take one pass, explain every class and fit a model, in the order of `METHODS`.

    Args:
        job: whose target they must allow; its own method is not read.
        model: to explain.

    Yields:
        Keys of `METHODS`.
    """
    for name, kind in METHODS.items():
        if kind.traits.forwards == ONCE and kind.traits.discriminative and kind.misfit(model) is None:
            with suppress(MethodError):
                check_fit(job.model_copy(update={"method": name, "method_args": {}}), model)
                yield name
