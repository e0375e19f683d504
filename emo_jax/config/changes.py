"""Which fields may differ between a run and one that goes on from it: the metadata of a field.

Where a section has it, it is of all its fields that have none. A difference in any other field
makes it another run.
"""

KEY = "may_change"
RESUME = {KEY: "resume"}  # when a run is resumed, too: it does not alter what the run computes
INIT = {KEY: "init"}  # in a run that begins from a checkpoint of another
RECIPE = {KEY: "weights"}  # in one that takes the parameters alone
