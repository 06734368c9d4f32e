"""Scenes of coloured squares, and a folder of records with a base."""

from tests.support.annotations import images, materials_folder
from tests.support.training import base, make_recipe, materials, records_folder, spec, stream

__all__ = ["base", "images", "make_recipe", "materials", "materials_folder", "records_folder", "spec", "stream"]
