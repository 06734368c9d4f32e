"""Other ways to serve a checkpoint, started by `benchmarks.peers`; each answers POST /v1/ground.

    python -m benchmarks.lib.peer_servers eager|litserve|text CHECKPOINT --port PORT

eager is visual-grounding-api's way: FastAPI, PyTorch in the handler, one request at a time. litserve batches up to
eight. text has the box written by transformers' generate with its KV cache, one request at a time.
"""

import argparse
import base64
from collections.abc import Callable
from pathlib import Path
from typing import Any

import litserve
import numpy as np
import torch
import uvicorn
from fastapi import FastAPI
from peft import PeftModel
from pydantic import BaseModel
from tokenizers import Tokenizer

from referent.core.answers import Answer
from referent.core.contract import IMAGE
from referent.core.images import Picture
from referent.core.processor import Processor
from referent.kinds import kind_of
from referent.kinds.generator import generation_of
from referent.modeling.checkpoint import load_checkpoint, load_checkpoint_encoder
from referent.modeling.grounder import load_grounder

MAX_BATCH = 8
MAX_TOKENS = 64  # of an answer in text
BATCH_TIMEOUT_S = 0.01


class EncodedImage(BaseModel):
    """An image in base64."""

    base64: str


class Asked(BaseModel):
    """The request of POST /v1/ground, as far as the benchmark sends it."""

    image: EncodedImage
    expressions: list[str]


class PlainGeneration:
    """Answers in text as transformers' generate writes them: its KV cache, no grammar, one after another.

    With `tokens`, it always writes so many, for random weights.
    """

    def __init__(self, checkpoint: Path, tokens: int | None) -> None:
        self._model, self._spec = load_checkpoint(checkpoint)
        if isinstance(self._model.llava, PeftModel):
            self._model.llava = self._model.llava.merge_and_unload()
        self._encoder = load_checkpoint_encoder(checkpoint, self._spec)
        self._tokenizer = Tokenizer.from_str(self._encoder.tokenizer_json)
        self._processor = Processor(self._spec, self._encoder, kind_of(self._spec))
        fixed = {"min_new_tokens": tokens, "max_new_tokens": tokens}
        self._options: dict[str, Any] = fixed if tokens else {"max_new_tokens": MAX_TOKENS}
        self._options |= {"do_sample": False, "pad_token_id": self._spec.prompt.pad_token_id}
        self._options["eos_token_id"] = generation_of(self._spec).eos_token_id

    @torch.inference_mode()
    def __call__(self, data: bytes, expressions: list[str]) -> dict[str, Any]:
        prepared = self._processor.prepare(data, expressions)
        features = self._model.encode_image(torch.from_numpy(prepared.inferences[0][IMAGE.name]))
        boxes, counts = [], []
        for expression in expressions:
            prompt = torch.tensor([[*self._encoder.prefix, *self._encoder.suffix(expression)]])
            embeddings = self._model.embed(prompt, features)
            base: Any = self._model.base
            generated = base.generate(
                inputs_embeds=embeddings, attention_mask=torch.ones_like(prompt), **self._options
            )[0].tolist()
            found = generation_of(self._spec).grammar.read(self._tokenizer.decode(generated).strip())
            boxes.append(prepared.frame.boxes_to_image(np.array(found[0].values)).tolist() if found else [None] * 4)
            counts.append(len(generated))
        return {"results": [{"box_xyxy": box} for box in boxes], "tokens": sum(counts)}


def one_at_a_time(answer: Callable[[bytes, list[str]], dict[str, Any]]) -> FastAPI:
    """The model runs in the handler: nothing else happens meanwhile."""
    app = FastAPI()

    @app.post("/v1/ground")
    async def ground(asked: Asked) -> dict[str, Any]:
        return answer(base64.b64decode(asked.image.base64), asked.expressions)

    return app


class BatchingApi(litserve.LitAPI):
    """LitServe decodes requests one by one and passes what has come within the timeout on as a batch."""

    def __init__(self, checkpoint: Path) -> None:
        super().__init__(max_batch_size=MAX_BATCH, batch_timeout=BATCH_TIMEOUT_S, api_path="/v1/ground")
        self._checkpoint = checkpoint

    def setup(self, device: str) -> None:
        self._grounder = load_grounder(self._checkpoint, "cpu")

    def decode_request(self, request: Asked) -> tuple[Picture, list[str]]:
        return self._grounder.decode(base64.b64decode(request.image.base64)), request.expressions

    def batch(self, inputs: list[tuple[Picture, list[str]]]) -> list[tuple[Picture, list[str]]]:
        return inputs

    def predict(self, x: list[tuple[Picture, list[str]]]) -> list[list[Answer]]:
        pictures, expressions = zip(*x, strict=True)
        return self._grounder.ground_batch(pictures, expressions)

    def unbatch(self, output: list[list[Answer]]) -> list[list[Answer]]:
        return output

    def encode_response(self, output: list[Answer]) -> dict[str, Any]:
        return _answer(output)


def _eager(checkpoint: Path) -> Callable[[bytes, list[str]], dict[str, Any]]:
    grounder = load_grounder(checkpoint, "cpu")
    return lambda data, expressions: _answer(grounder.ground(grounder.decode(data), expressions))


def _answer(results: list[Answer]) -> dict[str, Any]:
    return {"results": [{"box_xyxy": result.box_xyxy} for result in results]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("peer", choices=("eager", "litserve", "text"))
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--tokens", type=int, help="of each answer in text; default: as many as the model writes")
    arguments = parser.parse_args()
    if arguments.peer == "litserve":
        server = litserve.LitServer(BatchingApi(arguments.checkpoint), accelerator="cpu", workers_per_device=1)
        server.run(host="127.0.0.1", port=arguments.port, generate_client_file=False, log_level="warning")
        return
    is_text = arguments.peer == "text"
    way = PlainGeneration(arguments.checkpoint, arguments.tokens) if is_text else _eager(arguments.checkpoint)
    uvicorn.run(one_at_a_time(way), host="127.0.0.1", port=arguments.port, log_level="warning")


if __name__ == "__main__":
    main()
