"""What a study compares: models and methods on one data set, by the metrics of their maps."""

import re
from typing import Annotated, Any, Self

from pydantic import BeforeValidator, Field, JsonValue, model_validator

from schemas.audit import MeasureSettings, object_attributes
from schemas.graph import Frozen
from schemas.job import MODEL_FIELDS, JobSpec
from schemas.measures import CENTRE, CONTROLS

REFUSED = {
    "method": "name the methods under `methods`",
    "method_args": "write `methods: {NAME: {parameter: value}}`",
    "runtime": "maps are measured by torch",
    "embedding": "a study reads no embeddings",
}
"""Fields of a job that a study does not have, with what to do instead."""
RESERVED = ("predictions", "controls", "chance", CENTRE, *CONTROLS)
"""Names of folders and rows beside those of the methods."""
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]*$")]


class MethodSpec(Frozen):
    """One method.

    Attributes:
        name: in the tables, and of its folder.
        method: key of `pipeline.attribution.METHODS`.
        parameters: of the method.
    """

    name: Name
    method: str
    parameters: dict[str, JsonValue] = Field(default_factory=dict)


def _as_methods(value: Any) -> Any:
    """Methods may be a list of names, or a mapping from names to parameters, `method` among them where it differs."""
    if isinstance(value, str):
        value = [value]
    if isinstance(value, dict):
        return [_as_method(name, fields or {}) for name, fields in value.items()]
    return [_as_method(item, {}) if isinstance(item, str) else item for item in value]


def _as_method(name: str, fields: dict[str, Any]) -> dict[str, Any]:
    parameters = {key: value for key, value in fields.items() if key != "method"}
    return {"name": name, "method": fields.get("method", name), "parameters": parameters}


Methods = Annotated[tuple[MethodSpec, ...], BeforeValidator(_as_methods), Field(min_length=1)]


class StudySpec(JobSpec):
    """Everything a run of `raylens study` depends on: data, models, methods, and what is measured.

    The data are named once. Fields of the model hold for every model that does not name its own; without `models`, they
    are the one model.
    """

    models: dict[Name, dict[str, JsonValue]] = Field(
        default_factory=dict, description="Models by name, each with the fields of a job that describe it."
    )
    methods: Methods = Field(
        tuple(
            MethodSpec(name=name, method=name)
            for name in ("gradcam", "hirescam", "layercam", "eigencam", "normgrad", "inputxgradient", "ig")
        ),
        description="Methods to compare: names, or in the file names with parameters.",
    )
    measure: MeasureSettings = Field(default_factory=MeasureSettings, description="Metrics of the maps.")

    @model_validator(mode="before")
    @classmethod
    def _filled(cls, values: dict[str, Any]) -> dict[str, Any]:
        """One model may stand without a name; boxes and masks are attributes without being written twice."""
        if found := [f"{name}: {REFUSED[name]}" for name in REFUSED if name in values]:
            raise ValueError(f"a study has no field {'; '.join(found)}")
        models = values.get("models") or {}
        if not models and isinstance(values.get("model"), str):
            models = {_short(values["model"]): {}}
        filled = {**values, "models": models}
        if isinstance(models, dict):
            filled.setdefault("model", next((one["model"] for one in models.values() if "model" in (one or {})), None))
        given, wanted = values.get("attributes") or (), object_attributes(values.get("measure"))
        attributes = [given] if isinstance(given, str) else list(given)
        return filled | {"attributes": list(dict.fromkeys([*attributes, *wanted]))}

    @model_validator(mode="after")
    def _fits(self) -> Self:
        names = [method.name for method in self.methods]
        if wrong := sorted({name for name in names if names.count(name) > 1 or name.split("-")[0] in RESERVED}):
            raise ValueError(f"methods {', '.join(wrong)}: each needs a name of its own, none of {', '.join(RESERVED)}")
        for name, fields in self.models.items():
            if unknown := sorted(set(fields) - set(MODEL_FIELDS)):
                raise ValueError(f"models.{name}: no field {', '.join(unknown)}; there are: {', '.join(MODEL_FIELDS)}")
            self.job(name, self.methods[0], self.output)
        if self.measure.is_empty:
            raise ValueError("measure: a study without images or without metrics compares nothing; name some")
        return self

    def job(self, model: str, method: MethodSpec, output: str) -> JobSpec:
        """The job that explains the data with one method on one model.

        Args:
            model: its name in `models`.
            method: of the job.
            output: its address.

        Returns:
            A specification without the fields of the study.
        """
        values = {name: getattr(self, name) for name in JobSpec.model_fields}
        own = {"method": method.method, "method_args": method.parameters, "output": output, "overwrite": False}
        return JobSpec(**values | self.models[model] | own)

    def identity(self) -> dict[str, Any]:
        """What decides the result, by name; see `JobSpec.identity`."""
        jobs = {name: self.job(name, self.methods[0], self.output).identity() for name in self.models}
        for job in jobs.values():
            del job["method"], job["method_args"]
        saved = self.public()
        return {"jobs": jobs, "methods": saved["methods"], "measure": saved["measure"]}


def _short(model: str) -> str:
    """`resnet50` of `timm:resnet50`, `net.onnx` of `onnx:folder/net.onnx`."""
    return re.sub(r"[^A-Za-z0-9._+-]+", "-", re.split(r"[:/]", model)[-1]).strip("-.") or "model"
