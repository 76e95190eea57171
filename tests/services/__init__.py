"""Small local servers that speak the protocols of the services the library calls."""
