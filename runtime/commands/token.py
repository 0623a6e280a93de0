"""``legato token new``: tokens that let clients in."""

from pathlib import Path
from typing import Annotated

import typer

from runtime.output import as_line

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Make tokens for a server.")


@app.callback()
def tokens() -> None:
    """Make tokens for a server."""


@app.command(epilog="For example: legato token new --name camera-1 --file tokens.txt")
def new(
    name: Annotated[str, typer.Option(help="Whose token it is; letters, digits and . _ - @.")],
    scope: Annotated[
        list[str] | None, typer.Option(help="stream, describe, admin; with commas, or given more than once.")
    ] = None,
    file: Annotated[Path, typer.Option(help="The server's file of hashes; the token's is added.")] = Path("tokens.txt"),
    as_json: Annotated[bool, typer.Option("--json", help="For machines.")] = False,
) -> None:
    """Make a token, add its hash to a file, and print it: this once, it is nowhere else.

    A server that runs with --tokens FILE accepts it at once. To take it back, delete its line.
    """
    from runtime.serve.auth import new_token

    scopes = [part.strip() for text in scope or ["stream,describe"] for part in text.split(",") if part.strip()]
    token = new_token(file, name, scopes)
    if as_json:
        print(as_line({"token": token, "name": name, "scopes": scopes, "file": str(file)}))
    else:
        print(token)
