"""The processes that make a comparison's runs."""
