"""SplitFC's quantiser: columns get levels by how much they vary (2307.10805, Sec. V)."""
