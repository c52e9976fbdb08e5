"""Search hyperparameters; the same sweep goes on with the trials that are missing.

    hbt-ray submit sweep jobs/configs/sweep-sample.yaml
    ray job submit --working-dir . --runtime-env-json '{"env_vars": {"HBT_RAY_HOME": "/data"}}' \\
        -- python jobs/sweep.py jobs/configs/sweep-sample.yaml

Runtime environment: HBT_RAY_HOME is where relative output folders start (without it ~/hbt_ray on the node that runs the
job), MLFLOW_TRACKING_URI receives runs and models. `hbt-ray submit` hands both over where they are set.
Resources: none for this script; every trial asks for those of a training.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # `python jobs/x.py` looks in jobs/ only

from hbt_ray.cli import run

if __name__ == "__main__":
    sys.exit(run(["sweep", *sys.argv[1:]]))
