"""What nets cost, on paper, from their specs alone."""
