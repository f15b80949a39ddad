"""`python -m tuner` is the `tuner` program of this interpreter."""

from __future__ import annotations

from tuner.cli.main import main

if __name__ == "__main__":
    main()
