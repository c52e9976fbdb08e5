"""Train and compare the arms of a study; the same study goes on with what is missing.

    hbt-ray submit study jobs/configs/study-sample.yaml
    ray job submit --working-dir . --runtime-env-json '{"env_vars": {"HBT_RAY_HOME": "/data"}}' \\
        -- python jobs/study.py jobs/configs/study-sample.yaml

Runtime environment: HBT_RAY_HOME is where relative output folders start (without it ~/hbt_ray on the node that runs the
job), MLFLOW_TRACKING_URI receives runs and models. `hbt-ray submit` hands both over where they are set.
Resources: those of its trainings and evaluations. On a small head node, have this script run elsewhere with
`hbt-ray submit --cpus 1 --memory 8 study …`.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # `python jobs/x.py` looks in jobs/ only

from hbt_ray.cli import run

if __name__ == "__main__":
    sys.exit(run(["study", *sys.argv[1:]]))
