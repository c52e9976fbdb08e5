"""Translate a dataset into further languages, on the cluster that the job is submitted to.

Submit from the repository root; the same arguments go on with what is missing:

    ray job submit --working-dir . --runtime-env-json '{"env_vars": {"HBT_RAY_HOME": "/data"}}' \\
        -- python jobs/translate.py --corpus /data/corpus --dataset countries --from en --to de,tr \\
        --model facebook/m2m100_418M

The corpus and a model that is a folder are at these paths on all nodes; the corpus may be s3://, the model a name of
the hub, which each node downloads.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # `python jobs/x.py` looks in jobs/ only

from hbt_ray.cli import run

if __name__ == "__main__":
    sys.exit(run(["data", "translate", *sys.argv[1:]]))
