"""Search hyperparameters on the cluster that the job is submitted to.

Submit from the repository root; the same arguments go on with an interrupted sweep:

    ray job submit --working-dir . --runtime-env-json '{"env_vars": {"HBT_RAY_HOME": "/data"}}' \\
        -- python jobs/sweep.py jobs/configs/sweep-sample.yaml

HBT_RAY_HOME is where relative output folders start (without it ~/hbt_ray on the node that runs the job);
MLFLOW_TRACKING_URI, if set there too, receives runs and models.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # `python jobs/x.py` looks in jobs/ only

from hbt_ray.cli import run

if __name__ == "__main__":
    sys.exit(run(["sweep", *sys.argv[1:]]))
