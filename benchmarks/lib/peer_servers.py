"""What one would serve a checkpoint with instead: started by `benchmarks.peers`, each answering POST /v1/ground.

    python -m benchmarks.lib.peer_servers eager|litserve|text CHECKPOINT --port PORT

eager is visual-grounding-api's way: FastAPI, PyTorch in the handler, one request at a time. litserve batches up to
eight. text has the box written by transformers' generate with its KV cache, one request at a time.
"""

import argparse
import base64
from pathlib import Path
from typing import Any

import litserve
import torch
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel

from referent.core.answers import Answer
from referent.core.images import Picture
from referent.modeling.grounder import ModelGrounder, TextGrounder, load_grounder

MAX_BATCH = 8
BATCH_TIMEOUT_S = 0.01


class EncodedImage(BaseModel):
    """An image in base64."""

    base64: str


class Asked(BaseModel):
    """The request of POST /v1/ground, as far as the benchmark sends it."""

    image: EncodedImage
    expressions: list[str]


class Tokens:
    """Counts what a model writes; with `fixed`, has it write so many whatever it wants to say (random weights)."""

    def __init__(self, grounder: TextGrounder, fixed: int | None) -> None:
        self.count, self._fixed = 0, fixed
        llava: Any = grounder._model.base
        self._generate = llava.generate
        llava.generate = self._counted

    def _counted(self, **options: Any) -> torch.Tensor:
        if self._fixed:
            options |= {"min_new_tokens": self._fixed, "max_new_tokens": self._fixed}
        generated: torch.Tensor = self._generate(**options)
        self.count = generated.shape[1]
        return generated


def one_at_a_time(grounder: ModelGrounder, tokens: Tokens | None) -> FastAPI:
    """The model runs in the handler: nothing else happens meanwhile."""
    app = FastAPI()

    @app.post("/v1/ground")
    async def ground(asked: Asked) -> dict[str, Any]:
        results = grounder.ground(grounder.decode(base64.b64decode(asked.image.base64)), asked.expressions)
        return _answer(results) | ({"tokens": tokens.count} if tokens else {})

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
    grounder = load_grounder(arguments.checkpoint, "cpu")
    tokens = Tokens(grounder, arguments.tokens) if isinstance(grounder, TextGrounder) else None
    uvicorn.run(one_at_a_time(grounder, tokens), host="127.0.0.1", port=arguments.port, log_level="warning")


if __name__ == "__main__":
    main()
