"""Kinds of models: a module for each, and the register that a spec's `kind` is looked up in."""

from pathlib import Path

from referent.core.bundle import Bundle, BundleError, load_encoder
from referent.core.kind import Kind
from referent.core.processor import Processor
from referent.core.spec import ModelSpec
from referent.kinds.generator import Generator
from referent.kinds.head import Head
from referent.kinds.referents import Referents

KINDS: dict[str, Kind] = {}


def register(kind: Kind) -> None:
    """Makes a kind known, so that its models can be published, served and asked."""
    KINDS[kind.name] = kind


def kind_of(spec: ModelSpec) -> Kind:
    """The kind, as this model has it. Raises `referent.core.bundle.BundleError` for one that is not known here."""
    if spec.kind not in KINDS:
        raise BundleError(f"the model is of kind {spec.kind!r}; this release serves: {', '.join(KINDS)}")
    return KINDS[spec.kind].of(spec)


def load_processor(repository: Path, bundle: Bundle) -> Processor:
    """The processor with the bundle's own tokenizer. Raises `referent.core.bundle.BundleError`."""
    return Processor(bundle, load_encoder(repository, bundle), kind_of(bundle))


register(Head())
register(Referents())
register(Generator())
