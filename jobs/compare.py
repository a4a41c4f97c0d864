"""`cardioray compare` as a Ray job, with the same arguments and options.

ray job submit --working-dir . -- python jobs/compare.py ffr --data s3://bucket/shards --out s3://bucket/compare
"""

import sys

from cardioray.cli import main

if __name__ == "__main__":
    sys.argv[:1] = ["cardioray", "compare"]
    main()
