"""Attribution methods by name. A new method: one class in its family's file, and one line here."""

from pipeline.attribution.attention import Chefer, Rollout
from pipeline.attribution.attnlrp import AttnLRP
from pipeline.attribution.base import Attribution, Choose, Method, Needs, Traits
from pipeline.attribution.cam import (
    CAM,
    EigenCAM,
    EigenGradCAM,
    GradCAM,
    GradCAMPlusPlus,
    HiResCAM,
    LayerCAM,
    XGradCAM,
)
from pipeline.attribution.fullgrad import FullGrad
from pipeline.attribution.gradient import (
    Gradient,
    InputXGradient,
    IntegratedGradients,
    SmoothedInputXGradient,
    SmoothedIntegratedGradients,
)
from pipeline.attribution.guided import Deconvnet, GuidedBackprop, GuidedGradCAM
from pipeline.attribution.linear_interpreter import LinearInterpreter
from pipeline.attribution.masked_cam import AblationCAM, ScoreCAM
from pipeline.attribution.meta import MetaSaliency
from pipeline.attribution.multilayer import MultiLayer
from pipeline.attribution.noisy import SmoothGrad, VarGrad
from pipeline.attribution.normgrad import NormGrad
from pipeline.attribution.perturbation import RISE, Occlusion
from pipeline.attribution.relevance import LRP
from pipeline.attribution.sobol import Sobol
from pipeline.attribution.srmap import SRMap
from pipeline.attribution.superpixels import LIME, KernelSHAP
from pipeline.attribution.tokencut import TokenCut
from pipeline.attribution.vps import VPS
from pipeline.catalogue import named
from pipeline.errors import MethodError
from pipeline.model import LoadedModel

METHODS: dict[str, type[Method]] = {
    "cam": CAM,
    "gradcam": GradCAM,
    "gradcam++": GradCAMPlusPlus,
    "xgradcam": XGradCAM,
    "hirescam": HiResCAM,
    "layercam": LayerCAM,
    "eigencam": EigenCAM,
    "eigengradcam": EigenGradCAM,
    "scorecam": ScoreCAM,
    "ablationcam": AblationCAM,
    "fullgrad": FullGrad,
    "multilayer": MultiLayer,
    "normgrad": NormGrad,
    "gradient": Gradient,
    "inputxgradient": InputXGradient,
    "ig": IntegratedGradients,
    "smoothgrad": SmoothGrad,
    "vargrad": VarGrad,
    "smoothixg": SmoothedInputXGradient,
    "smoothig": SmoothedIntegratedGradients,
    "guidedbackprop": GuidedBackprop,
    "deconvnet": Deconvnet,
    "guidedgradcam": GuidedGradCAM,
    "linear": LinearInterpreter,
    "meta": MetaSaliency,
    "lrp": LRP,
    "srmap": SRMap,
    "attnlrp": AttnLRP,
    "rollout": Rollout,
    "chefer": Chefer,
    "tokencut": TokenCut,
    "rise": RISE,
    "occlusion": Occlusion,
    "lime": LIME,
    "kernelshap": KernelSHAP,
    "sobol": Sobol,
    "vps": VPS,
}

__all__ = ["METHODS", "Attribution", "Choose", "Method", "Needs", "Traits", "create", "method_class"]


def method_class(name: str) -> type[Method]:
    """The class of a method.

    Args:
        name: key of `METHODS`.

    Returns:
        The class.

    Raises:
        MethodError: no such method.
    """
    return named("method", METHODS, name, {})


def create(name: str, model: LoadedModel, *, seed: int = 0, **parameters: object) -> Method:
    """Binds a method to a model.

    Args:
        name: key of `METHODS`.
        model: the model to explain.
        seed: of the job.
        **parameters: of the method.

    Returns:
        The method.

    Raises:
        MethodError: no such method, it has no such parameter, or it does not fit the model.
    """
    method = named("method", METHODS, name, parameters, bound=("model", "seed"))
    if reason := method.misfit(model):
        obstacle = f" ({model.obstacle})" if model.obstacle else ""
        fitting = [other for other, candidate in METHODS.items() if candidate.misfit(model) is None]
        raise MethodError(
            f"method {name} cannot explain {model.source}: {reason}{obstacle}; these can: {', '.join(fitting)}"
        )
    return method(model, seed=seed, **parameters)
