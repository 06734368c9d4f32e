"""A published mini as a start for the next one: statistics of its batch norms, and another vocabulary."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from tokenizers import Tokenizer
from torch import nn

from referent.mini import shape as mini
from referent.modeling.grounding import GroundingModel
from referent.modeling.stem import ConvStemLlava


@torch.no_grad()
def measure_norms(model: GroundingModel, images: Iterable[torch.Tensor]) -> None:
    """Exporters before mini 2 folded each batch norm into its convolution. Gives the norms the statistics of these
    batches of images (B, S, S, 3) uint8, so that training normalises again; answers stay as they are."""
    norms = [module for module in model.base.model.vision_tower.modules() if isinstance(module, nn.BatchNorm2d)]
    sums = {norm: torch.zeros(2, norm.num_features) for norm in norms}
    count = 0
    with _seen_by(norms, sums):
        for batch in images:
            model.encode_image(batch)
            count += 1
    for norm, total in sums.items():
        mean, square = total / count
        variance = square - mean**2
        scale = norm.weight / (norm.running_var + norm.eps).sqrt()  # of the norm as it is
        norm.bias += (mean - norm.running_mean) * scale
        norm.weight.copy_(scale * (variance + norm.eps).sqrt())
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(variance)


@contextmanager
def _seen_by(norms: list[nn.BatchNorm2d], sums: dict[nn.BatchNorm2d, torch.Tensor]) -> Iterator[None]:
    def add(norm: nn.Module, inputs: tuple[torch.Tensor]) -> None:
        channels = inputs[0].float().transpose(0, 1).flatten(1)
        assert isinstance(norm, nn.BatchNorm2d)
        sums[norm] += torch.stack((channels.mean(1), (channels**2).mean(1)))

    hooks = [norm.register_forward_pre_hook(add) for norm in norms]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def translate(llava: ConvStemLlava, old: Tokenizer, new: Tokenizer) -> ConvStemLlava:
    """The same model for another vocabulary of mini's size: a token's embedding is the mean over the tokens that the
    old vocabulary spells it with."""
    found = ConvStemLlava(mini.mini_config())
    before = llava.state_dict()
    rows = before["lm_head.weight"]
    embeddings = rows.mean(0).repeat(mini.VOCABULARY_SIZE, 1)
    for token, index in new.get_vocab().items():
        known = old.token_to_id(token)
        pieces = [piece.id for piece in old.model.tokenize(token)] if known is None else [known]
        embeddings[index] = rows[pieces].mean(0)
    changed = {key: embeddings for key in before if key.endswith(("lm_head.weight", "embed_tokens.weight"))}
    found.load_state_dict(before | changed)
    return found
