"""Write a cleaned copy of a corpus.

    hbt-ray submit --cpus 1 clean /data/corpus --out /data/clean
    ray job submit --working-dir . -- python jobs/clean.py /data/corpus --out /data/clean

Runtime environment: none; credentials of s3:// come from the nodes' own environment.
Resources: one CPU, in this script. Without --cpus it runs on the head node.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # `python jobs/x.py` looks in jobs/ only

from hbt_ray.cli import run

if __name__ == "__main__":
    sys.exit(run(["data", "clean", *sys.argv[1:]]))
