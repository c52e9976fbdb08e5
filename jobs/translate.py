"""Translate a dataset into further languages; the same arguments go on with what is missing.

    hbt-ray submit translate --corpus /data/corpus --dataset countries --from en --to de,tr --model facebook/m2m100_418M
    ray job submit --working-dir . -- python jobs/translate.py \\
        --corpus /data/corpus --dataset countries --from en --to de,tr --model facebook/m2m100_418M

Runtime environment: none. The corpus and a model that is a folder are at these paths on all nodes; the corpus may be
s3://, the model a name of the hub, which each node downloads.
Resources: none for this script; its actors ask for a CPU each, or a GPU where there are GPUs.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # `python jobs/x.py` looks in jobs/ only

from hbt_ray.cli import run

if __name__ == "__main__":
    sys.exit(run(["data", "translate", *sys.argv[1:]]))
