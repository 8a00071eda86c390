"""The quantiser of FedLite: pieces of rows become centroids (2201.11865)."""
