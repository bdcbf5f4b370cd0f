"""The Flower server of a study: the round loop, and what it leaves behind."""
