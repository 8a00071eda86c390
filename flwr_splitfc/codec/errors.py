"""What can go wrong at the cut."""


class PayloadError(ValueError):
    """The bytes are not a payload of the agreed codec and shape."""


class BudgetError(ValueError):
    """No payload of this shape fits into the budget; the message names the smallest one that works."""
