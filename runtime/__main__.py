"""``python -m runtime`` is the command ``legato``."""

from runtime.cli import main

if __name__ == "__main__":
    main()
