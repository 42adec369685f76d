"""Probe videos into a manifest on the cluster that runs this file as a job.

    ray job submit --working-dir . -- python jobs/index.py /shared/clips --out /shared/clips.parquet

For a checkout that is sent as the working directory. It is `rayjepa job index`; `rayjepa submit index` sends that too,
after checking what usually goes wrong. Exit status: 0 done, 1 failed, 2 a mistake in the words, 130 stopped.
"""

import sys

from rayjepa.cli import main

if __name__ == "__main__":
    sys.exit(main(["job", "index", *sys.argv[1:]]))
