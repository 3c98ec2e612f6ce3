"""Data files of the package: the first 1,000 test images of Fashion-MNIST (MIT licence)."""
