"""Images and annotations of a small dataset."""

from tests.support.annotations import images, materials_folder

__all__ = ["images", "materials_folder"]
