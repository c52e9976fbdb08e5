"""Evaluate a model on every language pair.

    hbt-ray submit evaluate \\
        --model models:/hbt-sample@challenger --benchmark sample --data /data/sample --out /data/results
    ray job submit --working-dir . -- python jobs/evaluate.py \\
        --model models:/hbt-sample@challenger --benchmark sample --data /data/sample --out /data/results

Runtime environment: HBT_RAY_HOME or MLFLOW_TRACKING_URI of the trainings, for a model of their registry; `hbt-ray
submit` hands both over where they are set. Benchmark and results are where all nodes see them.
Resources: a CPU for each of --actors, or a GPU where there are GPUs. This script holds the vectors of a collection: on
a small head node, have it run elsewhere with `hbt-ray submit --cpus 1 --memory 8 evaluate …`.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # `python jobs/x.py` looks in jobs/ only

from hbt_ray.cli import run

if __name__ == "__main__":
    sys.exit(run(["evaluate", *sys.argv[1:]]))
