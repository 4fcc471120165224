"""The texts to score: checked, and cut into what is seen, scored and hidden."""

from collections.abc import Sequence

from jaxtyping import Bool, Int
from torch import Tensor

from unmask.draws import require_rows
from unmask.network import Network, begin_of


def conditional(
    x_0: Int[Tensor, "S L"], target: Bool[Tensor, "S L"], given: Bool[Tensor, "S L"], mask_id: int
) -> tuple[Int[Tensor, "S L"], Bool[Tensor, "S L"]]:
    """(x_0, maskable) that score p(target | given): positions that are neither hold the mask, for ever.

    `log_likelihood(model, *conditional(x_0, target, given, model.mask_id))`. For a network with the conditionals of a
    joint law this is p(target | given), the rest summed out; any network leaves what is masked open, and this is
    its law of the target while the rest stays open. Raises ValueError where a target is also given.
    """
    if bool((target & given).any()):
        raise ValueError("a position cannot be both target and given")
    return x_0.masked_fill(~(target | given), mask_id), target


def checked(
    network: Network,
    x_0: Int[Tensor, "S L"],
    maskable: Bool[Tensor, "S L"] | None,
    sequences: Sequence[int] | None,
    documents: Int[Tensor, " S"] | None = None,
) -> tuple[Int[Tensor, "S L"], Bool[Tensor, "S L"], list[int]]:
    """(x_0, maskable, numbers) on the host; by default all is maskable but what is hidden and a `Model`'s begin token
    in front. Raises ValueError where they do not fit, or nothing is to be scored.
    """
    require_rows("x_0", x_0)
    if maskable is not None:
        require_rows("maskable", maskable, of_bool=True)
    x_0 = x_0.cpu().long()
    if maskable is None:
        maskable, begin = x_0 != network.mask_id, begin_of(network)
        if begin is not None:
            maskable[:, :1] &= x_0[:, :1] != begin
    maskable = maskable.cpu()
    numbers = list(range(len(x_0))) if sequences is None else list(sequences)
    if maskable.shape != x_0.shape or len(numbers) != len(x_0):
        raise ValueError(f"x_0 {tuple(x_0.shape)}, maskable {tuple(maskable.shape)}, {len(numbers)} numbers do not fit")
    if documents is not None and (not isinstance(documents, Tensor) or documents.shape != x_0.shape[:1]):
        what = tuple(documents.shape) if isinstance(documents, Tensor) else f"of {type(documents).__name__}"
        raise ValueError(f"documents {what}: give a tensor of one number for each of {len(x_0)} sequences")
    if not bool(maskable.any()):
        raise ValueError("nothing to score: no position is maskable")
    hidden = x_0 == network.mask_id
    outside = x_0[(maskable & hidden) | (~hidden & ((x_0 < 0) | (x_0 >= network.vocab)))]
    if len(outside):
        raise ValueError(f"token {int(outside[0])} of x_0 is not in the network's vocabulary of {network.vocab}")
    if network.causal and bool((hidden & (maskable.flip(-1).cumsum(-1).flip(-1) > 0)).any()):
        raise ValueError("a causal network cannot leave out what stands before a scored token: give it, or score it")
    return x_0, maskable, numbers
