"""How one trial trains."""

import os

# Read by torch at its first allocation: large tensors, such as the gradient of a vocabulary, which
# come and go at every step, then take huge pages: a five-hundredth of the page faults.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
