"""Embed the texts of a Parquet file with a registered model, on Ray Data.

    hbt-ray submit embed --model models:/hbt-sample@champion --input /data/texts.parquet --output /data/vectors
    ray job submit --working-dir . -- python jobs/embed.py \\
        --model models:/hbt-sample@champion --input /data/texts.parquet --output /data/vectors

Runtime environment: HBT_RAY_HOME or MLFLOW_TRACKING_URI of the trainings: the registry is there. `hbt-ray submit` hands
both over where they are set. Texts and vectors are where all nodes see them, also s3://.
Resources: none for this script; its actors ask for a CPU each, or a GPU where there are GPUs.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # `python jobs/x.py` looks in jobs/ only

from hbt_ray.cli import run

if __name__ == "__main__":
    sys.exit(run(["embed", *sys.argv[1:]]))
