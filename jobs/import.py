"""Import parallel pairs where the files lie, into a corpus that all nodes see.

    hbt-ray submit --cpus 1 import jsonl --source /data/raw/pairs.jsonl --dataset mine --out s3://bucket/corpus
    ray job submit --working-dir . -- python jobs/import.py \\
        jsonl --source /data/raw/pairs.jsonl --dataset mine --out s3://bucket/corpus

Runtime environment: none; credentials of s3:// come from the nodes' own environment.
Resources: one CPU, in this script, whose memory does not grow with the data. Without --cpus it runs on the head node.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # `python jobs/x.py` looks in jobs/ only

from hbt_ray.cli import run

if __name__ == "__main__":
    sys.exit(run(["data", "import", *sys.argv[1:]]))
