"""Compare results folders that evaluations on the cluster wrote, where they lie.

Submit from the repository root:

    ray job submit --working-dir . -- python jobs/compare.py /data/results/a /data/results/b --out /data/results/a-b
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # `python jobs/x.py` looks in jobs/ only

from hbt_ray.cli import run

if __name__ == "__main__":
    sys.exit(run(["compare", *sys.argv[1:]]))
