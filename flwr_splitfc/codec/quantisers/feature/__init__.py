"""SplitFC's quantiser: more levels for columns that vary more (2307.10805, Sec. V)."""
