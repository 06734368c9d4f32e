"""The tiny model with a referent head: random weights, of which some tokens stand out."""

from pathlib import Path

import torch

from referent.core.bundle import TOKENIZER_FILE
from referent.modeling.checkpoint import load_checkpoint, save_checkpoint
from referent.modeling.heads import ReferentHead


def save_referents_checkpoint(tiny_checkpoint: Path, directory: Path, **updates: object) -> None:
    """The tiny checkpoint's base and adapter, with a referent head."""
    model, spec = load_checkpoint(tiny_checkpoint)
    torch.manual_seed(4)  # finds several in every picture of the tests
    model.referent_head = ReferentHead(64, spec.image_tokens).eval()
    with torch.no_grad():
        model.referent_head.prior.fill_(1.0)
        torch.nn.init.normal_(model.referent_head.mlp[-1].weight, std=0.05)
    thresholds = {"present_threshold": 0.1, "referent_threshold": 0.1}
    kind = {"kind": "referents", "base": str((tiny_checkpoint / spec.base).resolve())}
    spec = spec.model_copy(update=kind | thresholds | updates)
    save_checkpoint(directory, model, spec, tiny_checkpoint / TOKENIZER_FILE)
