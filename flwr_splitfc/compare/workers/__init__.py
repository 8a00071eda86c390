"""The processes that make a comparison's runs.

A comparison has many short runs of one app. With a ``flwr run`` for each job, each
would start a simulation of its own, which takes 20 to 40 s: Ray starts, and each of its
processes imports torch and the app. Sixteen strategies on the digits take 8.6 minutes
here; as many ``flwr run`` would take 5 to 10 minutes more (`docs/compare.md`). So a
worker process holds one simulation open and makes run after run in it. Its parent can
be killed at any time: the worker then ends with all that it started, which a SuperLink
that ``flwr run`` leaves behind does not.

- `pool` hands runs out to workers side by side; `process` is a worker as its parent
  sees it, and `messages` what the two tell each other.
- `worker` is the process: it reads jobs, writes reports, and ends when its parent dies.
- `simulation` holds Flower's engine open. It alone calls ``run_simulation``, which
  Flower deprecates in favour of ``flwr run``; if it is removed, a worker can call
  ``flwr run`` for each job, and the rest stays.
- `run_grid` and `run_client_app` tell the devices which run a message belongs to, and
  keep runs apart.
- `federation` reads how many devices are simulated, and with what resources.
"""
