"""`emo quickstart`, and the sample corpus that it can use."""
