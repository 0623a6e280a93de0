"""The subcommands of ``legato``, one module each with a typer ``app``; imported when called."""
