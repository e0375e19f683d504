"""Field metadata: which fields may differ between a run and one that continues from it.

Metadata on a section applies to all its fields that have none. A difference in any other field
makes it a different run.
"""

KEY = "may_change"
RESUME = {KEY: "resume"}  # even when a run is resumed: it does not alter what the run computes
INIT = {KEY: "init"}  # in a run that starts from another run's checkpoint
RECIPE = {KEY: "weights"}  # in a run that takes only the parameters
