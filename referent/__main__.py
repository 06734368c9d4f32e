"""The command line as a module, for torchrun and accelerate launch: python -m referent train ..."""

from referent.commands.app import app

if __name__ == "__main__":
    app()
