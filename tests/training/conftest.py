"""Scenes of coloured squares, and a folder of records with a base."""

from tests.support.training import base, make_recipe, materials, records_folder, spec, stream

__all__ = ["base", "make_recipe", "materials", "records_folder", "spec", "stream"]
