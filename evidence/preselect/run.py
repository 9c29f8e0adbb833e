"""PreSelect and its controls, from the runs that MATES shares: `TILTH_DATA=... python run.py FOLDER [ARM...]`; see
protocol.md and ../mates/run.py, which this calls."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "mates"))
from run import main

if __name__ == "__main__":
    sys.exit(main())
