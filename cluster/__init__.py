"""Where a sweep runs: connecting to Ray, and what fits there. Knows no model and no study."""
