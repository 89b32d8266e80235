"""What several experiments share: sizes of comparisons, and trials that go on where they were cut off."""
