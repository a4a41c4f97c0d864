"""`cardioray predict` as a Ray job, with the same arguments and options.

ray job submit --working-dir . -- python jobs/predict.py s3://bucket/bundle s3://bucket/new --out s3://bucket/answers.parquet
"""

import sys

from cardioray.cli import main

if __name__ == "__main__":
    sys.argv[:1] = ["cardioray", "predict"]
    main()
