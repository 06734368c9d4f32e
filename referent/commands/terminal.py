"""Error messages of commands."""

import typer


def failure(message: str, code: int = 1) -> typer.Exit:
    """Prints the error in one line; raise what it returns."""
    typer.secho(f"error: {message}", fg="red", err=True)
    return typer.Exit(code)
