"""The same work by other means: servers, each a process of its own, and plain loops."""

import os

# albumentations asks on the network for its newest version when it is imported.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
