"""The package's version, for the package and for what it tells services about itself."""

__version__ = "0.1.0"
