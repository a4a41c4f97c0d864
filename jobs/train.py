"""`cardioray train` as a Ray job, with the same arguments and options.

ray job submit --working-dir . -- python jobs/train.py ffr --data s3://bucket/shards --out s3://bucket/runs
"""

import sys

from cardioray.cli import main

if __name__ == "__main__":
    sys.argv[:1] = ["cardioray", "train"]
    main()
