"""Images and annotations of a small dataset; a service with its answers given."""

from tests.support.annotations import images, materials_folder
from tests.support.commands import asked

__all__ = ["asked", "images", "materials_folder"]
