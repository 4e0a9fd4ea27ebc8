"""``python -m nlhf_zoo`` is ``nlhf``."""

from __future__ import annotations

from nlhf_zoo.cli.main import main

if __name__ == "__main__":
    main()
