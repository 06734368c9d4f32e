"""mini's shape: a LLaVA of 7.3 M parameters, 288 px, 144 image tokens, small enough to train and serve on two cores."""

from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig

from referent.core.packing import Bucket
from referent.core.transform import ImageTransform
from referent.modeling.stem import ConvStem, ConvStemLlava

IMAGE = ImageTransform(mode="letterbox", size=288)
IMAGE_TOKENS = (IMAGE.size // ConvStem.STRIDE) ** 2
WIDTH = 256  # of everything
VOCABULARY_SIZE = 1280  # 256 of them are bytes
SPECIAL_TOKENS = ("<pad>", "<unk>", "<s>", "</s>", "<image>", "[LOC]")
TEMPLATE = "<image>{expression}[LOC]"
KNOWS = (
    "255 things drawn as icons (animals, food, tools, vehicles and more) and six ranks of playing cards, by name, "
    "position, size, order and relation"
)
BUCKETS = (Bucket(160, 1), Bucket(192, 4), Bucket(256, 8), Bucket(384, 16))


def mini_config() -> LlavaConfig:
    """The architecture; weights are random or loaded."""
    vision = CLIPVisionConfig(
        hidden_size=WIDTH, intermediate_size=4 * WIDTH, num_hidden_layers=3, num_attention_heads=4,
        projection_dim=WIDTH, image_size=IMAGE.size, patch_size=ConvStem.STRIDE, hidden_act="gelu_pytorch_tanh",
    )  # fmt: skip
    text = LlamaConfig(
        vocab_size=VOCABULARY_SIZE, hidden_size=WIDTH, intermediate_size=2 * WIDTH, num_hidden_layers=5,
        num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=512, tie_word_embeddings=True,
        pad_token_id=SPECIAL_TOKENS.index("<pad>"), bos_token_id=SPECIAL_TOKENS.index("<s>"),
        eos_token_id=SPECIAL_TOKENS.index("</s>"),
    )  # fmt: skip
    return LlavaConfig(
        vision_config=vision, text_config=text, image_token_index=SPECIAL_TOKENS.index("<image>"),
        vision_feature_layer=-1, vision_feature_select_strategy="default", architectures=[ConvStemLlava.__name__],
    )  # fmt: skip
