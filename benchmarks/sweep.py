"""What a sweep costs beside its trials: its time over that of its trials if no place for one were ever empty.

    python benchmarks/sweep.py jobs/configs/sweep-sample.yaml [--set search.trials=6 ...]

Time of the sweep: the whole command, from reading the file to the finished report, with the start of Ray, the last
trials that run alone and the evaluation of the best model. Time of a trial: from the start of its process to its last
report, with the start of its workers, as training it by itself would take in a Ray that is there already.
ratio = seconds of the sweep · places / Σ seconds of trials.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

from hbt_ray.session import prepare_environment


def main() -> None:
    """Run a sweep in a temporary folder and print its times."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sweep", type=Path)
    parser.add_argument("--set", dest="settings", action="append", default=[], metavar="KEY=VALUE")
    args = parser.parse_args()
    prepare_environment()
    from hbt_ray.sweep.run import run_sweep
    from hbt_ray.sweep.settings import load_sweep

    with tempfile.TemporaryDirectory() as out:
        began = time.monotonic()
        sweep = load_sweep(args.sweep, [*args.settings, f"settings.run.out={out}"])
        content = run_sweep(sweep)
        seconds = time.monotonic() - began
    own = [trial["seconds"] for trial in content["trials"]]
    places = content["concurrent"]
    print(f"{len(own)} trials, {places} at a time: {seconds:.0f} s")
    print(f"trials: {sum(own):.0f} s in all, {min(own):.0f} to {max(own):.0f} s each")
    print(f"at full occupancy: {sum(own) / places:.0f} s")
    print(f"ratio: {seconds * places / sum(own):.3f}")


if __name__ == "__main__":
    main()
