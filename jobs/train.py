"""Train one configuration; the same run name resumes, and a finished run is not trained again.

    hbt-ray submit train jobs/configs/sample.yaml
    ray job submit --working-dir . --runtime-env-json '{"env_vars": {"HBT_RAY_HOME": "/data"}}' \\
        -- python jobs/train.py jobs/configs/sample.yaml

Runtime environment: HBT_RAY_HOME is where relative output folders start (without it ~/hbt_ray on the node that runs the
job), MLFLOW_TRACKING_URI receives runs and models. `hbt-ray submit` hands both over where they are set.
Resources: none for this script; its workers ask for cluster.workers x cluster.cpus_per_worker CPUs (and a GPU each with
cluster.gpu), its data tasks for one CPU more.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # `python jobs/x.py` looks in jobs/ only

from hbt_ray.cli import run

if __name__ == "__main__":
    sys.exit(run(["train", *sys.argv[1:]]))
