"""`python -m experiments NAME`: regenerate a table or a figure."""

from __future__ import annotations

import typer

from experiments import fashion

app = typer.Typer(
    help="Regenerate a table or a figure.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.callback()
def main() -> None:
    """Regenerate a table or a figure."""


app.command("fashion")(fashion.main)

if __name__ == "__main__":
    app(prog_name="python -m experiments")
