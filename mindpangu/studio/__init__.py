"""The page to draw on in a browser."""
