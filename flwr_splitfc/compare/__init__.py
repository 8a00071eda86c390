"""The experiment runner behind `flwr-splitfc compare`."""
