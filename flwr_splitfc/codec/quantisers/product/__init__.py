"""FedLite's quantiser: pieces of rows become centroids (2201.11865)."""
