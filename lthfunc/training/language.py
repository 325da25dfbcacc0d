"""Losses and metrics of language models: outputs are logits of the token that follows each token."""

from __future__ import annotations

from torch import Tensor

from lthfunc.arguments import public
from lthfunc.errors import UserError
from lthfunc.printable import dtype_and_shape
from lthfunc.training.evaluation import of_mean
from lthfunc.training.losses import Loss, cross_entropy, label_smoothed_cross_entropy
from lthfunc.trees.outputs import own_loss, prediction

#: The largest mean cross entropy whose exponential is a number in float64.
_MOST = 709.0


def next_token(outputs: Tensor, targets: Tensor) -> Tensor:
    """Cross entropy of the next token, the mean over all tokens of the batch, in nats.

    outputs: (n, length, vocabulary). targets: int64 (n, length), the token that follows each input token. A loss that
    the network returns itself, without logits, is taken as it is. Raises UserError for other shapes.

    >>> lf.next_token(torch.zeros(1, 3, 4), torch.tensor([[0, 1, 3]]))
    tensor(1.3863)
    """
    _check_tokens("next_token", outputs, targets)
    return cross_entropy(outputs, targets)


@public
def label_smoothed_next_token(label_smoothing: float) -> Loss:
    """`next_token` with the share `label_smoothing` of each target spread over the vocabulary.

    Szegedy et al. 2016, sec. 7. Returns a loss. Raises UserError for a share outside [0, 1].

    >>> lf.label_smoothed_next_token(0.2)(torch.zeros(1, 3, 4), torch.tensor([[0, 1, 3]]))
    tensor(1.3863)
    """
    smoothed = label_smoothed_cross_entropy(label_smoothing)

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        _check_tokens("label_smoothed_next_token", outputs, targets)
        return smoothed(outputs, targets)

    return loss


def _exponential(mean: Tensor) -> Tensor:
    return mean.double().clamp(max=_MOST).exp()


@of_mean(next_token, _exponential)
def perplexity(outputs: Tensor, targets: Tensor) -> Tensor:
    """Perplexity: the exponential of the mean cross entropy of the next token. Lower is better, 1 is the minimum.

    outputs: (n, length, vocabulary). targets: int64 (n, length). A trainer takes the exponential once, of the mean over
    the whole split. Raises UserError for other shapes. Jelinek et al. 1977.

    >>> lf.perplexity(torch.zeros(1, 3, 4), torch.tensor([[0, 1, 3]]))
    tensor(4.0000, dtype=torch.float64)
    """
    _check_tokens("perplexity", outputs, targets)
    return _exponential(cross_entropy(outputs, targets))


def _check_tokens(name: str, outputs: Tensor, targets: Tensor) -> None:
    """Raise UserError unless there is a row of logits for each of several tokens."""
    if own_loss(outputs) is not None:
        return
    found = prediction(outputs)
    if found.ndim != 3 or targets.is_floating_point():
        raise UserError(
            f"{name}: expected logits (n, length, vocabulary) and targets (n, length); outputs are "
            f"{dtype_and_shape(found)}, targets {dtype_and_shape(targets)}"
        )
