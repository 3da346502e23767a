"""Where the tests find things."""

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MIRROR = ROOT.parent / "shared" / "hub"
