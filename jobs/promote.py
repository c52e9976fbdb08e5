"""Make a registered model the champion, if the gate lets it.

    hbt-ray submit promote --model hbt-sample --version 2
    ray job submit --working-dir . --runtime-env-json '{"env_vars": {"HBT_RAY_HOME": "/data"}}' \\
        -- python jobs/promote.py --model hbt-sample --version 2

Runtime environment: HBT_RAY_HOME or MLFLOW_TRACKING_URI of the trainings: the registry is there. `hbt-ray submit` hands
both over where they are set.
Resources: one CPU, in this script, for a minute.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # `python jobs/x.py` looks in jobs/ only

from hbt_ray.cli import run

if __name__ == "__main__":
    sys.exit(run(["promote", *sys.argv[1:]]))
