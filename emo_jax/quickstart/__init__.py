"""`emo quickstart`, and the sample corpus it can use."""
