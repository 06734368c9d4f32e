"""`referent export`."""

import typer

from referent.commands.installation import needs_clone

# for app.command(context_settings=...): everything is passed on, --help too
CONTEXT = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}


@needs_clone("exporting", "export")
def export(context: typer.Context) -> None:
    """Export a checkpoint for Triton: merge, split, ONNX, check, publish."""
    from export.build import main

    main(context.args, "referent export")
