"""Twenty devices train for as long as one likes, and six of them misbehave in every way that is known.

    python -m tests.soak --minutes 30 --folder soak

The server is a process of its own, so that its memory is its own. This process has the
devices, in threads, and strangers who know the endpoint's address. All is on loopback.
"""
