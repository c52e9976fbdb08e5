"""Compare results folders that evaluations on the cluster wrote, where they lie.

    hbt-ray submit compare /data/results/a /data/results/b --out /data/results/a-b
    ray job submit --working-dir . -- python jobs/compare.py /data/results/a /data/results/b --out /data/results/a-b

Runtime environment: none.
Resources: one CPU, in this script: `hbt-ray submit --cpus 1 compare …` takes it off the head node.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # `python jobs/x.py` looks in jobs/ only

from hbt_ray.cli import run

if __name__ == "__main__":
    sys.exit(run(["compare", *sys.argv[1:]]))
