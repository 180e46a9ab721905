"""The trainers. One loop, counted in images, and one task a file for what is trained in it."""
