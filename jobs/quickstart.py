"""The whole path on the embedded sample: three arms, evaluation, comparison, registry, report.

    hbt-ray submit quickstart --out /data/quickstart
    ray job submit --working-dir . -- python jobs/quickstart.py --out /data/quickstart

Runtime environment: none; MLFLOW_TRACKING_URI receives runs and models where it is set.
Resources: none for this script; trainings and evaluations ask for two CPUs and one for the data tasks.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # `python jobs/x.py` looks in jobs/ only

from hbt_ray.cli import run

if __name__ == "__main__":
    sys.exit(run(["quickstart", *sys.argv[1:]]))
