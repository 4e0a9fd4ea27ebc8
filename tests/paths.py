"""Where things lie."""

from pathlib import Path

ROOT = Path(__file__).parent.parent
CONFIGS = ROOT / "configs"
DATA = ROOT / "tests" / "data"
