"""What torch's own losses take for labels; of others nothing is known."""

from functools import partial

from torch import nn

from flwr_splitfc.model.callables import LossFn

_MARK_OF_TORCH = -100

_CLASS_INDEX_LOSSES = (nn.CrossEntropyLoss, nn.NLLLoss)
_CLASS_INDEX_FUNCTIONS = (nn.functional.cross_entropy, nn.functional.nll_loss)
_BROADCASTING_LOSSES = (
    nn.MSELoss,
    nn.L1Loss,
    nn.SmoothL1Loss,
    nn.HuberLoss,
    nn.PoissonNLLLoss,
    nn.KLDivLoss,
    nn.MultiLabelSoftMarginLoss,
    nn.SoftMarginLoss,
    nn.HingeEmbeddingLoss,
)
_BROADCASTING_FUNCTIONS = (
    nn.functional.mse_loss,
    nn.functional.l1_loss,
    nn.functional.smooth_l1_loss,
    nn.functional.huber_loss,
    nn.functional.poisson_nll_loss,
    nn.functional.kl_div,
    nn.functional.multilabel_soft_margin_loss,
    nn.functional.soft_margin_loss,
    nn.functional.hinge_embedding_loss,
)
_PROBABILITY_LOSSES = (nn.BCELoss,)
_PROBABILITY_FUNCTIONS = (nn.functional.binary_cross_entropy,)
_MARGIN_LOSSES = (
    (nn.MultiMarginLoss, nn.functional.multi_margin_loss, 0),
    # -1 ends a sample's list
    (nn.MultiLabelMarginLoss, nn.functional.multilabel_margin_loss, -1),
)


def takes_class_indices(loss_fn: LossFn) -> bool:
    """Whether integer labels are indices of classes, dimension 1 of the outputs."""
    if isinstance(loss_fn, _CLASS_INDEX_LOSSES):
        return True
    return _function_of(loss_fn) in _CLASS_INDEX_FUNCTIONS


def broadcasts(loss_fn: LossFn) -> bool:
    """Whether it takes labels of another shape than the outputs."""
    if isinstance(loss_fn, _BROADCASTING_LOSSES):
        return True
    return _function_of(loss_fn) in _BROADCASTING_FUNCTIONS


def takes_probabilities(loss_fn: LossFn) -> bool:
    """Whether outputs and labels are probabilities."""
    if isinstance(loss_fn, _PROBABILITY_LOSSES):
        return True
    return _function_of(loss_fn) in _PROBABILITY_FUNCTIONS


def least_margin_label(loss_fn: LossFn) -> int | None:
    """Return the least label that a margin loss takes; None for other losses."""
    for kind, function, least in _MARGIN_LOSSES:
        if isinstance(loss_fn, kind) or _function_of(loss_fn) is function:
            return least
    return None


def ignored_label(loss_fn: LossFn | None) -> int:
    """Return the label that a loss leaves out; -100 where it names none."""
    if isinstance(loss_fn, partial):
        ignored = loss_fn.keywords.get("ignore_index")
    else:
        ignored = getattr(loss_fn, "ignore_index", None)
    return _MARK_OF_TORCH if ignored is None else int(ignored)


def _function_of(loss_fn: LossFn) -> LossFn:
    return loss_fn.func if isinstance(loss_fn, partial) else loss_fn
