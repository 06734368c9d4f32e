"""How many operations a pass through LLaVA takes at least: two for each product of a weight and a number."""

from transformers import LlavaConfig

from referent.core.packing import Bucket


def vision_operations(config: LlavaConfig) -> float:
    """Of a picture: the layers up to the one that is read, and the projector."""
    tower, width = config.vision_config, config.text_config.hidden_size
    tokens = (tower.image_size // tower.patch_size) ** 2 + 1
    layer = 2 * tokens * (4 * tower.hidden_size**2 + 2 * tower.hidden_size * tower.intermediate_size)
    layer += 4 * tokens**2 * tower.hidden_size
    projector = 2 * (tokens - 1) * (tower.hidden_size * width + width**2)
    return (tower.num_hidden_layers - 1) * layer + projector


def language_operations(config: LlavaConfig, bucket: Bucket) -> float:
    """Of a row: the last layer has keys and values for all tokens and all else for the expressions."""
    text, tokens = config.text_config, bucket.tokens
    products = 4 * text.hidden_size**2 + 3 * text.hidden_size * text.intermediate_size
    layer = 2 * tokens * products + 4 * tokens**2 * text.hidden_size
    last = 2 * tokens * 2 * text.hidden_size**2 + 2 * bucket.expressions * products
    return (text.num_hidden_layers - 1) * layer + last
