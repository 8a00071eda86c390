"""How the sender spends a bit budget on columns (SplitFC, 2307.10805, Sec. V).

A matrix of B rows and K columns has to be coded in some bytes. The sender decides

- `splits`: which M columns, the widest, could get two stages while the mean stands for
  each of the others; eleven choices of M, and what each of them costs at the least;
- `split_search`: which of these splits has the least error bound, on a coarse scale of
  multipliers;
- `bisection`: the multiplier, and so the levels, that spends the bits of that split;
- `upgrade_search`: which columns get one level more for the bits that are left;
- `plan`: all of it in one call.

The searches are loops that numba compiles. They go over the 200 spans that a column can
have in grid steps, not over columns: columns of equal span cost and err alike. The
receiver repeats none of this; it reads the results from the header.

Numbers in parentheses, in this package, are those of the equations in docs/splitfc.md.
"""
