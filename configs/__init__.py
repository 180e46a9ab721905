"""Training files and model descriptions; configs/model ships with the package."""
