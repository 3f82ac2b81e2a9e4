"""Two runs held against each other: is the second worse than the first by more than is allowed?"""
