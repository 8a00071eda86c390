"""How the sender spends a bit budget on columns (SplitFC, Sec. V)."""
