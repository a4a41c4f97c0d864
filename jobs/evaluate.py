"""`cardioray evaluate` as a Ray job, with the same arguments and options.

ray job submit --working-dir . -- python jobs/evaluate.py s3://bucket/bundle --data s3://bucket/ffr
"""

import sys

from cardioray.cli import main

if __name__ == "__main__":
    sys.argv[:1] = ["cardioray", "evaluate"]
    main()
