"""Errors of the cut codec."""


class PayloadError(ValueError):
    """The bytes are not a payload of the agreed codec and shape."""


class BudgetError(ValueError):
    """No payload of this shape fits into the budget.

    The message names the smallest budget that works.
    """
