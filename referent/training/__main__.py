"""python -m referent.training: the same as `referent train`, for torchrun and accelerate launch."""

import typer

from referent.training.command import train

if __name__ == "__main__":
    typer.run(train)
