"""LLaVA-1.5 as it is published, with the prompt of visual-grounding-api's baseline: it answers with a box in text."""

from pathlib import Path

from referent.core.bundle import TOKENIZER_FILE
from referent.core.grammar import BoxGrammar
from referent.kinds.generator import generation_of
from referent.modeling.checkpoint import (
    CheckpointSpec,
    load_checkpoint_encoder,
    make_model,
    new_checkpoint,
    save_checkpoint,
)
from referent.modeling.importers.visual_grounding import base_tokenizer
from referent.modeling.llava import check_families, llava_spec
from referent.modeling.weights import CheckpointError, load_llava, load_llava_config

TEMPLATE = "vg-text"
GRAMMAR = BoxGrammar(order="cxcywh", lead=" ")


def import_llava(base: Path, out: Path) -> CheckpointSpec:
    """Write the checkpoint `out` of an unchanged LLaVA-1.5, which refers to its directory `base`; nothing is written if
    that fails. It sees CLIP's centre crop, and its boxes are shares of the whole image, as in the baseline.

    Raises `CheckpointError`.
    """
    config = load_llava_config(base)
    check_families(base, config)
    if not isinstance(end := config.text_config.eos_token_id, int):
        raise CheckpointError(f"{base}/config.json has eos_token_id {end} in its text_config: name one token")
    tokenizer = base_tokenizer(base)
    spec = llava_spec(base, tokenizer, template=TEMPLATE, center_crop=True, kind="generator")
    updates = {
        "generation": generation_of(spec).model_copy(update={"grammar": GRAMMAR}),
        "present_threshold": 0.0,
        "training": {"imported": "llava", "base": base.resolve().name},
    }
    spec = CheckpointSpec(**spec.model_dump() | updates)
    model = make_model(load_llava(base), None)
    with new_checkpoint(out) as directory:
        tokenizer.save(str(directory / TOKENIZER_FILE))
        try:
            load_checkpoint_encoder(directory, spec).answer(GRAMMAR.write((0.5, 0.3, 0.2, 0.4)))
        except ValueError as error:
            raise CheckpointError(f"{base} has not LLaVA's tokenizer, get it again: {error}") from error
        save_checkpoint(directory, model, spec, directory / TOKENIZER_FILE)
    return spec
