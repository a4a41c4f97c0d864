"""`cardioray data prepare` as a Ray job, with the same arguments and options.

ray job submit --working-dir . -- python jobs/prepare.py ffr s3://bucket/ffr --out s3://bucket/shards
"""

import sys

from cardioray.cli import main

if __name__ == "__main__":
    sys.argv[:1] = ["cardioray", "data", "prepare"]
    main()
